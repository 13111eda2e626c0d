"""Configs of the convolutional autoencoders: the image tokenizer and the VAE."""

from dataclasses import dataclass
from typing import ClassVar

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError


class AutoencoderConfig:
    """Config of VQGAN's encoder and decoder (arXiv 2012.09841), shared by the image tokenizer and the VAE.

    Attributes:
      base_channels: Output channels of the encoder's first convolution.
      channel_multipliers: Channels of each resolution as multiples of `base_channels`, highest resolution first.
      num_res_blocks: Residual blocks per resolution of the encoder; the decoder has one more.
      norm_groups: Groups of the group norms.
      norm_eps: Epsilon of the group norms.
      lowest_level_attention: Whether attention follows every residual block at the lowest resolution.
    """

    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    norm_groups: int
    norm_eps: float
    lowest_level_attention: ClassVar[bool]

    def _check_groups(self) -> None:
        for channels in self.level_channels:
            if channels % self.norm_groups:
                raise JanusError(
                    f"{type(self).__name__}.norm_groups {self.norm_groups} does not divide {channels}, the channels "
                    f"of one resolution."
                )

    @property
    def downsampling(self) -> int:
        """Image height divided by grid height."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each resolution, highest resolution first."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)


@dataclass(frozen=True)
class VQConfig(AutoencoderConfig):
    """Image tokenizer: a convolutional VQGAN with a normalized low-dimensional codebook (LlamaGen, §2.1).

    Attributes:
      image_size: Height and width of an image in pixels.
      codebook_size: Number of codes, the vocabulary size of image tokens.
      code_dim: Dimension of a code.
      z_channels: Channels between encoder and codebook, and between codebook and decoder.
    """

    image_size: int = 384
    codebook_size: int = 16384
    code_dim: int = 8
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    norm_groups: int = 32
    norm_eps: float = 1e-6

    lowest_level_attention = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_size % self.downsampling:
            raise JanusError(
                f"VQConfig.image_size {self.image_size} is not a multiple of {self.downsampling}, "
                f"the tokenizer's downsampling."
            )
        self._check_groups()

    @property
    def grid_size(self) -> int:
        """Height and width of the token grid of one image."""
        return self.image_size // self.downsampling

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.grid_size**2


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig):
    """JanusFlow's autoencoder: SDXL's VAE (arXiv 2307.01952, §2.4), `AutoencoderKL` in diffusers.

    Attributes:
      latent_channels: Channels of the latents.
      scaling_factor: Factor that scales latents to a variance of about 1.
    """

    latent_channels: int = 4
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    norm_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = 0.13025

    lowest_level_attention = False

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_groups()
