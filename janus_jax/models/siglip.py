"""The understanding encoder: SigLIP's vision transformer (arXiv 2303.15343; ViT, arXiv 2010.11929)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from janus_jax.config import Execution, SiglipConfig
from janus_jax.models.attention import attend
from janus_jax.models.layers import LayerNorm, Linear, precision
from janus_jax.models.llama import remat_policy


class Attention(nn.Module):
    """Self-attention among an image's patches, with one fused projection."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        c = self.config
        dtypes = {"dtype": jnp.dtype(self.execution.dtype), "param_dtype": jnp.dtype(self.execution.param_dtype)}
        axes = (None, "heads", "head_dim", "embed")
        qkv = Linear((3, c.num_heads, c.head_dim), axes, name="qkv", **dtypes)(x)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)
        out = attend(query, key, value, kernel=self.execution.attention).swapaxes(1, 2)
        return Linear((c.width,), ("embed", "heads", "head_dim"), num_inputs=2, name="out", **dtypes)(out)


class MLP(nn.Module):
    """fc2(gelu(fc1(x)))."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        c = self.config
        dtypes = {"dtype": jnp.dtype(self.execution.dtype), "param_dtype": jnp.dtype(self.execution.param_dtype)}
        hidden = Linear((c.mlp_dim,), ("mlp", "embed"), name="fc1", **dtypes)(x)
        hidden = nn.gelu(hidden, approximate=c.gelu == "tanh")
        return Linear((c.width,), ("embed", "mlp"), name="fc2", **dtypes)(hidden)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: SiglipConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> tuple[Float[Array, "B N D"], None]:
        c, e = self.config, self.execution
        dtypes = {"dtype": jnp.dtype(e.dtype), "param_dtype": jnp.dtype(e.param_dtype)}
        x = x + Attention(c, e, name="attn")(LayerNorm(c.layer_norm_eps, name="norm1", **dtypes)(x))
        x = x + MLP(c, e, name="mlp")(LayerNorm(c.layer_norm_eps, name="norm2", **dtypes)(x))
        return nn.with_logical_constraint(x, ("batch", "length", "activation_embed")), None


class Siglip(nn.Module):
    """Patches of an image to features, after all blocks and the last norm; no class token, no pooling."""

    config: SiglipConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """Features of images of `config.image_size` squared, pixels in [-1, 1], patches row by row."""
        c, e = self.config, self.execution
        dtypes = {"dtype": jnp.dtype(e.dtype), "param_dtype": jnp.dtype(e.param_dtype)}
        x = PatchEmbed(c, name="patch_embed", **dtypes)(pixels)
        init = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), (None, "embed"))
        x = x + self.param("pos_embed", init, (c.num_patches, c.width), dtypes["param_dtype"]).astype(x.dtype)
        block = Block if e.remat == "none" else nn.remat(Block, policy=remat_policy(e.remat), prevent_cse=False)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(c, e, name="blocks")(x)
        return LayerNorm(c.layer_norm_eps, name="norm", **dtypes)(x)


class PatchEmbed(nn.Module):
    """A linear map of each patch's pixels: the convolution with equal kernel and stride, as one product."""

    config: SiglipConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        c = self.config
        p, side = c.patch_size, c.image_size // c.patch_size
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2), out_axis=3)
        init = nn.with_logical_partitioning(init, (None, None, None, "embed"))
        kernel = self.param("kernel", init, (p, p, 3, c.width), self.param_dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (c.width,), self.param_dtype)
        patches = pixels.astype(self.dtype).reshape(-1, side, p, side, p, 3).swapaxes(2, 3)
        patches = patches.reshape(-1, side * side, p * p * 3)
        kernel = kernel.astype(self.dtype).reshape(p * p * 3, c.width)
        return jnp.einsum("BNP,PD->BND", patches, kernel, precision=precision(self.dtype)) + bias.astype(self.dtype)
