"""Numbers of the convolutional nets between pixels and a grid: the image tokenizer and the VAE."""

from dataclasses import dataclass
from typing import ClassVar

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError


class AutoencoderConfig:
    """What the two have in common: VQGAN's encoder and decoder (arXiv 2012.09841).

    Attributes:
      base_channels: after the first convolution.
      channel_multipliers: of `base_channels`, by resolution, finest first.
      num_res_blocks: of one encoder level; a decoder level has one more.
      lowest_level_attention: whether attention follows every residual block of the lowest resolution.
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
                    f"of one level."
                )

    @property
    def downsampling(self) -> int:
        """Pixels along one side of the square that one place of the grid stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each resolution, finest first."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    def _encoder_cost(self, side: int, outputs: int) -> "_ConvCost":
        """Of pixels, `side` of them a side, to a grid of `outputs` numbers a place."""
        cost, channels = _ConvCost(), self.base_channels
        cost.conv(3, 3, channels, side)
        for level, width in enumerate(self.level_channels):
            lowest = level == len(self.level_channels) - 1
            for _ in range(self.num_res_blocks):
                cost.res_block(channels, width, side)
                channels = width
                if lowest and self.lowest_level_attention:
                    cost.attention(width, side)
            if not lowest:
                side //= 2
                cost.conv(3, width, width, side)
        cost.middle(channels, side)
        cost.norm(channels)
        cost.conv(3, channels, outputs, side)
        return cost

    def _decoder_cost(self, side: int, inputs: int) -> "_ConvCost":
        """Of a grid of `inputs` numbers a place to pixels, `side` of them a side."""
        cost, channels = _ConvCost(), self.level_channels[-1]
        side //= self.downsampling
        cost.conv(3, inputs, channels, side)
        cost.middle(channels, side)
        for level, width in enumerate(reversed(self.level_channels)):
            for _ in range(self.num_res_blocks + 1):
                cost.res_block(channels, width, side)
                channels = width
                if level == 0 and self.lowest_level_attention:
                    cost.attention(width, side)
            if level < len(self.level_channels) - 1:
                side *= 2
                cost.conv(3, width, width, side)
        cost.norm(channels)
        cost.conv(3, channels, 3, side)
        return cost


@dataclass(frozen=True)
class VQConfig(AutoencoderConfig):
    """The image tokenizer: a convolutional VQGAN with a normalised low-dimensional codebook (LlamaGen, §2.1)."""

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
        return self.image_size // self.downsampling

    @property
    def num_tokens(self) -> int:
        """Ids of one image."""
        return self.grid_size**2

    @property
    def num_params(self) -> int:
        return self._encoding.params + self._decoding.params + self.codebook_size * self.code_dim

    @property
    def encode_flops_per_image(self) -> int:
        """Floating-point operations of pixels -> ids for one image, products only."""
        return self._encoding.flops + 2 * self.num_tokens * self.codebook_size * self.code_dim

    @property
    def decode_flops_per_image(self) -> int:
        """Floating-point operations of ids -> pixels for one image, products only."""
        return self._decoding.flops

    @property
    def _encoding(self) -> "_ConvCost":
        cost = self._encoder_cost(self.image_size, self.z_channels)
        cost.conv(1, self.z_channels, self.code_dim, self.grid_size)
        return cost

    @property
    def _decoding(self) -> "_ConvCost":
        cost = self._decoder_cost(self.image_size, self.z_channels)
        cost.conv(1, self.code_dim, self.z_channels, self.grid_size)
        return cost


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig):
    """The autoencoder whose latents a flow moves in: SDXL's (arXiv 2307.01952, §2.4), diffusers' AutoencoderKL.

    Attributes:
      latent_channels: numbers at each place of the latent grid.
      scaling_factor: what latents are multiplied by, so that they have about variance 1.
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

    @property
    def num_params(self) -> int:
        return self._encoding(self.downsampling).params + self._decoding(self.downsampling).params

    def encode_flops(self, image_size: int) -> int:
        """Floating-point operations of pixels -> latents for one image of that side, products only."""
        return self._encoding(image_size).flops

    def decode_flops(self, image_size: int) -> int:
        """Floating-point operations of latents -> pixels for one image of that side, products only."""
        return self._decoding(image_size).flops

    def _encoding(self, side: int) -> "_ConvCost":
        moments = 2 * self.latent_channels
        cost = self._encoder_cost(side, moments)
        cost.conv(1, moments, moments, side // self.downsampling)
        return cost

    def _decoding(self, side: int) -> "_ConvCost":
        cost = self._decoder_cost(side, self.latent_channels)
        cost.conv(1, self.latent_channels, self.latent_channels, side // self.downsampling)
        return cost


@dataclass
class _ConvCost:
    """Parameters and floating-point operations, added up layer by layer along a convolutional net."""

    params: int = 0
    flops: int = 0

    def conv(self, kernel: int, inputs: int, outputs: int, side: int) -> None:
        self.params += kernel**2 * inputs * outputs + outputs
        self.flops += 2 * side**2 * kernel**2 * inputs * outputs

    def norm(self, channels: int) -> None:
        self.params += 2 * channels

    def res_block(self, inputs: int, outputs: int, side: int) -> None:
        self.norm(inputs)
        self.conv(3, inputs, outputs, side)
        self.norm(outputs)
        self.conv(3, outputs, outputs, side)
        if inputs != outputs:
            self.conv(1, inputs, outputs, side)

    def attention(self, channels: int, side: int) -> None:
        self.norm(channels)
        for _ in range(4):
            self.conv(1, channels, channels, side)
        self.flops += 4 * side**4 * channels

    def middle(self, channels: int, side: int) -> None:
        self.res_block(channels, channels, side)
        self.attention(channels, side)
        self.res_block(channels, channels, side)
