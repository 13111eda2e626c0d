"""Configs of whole models: Janus, Janus-Pro and JanusFlow."""

from dataclasses import dataclass, field
from typing import Literal

from janus_jax.config.autoencoders import VAEConfig, VQConfig
from janus_jax.config.fields import check_fields
from janus_jax.config.llama import LlamaConfig
from janus_jax.config.siglip import SiglipConfig
from janus_jax.config.uvit import UViTConfig
from janus_jax.errors import JanusError

ConversationStyle = Literal["janus", "janus_pro"]
VisualEncoder = Literal["und_encoder", "gen_encoder"]


@dataclass(frozen=True)
class JanusConfig:
    """Janus and Janus-Pro: decoupled visual encoders around one causal transformer (arXiv 2410.13848, §3.1).

    Attributes:
      name: Name of the model.
      und_encoder: Encoder of input images (understanding).
      gen_encoder: Tokenizer of target images (generation).
      llm: The transformer.
      gen_head_width: Width between the two layers of the image head.
      conversation: Role strings of the model's training data. Other role strings lower its scores.
      understanding_encoder: Field with the encoder of input images: "und_encoder" in the released models. With
        "gen_encoder", the image tokenizer encodes the images of both tasks (arXiv 2410.13848, table 5, A).
    """

    name: str = "janus_pro_1b"
    und_encoder: SiglipConfig = field(default_factory=SiglipConfig)
    gen_encoder: VQConfig = field(default_factory=VQConfig)
    llm: LlamaConfig = field(default_factory=LlamaConfig)
    gen_head_width: int = 2048
    conversation: ConversationStyle = "janus_pro"
    understanding_encoder: VisualEncoder = "und_encoder"

    def __post_init__(self) -> None:
        check_fields(self)
        und, gen = self.und_encoder, self.gen_encoder
        sizes = (und.image_size, und.num_patches), (gen.image_size, gen.num_tokens)
        if self.understanding_encoder == "gen_encoder" and sizes[0] != sizes[1]:
            raise JanusError(
                f"JanusConfig.understanding_encoder is 'gen_encoder', which encodes {gen.image_size} pixels as "
                f"{gen.num_tokens} tokens, but und_encoder encodes {und.image_size} pixels as {und.num_patches} "
                f"patches; both must be equal."
            )

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """Parts that training initializes from separate checkpoints."""
        return "llm", "und_encoder", "gen_encoder"

    @property
    def latent_shape(self) -> None:
        """None: target images have tokens, not latents."""
        return None

    @property
    def gen_image_size(self) -> int:
        """Height and width of a target image in pixels."""
        return self.gen_encoder.image_size

    @property
    def num_gen_tokens(self) -> int:
        """Number of token positions of a target image."""
        return self.gen_encoder.num_tokens


@dataclass(frozen=True)
class JanusFlowConfig:
    """JanusFlow: the transformer predicts velocities of latents (rectified flow; arXiv 2411.07975, §3).

    Attributes:
      name: Name of the model.
      und_encoder: Encoder of input images (understanding).
      gen_encoder: Encoder and decoder of latents, before and after the transformer.
      vae: Autoencoder between latents and pixels. None if the model was loaded without it and cannot generate images.
      llm: The transformer.
      conversation: Role strings of the model's training data. Other role strings lower its scores.
    """

    name: str = "janusflow_1.3b"
    und_encoder: SiglipConfig = field(default_factory=SiglipConfig)
    gen_encoder: UViTConfig = field(default_factory=UViTConfig)
    vae: VAEConfig | None = field(default_factory=VAEConfig)
    llm: LlamaConfig = field(default_factory=LlamaConfig)
    conversation: ConversationStyle = "janus"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.vae is not None and self.vae.latent_channels != self.gen_encoder.latent_channels:
            raise JanusError(
                f"JanusFlowConfig.vae has latent_channels {self.vae.latent_channels} and gen_encoder "
                f"{self.gen_encoder.latent_channels}; both must be equal."
            )

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """Parts that training initializes from separate checkpoints."""
        return ("llm", "und_encoder") + (() if self.vae is None else ("vae",))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the latents of a target image."""
        return self.gen_encoder.latent_shape

    @property
    def gen_image_size(self) -> int:
        """Height and width of a target image in pixels; of its latents if the model has no VAE."""
        return self.gen_encoder.latent_size * (1 if self.vae is None else self.vae.downsampling)

    @property
    def num_gen_tokens(self) -> int:
        """Number of token positions of a target image, one per patch of latents."""
        return self.gen_encoder.num_tokens


ModelConfig = JanusConfig | JanusFlowConfig
