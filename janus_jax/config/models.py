"""Whole models: Janus and Janus-Pro, and JanusFlow."""

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
    """Janus and Janus-Pro: decoupled visual encoders around one causal transformer (arXiv 2410.13848, §3.1)."""

    name: str = "janus_pro_1b"
    und_encoder: SiglipConfig = field(default_factory=SiglipConfig)
    gen_encoder: VQConfig = field(default_factory=VQConfig)
    llm: LlamaConfig = field(default_factory=LlamaConfig)
    # Width between the two layers of the image head.
    gen_head_width: int = 2048
    # Role strings differ between the releases, and scores fall with the wrong ones.
    conversation: ConversationStyle = "janus_pro"
    # Which encoder images to understand go through. The papers' models have one of their own for it; "gen_encoder" is
    # what they compare with, one encoder for both (arXiv 2410.13848, table 5, A).
    understanding_encoder: VisualEncoder = "und_encoder"

    def __post_init__(self) -> None:
        check_fields(self)
        und, gen = self.und_encoder, self.gen_encoder
        if self.understanding_encoder == "gen_encoder" and (und.image_size, und.num_patches) != (
            gen.image_size,
            gen.num_tokens,
        ):
            raise JanusError(
                f"JanusConfig.understanding_encoder is 'gen_encoder', which encodes {gen.image_size} pixels as "
                f"{gen.num_tokens} tokens, but und_encoder encodes {und.image_size} pixels as {und.num_patches} "
                f"patches; both must be equal."
            )

    @property
    def num_params(self) -> int:
        """Numbers in the parameter tree (the released files' unused attention pool and counter left out)."""
        width = self.llm.width
        und_adaptor = _mlp_params(self.und_encoder.width, width, width)
        gen_embed = self.gen_encoder.codebook_size * self.gen_encoder.code_dim
        gen_adaptor = _mlp_params(self.gen_encoder.code_dim, width, width)
        gen_head = _mlp_params(width, self.gen_head_width, self.gen_encoder.codebook_size)
        return (
            self.und_encoder.num_params
            + und_adaptor
            + self.gen_encoder.num_params
            + gen_embed
            + gen_adaptor
            + gen_head
            + self.llm.num_params
        )

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """The parts that training begins with from folders of their own."""
        return "llm", "und_encoder", "gen_encoder"

    @property
    def latent_shape(self) -> None:
        """Of an image to generate: it is ids, and has none."""
        return None

    @property
    def gen_image_size(self) -> int:
        """Pixels along a side of an image to generate."""
        return self.gen_encoder.image_size

    @property
    def num_gen_tokens(self) -> int:
        """Places of an image to generate: ids."""
        return self.gen_encoder.num_tokens

    def flops_per_image_token(self, context: int) -> int:
        """Floating-point operations of one generated image id: adaptor, transformer and image head.

        Args:
          context: number of places the id attends to, itself included.
        """
        width = self.llm.width
        adaptor = 2 * (self.gen_encoder.code_dim * width + width * width)
        head = 2 * (width * self.gen_head_width + self.gen_head_width * self.gen_encoder.codebook_size)
        return self.llm.flops_per_token(context, text_logits=False) + adaptor + head


@dataclass(frozen=True)
class JanusFlowConfig:
    """JanusFlow: the same transformer moves latents along a flow instead of writing ids (arXiv 2411.07975, §3).

    Attributes:
      gen_encoder: encoder and decoder of the latents, on both sides of the transformer.
      vae: between latents and pixels; None for a model that was loaded without one, which reads and answers, and
        draws no picture.
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
                f"{self.gen_encoder.latent_channels}; the flow moves in the latents of its VAE."
            )

    @property
    def num_params(self) -> int:
        """Numbers in the parameter tree, the VAE's included (the released file's unused attention pool left out)."""
        width, und = self.llm.width, self.und_encoder
        understanding = und.num_params + und.width * width + width + width
        vae = 0 if self.vae is None else self.vae.num_params
        return understanding + self.gen_encoder.num_params(width) + vae + self.llm.num_params

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """The parts that training begins with from folders of their own."""
        return ("llm", "und_encoder") + (() if self.vae is None else ("vae",))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the latents of an image to generate."""
        return self.gen_encoder.latent_shape

    @property
    def gen_image_size(self) -> int:
        """Pixels along a side of an image to generate; of its latents where there is no VAE."""
        return self.gen_encoder.latent_size * (1 if self.vae is None else self.vae.downsampling)

    @property
    def num_gen_tokens(self) -> int:
        """Places of an image to generate: patches of latents."""
        return self.gen_encoder.num_tokens


ModelConfig = JanusConfig | JanusFlowConfig


def _mlp_params(inputs: int, hidden: int, outputs: int) -> int:
    return inputs * hidden + hidden + hidden * outputs + outputs
