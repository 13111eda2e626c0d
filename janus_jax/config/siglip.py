"""The understanding encoder's numbers."""

from dataclasses import dataclass
from typing import Literal

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError

Gelu = Literal["exact", "tanh"]


@dataclass(frozen=True)
class SiglipConfig:
    """The understanding encoder: a pre-LN ViT without class token (SigLIP, arXiv 2303.15343)."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_dim: int = 4096
    layer_norm_eps: float = 1e-6
    # timm's tower, which Janus was trained with, uses the exact GELU; SigLIP as transformers releases it, the
    # tanh approximation.
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
        """Patches, and so embeddings, of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_params(self) -> int:
        patch_embed = 3 * self.patch_size**2 * self.width + self.width
        attention = 4 * (self.width**2 + self.width)
        mlp = 2 * self.width * self.mlp_dim + self.mlp_dim + self.width
        block = attention + mlp + 4 * self.width
        return patch_embed + self.num_patches * self.width + self.depth * block + 2 * self.width

    @property
    def num_attention_pool_params(self) -> int:
        """Numbers of the attention-pool head that released files carry and no Janus model uses."""
        attention = 4 * (self.width**2 + self.width)
        mlp = 2 * self.width * self.mlp_dim + self.mlp_dim + self.width
        return self.width + attention + 2 * self.width + mlp

    @property
    def flops_per_image(self) -> int:
        """Floating-point operations of one forward pass over one image, matrix products only."""
        n, w = self.num_patches, self.width
        block = n * (8 * w * w + 4 * w * self.mlp_dim) + 4 * n * n * w
        return 2 * n * 3 * self.patch_size**2 * w + self.depth * block
