"""Config of the understanding encoder."""

from dataclasses import dataclass
from typing import Literal

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError

Gelu = Literal["exact", "tanh"]


@dataclass(frozen=True)
class SiglipConfig:
    """Understanding encoder: a pre-LN ViT without class token (SigLIP, arXiv 2303.15343).

    Attributes:
      image_size: Height and width of an image in pixels.
      patch_size: Height and width of a patch in pixels.
      width: Width of the hidden states.
      depth: Number of blocks.
      num_heads: Attention heads.
      mlp_dim: Width of the hidden layer of a block.
      layer_norm_eps: Epsilon of the norms.
      gelu: "exact" (Janus, timm) or "tanh" (transformers), the approximation used to train SigLIP.
    """

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_dim: int = 4096
    layer_norm_eps: float = 1e-6
    gelu: Gelu = "exact"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_size % self.patch_size:
            raise JanusError(
                f"SiglipConfig.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}."
            )
        if self.width % self.num_heads:
            raise JanusError(f"SiglipConfig.width {self.width} is not a multiple of num_heads {self.num_heads}.")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def num_patches(self) -> int:
        """Number of patches of one image, which is its number of token positions."""
        return (self.image_size // self.patch_size) ** 2
