"""Numbers of JanusFlow's generation encoder and decoder."""

from dataclasses import dataclass

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError


@dataclass(frozen=True)
class UViTConfig:
    """A shallow U-ViT: ConvNeXt blocks before and after the transformer, with a skip (JanusFlow, §3.1, appendix A).

    Attributes:
      latent_size: places along a side of the grid that the flow moves in.
      latent_channels: numbers at each of them.
      patch_size: of them along a side of the square that one place of the transformer stands for.
      width: channels of the encoder's blocks; the decoder's have twice as many, the skip beside what comes back.
      encoder_depth, decoder_depth: blocks of each.
      kernel_size: of the blocks' depthwise convolution.
      mlp_ratio: how much wider a block's hidden layer is.
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
            raise JanusError(f"UViTConfig.width is {self.width}; the sinusoids of a time need an even number.")
        if self.kernel_size % 2 == 0:
            raise JanusError(f"UViTConfig.kernel_size is {self.kernel_size}; a window has a middle if it is odd.")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the flow moves in."""
        return self.latent_size, self.latent_size, self.latent_channels

    @property
    def grid_size(self) -> int:
        """Places of the transformer along a side of the image."""
        return self.latent_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Places of the transformer that one image takes, without that of its time."""
        return self.grid_size**2

    @property
    def patch_dim(self) -> int:
        """Numbers of one patch of latents."""
        return self.patch_size**2 * self.latent_channels

    def num_params(self, llm_width: int) -> int:
        """Numbers of encoder and decoder with their norms and linear maps, around a transformer of that width."""
        w, d = self.width, llm_width
        time_embed = w * d + d + d * d + d
        encoder = self.patch_dim * w + w + time_embed + self.encoder_depth * self._block_params(w, d)
        adaptors = w * d + d + d + d * w + w
        head = 2 * w + 2 * w * self.patch_dim + self.patch_dim
        return encoder + adaptors + w + self.decoder_depth * self._block_params(2 * w, d) + head

    def _block_params(self, width: int, time_width: int) -> int:
        hidden = self.mlp_ratio * width
        depthwise = self.kernel_size**2 * width + width
        mlp = width * hidden + hidden + hidden * width + width
        return depthwise + width + mlp + 2 * hidden + time_width * 2 * width + 2 * width
