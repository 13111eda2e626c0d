"""Config of JanusFlow's generation encoder and decoder."""

from dataclasses import dataclass

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError


@dataclass(frozen=True)
class UViTConfig:
    """Shallow U-ViT: ConvNeXt blocks before and after the transformer, with a skip connection (JanusFlow, §3.1).

    Attributes:
      latent_size: Height and width of the latents.
      latent_channels: Channels of the latents.
      patch_size: Height and width of the patch of latents that one token position holds.
      width: Channels of the encoder's blocks. The decoder's blocks have twice as many, because the transformer's output
        and the encoder's output are concatenated.
      encoder_depth: Blocks of the encoder.
      decoder_depth: Blocks of the decoder.
      kernel_size: Height and width of the depthwise convolutions.
      mlp_ratio: Width of a block's hidden layer as a multiple of its channels.
      norm_eps: Epsilon of the norms.
    """

    latent_size: int = 48
    latent_channels: int = 4
    patch_size: int = 2
    width: int = 768
    encoder_depth: int = 2
    decoder_depth: int = 2
    kernel_size: int = 7
    mlp_ratio: int = 4
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self)
        if self.latent_size % self.patch_size:
            raise JanusError(
                f"UViTConfig.latent_size {self.latent_size} is not a multiple of patch_size {self.patch_size}."
            )
        if self.width % 2:
            raise JanusError(f"UViTConfig.width is {self.width}; the sinusoidal time embedding needs an even number.")
        if self.kernel_size % 2 == 0:
            raise JanusError(f"UViTConfig.kernel_size is {self.kernel_size}; a centered window needs an odd number.")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the latents."""
        return self.latent_size, self.latent_size, self.latent_channels

    @property
    def grid_size(self) -> int:
        """Height and width of the grid of patches."""
        return self.latent_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Number of token positions of one image, without the position of the time embedding."""
        return self.grid_size**2

    @property
    def patch_dim(self) -> int:
        """Number of values in one patch of latents."""
        return self.patch_size**2 * self.latent_channels
