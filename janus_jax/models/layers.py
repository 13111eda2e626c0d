"""The small layers that every network here is made of: linear maps, norms, convolutions, tables.

Two conventions run through all of them. Linear weights are (out, in), heads split out, as PyTorch files hold them:
conversion is then a copy, and a decoding step can put the weight on the left of the product, where XLA's CPU
backend reads it about twice as fast. And every parameter carries logical axis names, which `janus_jax.sharding`
maps to a mesh.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from janus_jax.config import Execution

Axes = tuple[str | None, ...]
Initializer = Callable[..., Array]

# Up to this many rows a product is bound by reading the weight, beyond it by arithmetic. On two CPU cores the
# weight-first product is faster up to about 16 rows and equal from there on.
FEW_ROWS = 16

LORA_A, LORA_B, LORA_SCALE = "lora_a", "lora_b", "lora_scale"
"""The names of a matrix's adapter, which lies beside its weight where there is one (`janus_jax.training.lora`)."""


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: Axes, execution: Execution
) -> Array:
    """A parameter of `module` that carries the logical names of its axes."""
    # Typed as Any: flax says what is stored, a box, where what one gets is the array in it.
    boxed_init: Any = nn.with_logical_partitioning(init, axes)
    array: Array = module.param(name, boxed_init, shape, execution.param_dtype)
    return array


def precision(dtype: DTypeLike) -> lax.Precision:
    """The product precision that makes `dtype` mean what it says: float32 is not silently TF32 or bfloat16."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


Contractions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
"""As `lax.dot_general` has them: axes that are contracted, and axes that are batched, of both operands."""


def product(
    x: Float[Array, "..."], y: Float[Array, "..."], contractions: Contractions, output_dtype: DTypeLike
) -> Float[Array, "..."]:
    """`lax.dot_general` of two arrays of one dtype, in that dtype, its gradient too where the output is wider.

    The gradient of a wider output has its dtype, and a product with it would be computed in that: on a GPU at half of
    the speed or less.
    """
    if jnp.dtype(output_dtype) == x.dtype:
        return _product(x, y, contractions, output_dtype)
    return _widened_product(x, y, contractions, output_dtype)


def _product(x: Array, y: Array, contractions: Contractions, output_dtype: DTypeLike) -> Array:
    return lax.dot_general(x, y, contractions, precision=precision(x.dtype), preferred_element_type=output_dtype)


_widened_product = jax.custom_vjp(_product, nondiff_argnums=(2, 3))


def _widened_forward(x: Any, y: Any, contractions: Contractions, output_dtype: DTypeLike) -> tuple[Array, Any]:
    # Trees without leaves say for the backward pass which of both is asked for.
    asked = [() if operand.perturbed else None for operand in (x, y)]
    return _product(x.value, y.value, contractions, output_dtype), (x.value, y.value, asked)


def _widened_backward(
    contractions: Contractions, _output_dtype: DTypeLike, kept: Any, gradient: Array
) -> tuple[Array | None, Array | None]:
    x, y, (x_asked, y_asked) = kept
    gradient = gradient.astype(x.dtype)
    narrow = functools.partial(_product, contractions=contractions, output_dtype=x.dtype)
    by_x = None if x_asked is None else jax.linear_transpose(functools.partial(narrow, y=y), x)(gradient)[0]
    by_y = None if y_asked is None else jax.linear_transpose(functools.partial(narrow, x), y)(gradient)[0]
    return by_x, by_y


_widened_product.defvjp(_widened_forward, _widened_backward, symbolic_zeros=True)


def project(
    x: Float[Array, "*rows_and_inputs"],
    weight: Float[Array, "*outputs_and_inputs"],
    num_inputs: int = 1,
    output_dtype: DTypeLike | None = None,
) -> Float[Array, "*rows_and_outputs"]:
    """Contracts the last `num_inputs` axes of `x` with the last `num_inputs` axes of `weight`.

    Of the weight's outputs and of its inputs, a mesh may split the first axis alone: they are merged.
    """
    output_dtype = output_dtype or x.dtype
    x_inputs = tuple(range(x.ndim - num_inputs, x.ndim))
    w_inputs = tuple(range(weight.ndim - num_inputs, weight.ndim))
    num_rows = math.prod(x.shape[: x.ndim - num_inputs])
    if num_rows > FEW_ROWS:
        # With more axes than two, XLA's CPU backend would transpose the weight at every call.
        rows, outputs = x.shape[: x.ndim - num_inputs], weight.shape[: weight.ndim - num_inputs]
        x = x.reshape(num_rows, -1)
        y = product(x, weight.reshape(-1, x.shape[1]), (((1,), (1,)), ((), ())), output_dtype)
        return y.reshape(*rows, *outputs)
    y = product(weight, x, ((w_inputs, x_inputs), ((), ())), output_dtype)
    num_outputs = weight.ndim - num_inputs
    return y.transpose(*range(num_outputs, y.ndim), *range(num_outputs))


def fan_in_normal(num_inputs: int = 1) -> Initializer:
    """Normal with variance 1 / fan-in for weights whose last `num_inputs` axes are the inputs."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        fan_in = math.prod(shape[len(shape) - num_inputs :])
        return jax.random.normal(key, shape, dtype) / math.sqrt(fan_in)

    return init


class Linear(nn.Module):
    """y = W x + b, with W of shape (*outputs, *inputs); and + s B A x where the parameters hold a low-rank adapter.

    The adapter (LoRA, arXiv 2106.09685, eq. 3) has A of shape (rank, *inputs), B (*outputs, rank) and a number s.

    Attributes:
      outputs: sizes of the output axes.
      axes: logical names of W's axes, outputs first.
      num_inputs: how many trailing axes of the input are contracted.
      use_bias: whether there is a b, of shape (*outputs).
      output_dtype: of the result, where it is not to be the execution's (logits in float32).
    """

    outputs: tuple[int, ...]
    axes: Axes
    execution: Execution = Execution()
    num_inputs: int = 1
    use_bias: bool = True
    output_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*rows_and_inputs"]) -> Float[Array, "*rows_and_outputs"]:
        e = self.execution
        shape = (*self.outputs, *x.shape[x.ndim - self.num_inputs :])
        weight = parameter(self, "weight", fan_in_normal(self.num_inputs), shape, self.axes, e)
        x = x.astype(e.dtype)
        y = project(x, weight.astype(e.dtype), self.num_inputs, self.output_dtype)
        if self.has_variable("params", LORA_A):
            # A branch of its own, and not W + s B A: so neither that sum nor its gradient, both as large as W, is made.
            a, b, s = (self._adapter(name) for name in (LORA_A, LORA_B, LORA_SCALE))
            y += project(s * project(x, a, self.num_inputs), b, output_dtype=self.output_dtype)
        if self.use_bias:
            axes = self.axes[: len(self.outputs)]
            y += parameter(self, "bias", nn.initializers.zeros, self.outputs, axes, e).astype(y.dtype)
        return y

    def _adapter(self, name: str) -> Array:
        array: Array = self.get_variable("params", name)
        return array.astype(self.execution.dtype)


class Embedding(nn.Module):
    """A table of `num_embeddings` rows."""

    num_embeddings: int
    width: int
    axes: Axes
    execution: Execution = Execution()

    def setup(self) -> None:
        shape = (self.num_embeddings, self.width)
        self.embedding = parameter(self, "embedding", nn.initializers.normal(0.02), shape, self.axes, self.execution)

    def __call__(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        return jnp.take(self.embedding, ids, axis=0).astype(self.execution.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32 (arXiv 1910.07467)."""

    eps: float
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:], ("norm",), self.execution)
        y = x.astype(jnp.float32)
        y *= lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale.astype(jnp.float32)).astype(self.execution.dtype)


def _scale_and_bias(
    module: nn.Module, channels: int, execution: Execution
) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    scale = parameter(module, "scale", nn.initializers.ones, (channels,), ("norm",), execution)
    bias = parameter(module, "bias", nn.initializers.zeros, (channels,), ("norm",), execution)
    return scale.astype(jnp.float32), bias.astype(jnp.float32)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32 (arXiv 1607.06450)."""

    eps: float
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        scale, bias = _scale_and_bias(self, x.shape[-1], self.execution)
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(self.execution.dtype)


class GroupNorm(nn.Module):
    """GroupNorm of an image, channels last, computed in float32 (arXiv 1803.08494)."""

    groups: int
    eps: float
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        scale, bias = _scale_and_bias(self, channels, self.execution)
        y = x.astype(jnp.float32)
        mean = self._group_mean(jnp.mean(y, axis=(1, 2)))
        variance = self._group_mean(jnp.mean(jnp.square(y - mean[:, None, None]), axis=(1, 2)))
        gain = lax.rsqrt(variance + self.eps) * scale
        # One multiplication and one addition an element: the per-channel terms are folded first.
        y = y * gain[:, None, None] + (bias - mean * gain)[:, None, None]
        return y.astype(self.execution.dtype)

    def _group_mean(self, per_channel: Float[Array, "B C"]) -> Float[Array, "B C"]:
        batch, channels = per_channel.shape
        grouped = per_channel.reshape(batch, self.groups, -1)
        return jnp.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape).reshape(batch, channels)


class Conv(nn.Module):
    """A square convolution, channels last, with bias.

    Attributes:
      padding: ((top, bottom), (left, right)) in pixels.
    """

    channels: int
    kernel_size: int
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        kernel, bias = self.weights(x.shape[-1])
        y = lax.conv_general_dilated(
            x.astype(kernel.dtype),
            kernel,
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision(kernel.dtype),
        )
        return y + bias

    def weights(self, input_channels: int) -> tuple[Float[Array, "P P C C2"], Float[Array, " C2"]]:
        """Kernel and bias, in the computation's dtype."""
        shape = (self.kernel_size, self.kernel_size, input_channels, self.channels)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2), out_axis=3)
        axes = (None, None, "conv_in", "conv_out")
        kernel = parameter(self, "kernel", init, shape, axes, self.execution)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.channels,), axes[-1:], self.execution)
        return kernel.astype(self.execution.dtype), bias.astype(self.execution.dtype)


def unstacked(params: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
    """Parameters whose `depth` blocks are stacked under `name`, with each block by itself: `name_0`, `name_1`, ..."""
    blocks = {f"{name}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params[name]) for i in range(depth)}
    return {key: value for key, value in params.items() if key != name} | blocks


def stacked(params: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
    """The inverse of `unstacked`."""
    blocks = [params[f"{name}_{i}"] for i in range(depth)]
    tree = {key: value for key, value in params.items() if not key.startswith(f"{name}_")}
    return tree | {name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
