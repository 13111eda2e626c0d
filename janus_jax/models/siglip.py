"""Understanding encoder: SigLIP's vision transformer (arXiv 2303.15343; ViT, arXiv 2010.11929)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.config import Execution, SiglipConfig
from janus_jax.models.attention import attend
from janus_jax.models.layers import (
    CONV_INIT,
    LayerNorm,
    Linear,
    Matrix,
    matrix,
    multiply,
    parameter,
    precision,
    repeated_block,
)


class QKV(nn.Module):
    """Linear maps to queries, keys and values of every head, with stacked weights."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> tuple[Float[Array, "B H N K"], ...]:
        c, e = self.config, self.execution
        axes = (None, "heads", "head_dim", "embed")
        weight, scale = matrix(self, (3, c.num_heads, c.head_dim, c.width), axes, 1, e)
        bias = parameter(self, "bias", nn.initializers.zeros, (3, c.num_heads, c.head_dim), axes[:3], e)
        # Computes three products. A merged product would make the mesh split queries, keys and values, not heads.
        maps = zip(weight, (None,) * 3 if scale is None else scale, bias.astype(e.dtype), strict=True)
        return tuple((multiply(x, Matrix(w, s), 1, e) + b).swapaxes(1, 2) for w, s, b in maps)


class Attention(nn.Module):
    """Self-attention among the patches of an image."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        c = self.config
        query, key, value = QKV(c, self.execution, name="qkv")(x)
        out = attend(query, key, value, kernel=self.execution.attention).swapaxes(1, 2)
        return Linear((c.width,), ("embed", "heads", "head_dim"), self.execution, num_inputs=2, name="out")(out)


class MLP(nn.Module):
    """fc2(gelu(fc1(x)))."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        c = self.config
        hidden = Linear((c.mlp_dim,), ("mlp", "embed"), self.execution, name="fc1")(x)
        hidden = nn.gelu(hidden, approximate=c.gelu == "tanh")
        return Linear((c.width,), ("embed", "mlp"), self.execution, name="fc2")(hidden)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> tuple[Float[Array, "B N D"], None]:
        c, e = self.config, self.execution
        x = x + Attention(c, e, name="attn")(LayerNorm(c.layer_norm_eps, e, name="norm1")(x))
        x = x + MLP(c, e, name="mlp")(LayerNorm(c.layer_norm_eps, e, name="norm2")(x))
        return nn.with_logical_constraint(x, ("batch", "length", "activation_embed")), None


class Siglip(nn.Module):
    """Vision transformer without class token and pooling."""

    config: SiglipConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Returns one feature per patch after the final norm, in row-major order.

        Args:
          pixels: Square images with sides of `config.image_size` and pixels in [-1, 1].
        """
        c, e = self.config, self.execution
        x = PatchEmbed(c, e, name="patch_embed")(pixels)
        init = nn.initializers.normal(c.width**-0.5)
        x = x + parameter(self, "pos_embed", init, x.shape[1:], (None, "embed"), e).astype(x.dtype)
        block = repeated_block(Block, c.depth, e)
        if e.layers == "unrolled":
            for i in range(c.depth):
                x, _ = block(c, e, name=f"blocks_{i}")(x)
        else:
            x, _ = block(c, e, name="blocks")(x)
        return LayerNorm(c.layer_norm_eps, e, name="norm")(x)


class PatchEmbed(nn.Module):
    """Linear map of each patch's pixels: a convolution with equal kernel and stride, as one product."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        c, e = self.config, self.execution
        p, side = c.patch_size, c.image_size // c.patch_size
        kernel = parameter(self, "kernel", CONV_INIT, (p, p, 3, c.width), (None, None, None, "embed"), e)
        bias = parameter(self, "bias", nn.initializers.zeros, (c.width,), ("embed",), e)
        patches = pixels.astype(e.dtype).reshape(-1, side, p, side, p, 3).swapaxes(2, 3)
        patches = patches.reshape(-1, side * side, p * p * 3)
        kernel = kernel.astype(e.dtype).reshape(p * p * 3, c.width)
        return jnp.einsum("BNP,PD->BND", patches, kernel, precision=precision(e.dtype)) + bias.astype(e.dtype)
