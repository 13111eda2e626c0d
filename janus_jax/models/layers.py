"""Layers that all networks share: linear maps, norms, convolutions and embedding tables.

Linear weights have the axes (out, in) of PyTorch files, with heads as a separate axis. Conversion is then a copy, and a
decode step can compute weight times input, for which XLA's CPU backend reads the weight about twice as fast as for
input times weight. Every parameter has logical axis names, which `janus_jax.sharding` maps to a mesh.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from janus_jax.config import WEIGHT_SCALE, Execution

Axes = tuple[str | None, ...]
Initializer = Callable[..., Array]

# Number of input vectors up to which `project` computes weight times input. On two CPU cores this order is faster up to
# about 16 vectors, where reading the weight takes most of the time, and equally fast above.
WEIGHT_FIRST_MAX_ROWS = 16

LORA_A, LORA_B, LORA_SCALE = "lora_a", "lora_b", "lora_scale"
"""Names of an adapter's parameters, stored next to the weight (`janus_jax.training.lora`)."""


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    axes: Axes,
    execution: Execution,
    dtype: DTypeLike | None = None,
) -> Array:
    """Creates or reads a parameter of `module` with logical axis names. Default dtype: `execution.param_dtype`."""
    # Any, because flax's annotation says that `param` returns the box; it returns the array.
    boxed_init: Any = nn.with_logical_partitioning(init, axes)
    array: Array = module.param(name, boxed_init, shape, dtype or execution.param_dtype)
    return array


def precision(dtype: DTypeLike) -> lax.Precision:
    """Returns the precision for products of arrays of `dtype`. Products in float32 use neither TF32 nor bfloat16."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


Contractions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
"""Dimension numbers of `lax.dot_general`: contracted axes and batch axes of both operands."""


def product(
    x: Float[Array, "..."], y: Float[Array, "..."], contractions: Contractions, output_dtype: DTypeLike
) -> Float[Array, "..."]:
    """Returns `lax.dot_general` of two arrays of one dtype, in `output_dtype`.

    If `output_dtype` is wider, the products of the gradient still use the dtype of the arrays. In the wider dtype they
    would have half the speed or less on a GPU.
    """
    if jnp.dtype(output_dtype) == x.dtype:
        return _product(x, y, contractions, output_dtype)
    return _widened_product(x, y, contractions, output_dtype)


def _product(x: Array, y: Array, contractions: Contractions, output_dtype: DTypeLike) -> Array:
    return lax.dot_general(x, y, contractions, precision=precision(x.dtype), preferred_element_type=output_dtype)


_widened_product = jax.custom_vjp(_product, nondiff_argnums=(2, 3))


def _widened_forward(x: Any, y: Any, contractions: Contractions, output_dtype: DTypeLike) -> tuple[Array, Any]:
    # Records which operands need a gradient, as pytrees without leaves.
    needs_gradient = [() if operand.perturbed else None for operand in (x, y)]
    return _product(x.value, y.value, contractions, output_dtype), (x.value, y.value, needs_gradient)


def _widened_backward(
    contractions: Contractions, _output_dtype: DTypeLike, residuals: Any, gradient: Array
) -> tuple[Array | None, Array | None]:
    x, y, (x_needs, y_needs) = residuals
    gradient = gradient.astype(x.dtype)
    narrow = functools.partial(_product, contractions=contractions, output_dtype=x.dtype)
    by_x = None if x_needs is None else jax.linear_transpose(functools.partial(narrow, y=y), x)(gradient)[0]
    by_y = None if y_needs is None else jax.linear_transpose(functools.partial(narrow, x), y)(gradient)[0]
    return by_x, by_y


_widened_product.defvjp(_widened_forward, _widened_backward, symbolic_zeros=True)


def project(
    x: Float[Array, "*batch_and_inputs"],
    weight: Float[Array, "*outputs_and_inputs"],
    num_inputs: int = 1,
    output_dtype: DTypeLike | None = None,
) -> Float[Array, "*batch_and_outputs"]:
    """Contracts the last `num_inputs` axes of `x` with the last `num_inputs` axes of `weight`.

    The output axes are merged to one axis for the product, and so are the input axes. A mesh may therefore split only
    the first output axis and the first input axis.
    """
    output_dtype = output_dtype or x.dtype
    x_inputs = tuple(range(x.ndim - num_inputs, x.ndim))
    w_inputs = tuple(range(weight.ndim - num_inputs, weight.ndim))
    num_vectors = math.prod(x.shape[: x.ndim - num_inputs])
    if num_vectors > WEIGHT_FIRST_MAX_ROWS:
        # With more than two axes, XLA's CPU backend would transpose the weight at every call.
        batch, outputs = x.shape[: x.ndim - num_inputs], weight.shape[: weight.ndim - num_inputs]
        x = x.reshape(num_vectors, -1)
        y = product(x, weight.reshape(-1, x.shape[1]), (((1,), (1,)), ((), ())), output_dtype)
        return y.reshape(*batch, *outputs)
    y = product(weight, x, ((w_inputs, x_inputs), ((), ())), output_dtype)
    num_outputs = weight.ndim - num_inputs
    return y.transpose(*range(num_outputs, y.ndim), *range(num_outputs))


def fan_in_normal(num_inputs: int = 1) -> Initializer:
    """Returns a normal initializer with variance 1 / fan-in. The fan-in is the size of the last `num_inputs` axes."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        fan_in = math.prod(shape[len(shape) - num_inputs :])
        return jax.random.normal(key, shape, dtype) / math.sqrt(fan_in)

    return init


QUANTIZED_DTYPES: Mapping[str, Any] = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn, "int8_dynamic": jnp.int8}
"""dtype of quantized weights, by `Execution.quantization`."""

_BLOCK_SIZE = 1 << 24
"""Largest number of weights that `quantize` holds in float32."""


def quantize(weight: Shaped[np.ndarray, "..."], num_outputs: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes a weight of `num_outputs` output axes, then input axes.

    Returns:
      The weight in `dtype`, and the float32 scale of each output, so that weight times scale is about the argument. The
      largest weight of an output becomes the largest number of `dtype`.
    """
    outputs = weight.shape[:num_outputs]
    matrix = weight.reshape(math.prod(outputs), -1)
    quantized, scales = np.empty(matrix.shape, dtype), np.empty(len(matrix), np.float32)
    # In blocks, because the float32 copy of a large text head takes gigabytes.
    rows = max(1, _BLOCK_SIZE // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), rows):
        block = slice(start, start + rows)
        values = matrix[block].astype(np.float32)
        scale = np.maximum(np.abs(values).max(axis=1) / np.float32(_limit(dtype)), np.finfo(np.float32).tiny)
        values /= scale[:, None]
        quantized[block] = np.rint(values) if jnp.issubdtype(dtype, jnp.integer) else values
        scales[block] = scale
    return quantized.reshape(weight.shape), scales.reshape(outputs)


def _limit(dtype: Any) -> float:
    return float(jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).max)


def _quantized_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    limit = _limit(dtype)
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit).astype(dtype)


class Matrix(NamedTuple):
    """A weight, and its scales if it is quantized."""

    weight: Array
    scale: Array | None


def matrix(module: nn.Module, shape: tuple[int, ...], axes: Axes, num_inputs: int, execution: Execution) -> Matrix:
    """Creates or reads the weight of `module` and, with quantization, its scales.

    Args:
      shape: Sizes of the output axes, then of `num_inputs` input axes.
      axes: Logical names of the axes.
    """
    init = fan_in_normal(num_inputs)
    if execution.quantization == "none":
        return Matrix(parameter(module, "weight", init, shape, axes, execution).astype(execution.dtype), None)
    dtype, num_outputs = QUANTIZED_DTYPES[execution.quantization], len(shape) - num_inputs
    scale_init = nn.initializers.constant(1 / (_limit(dtype) * math.sqrt(math.prod(shape[num_outputs:]))))
    weight = parameter(module, "weight", _quantized_init, shape, axes, execution, dtype)
    outputs, output_axes = shape[:num_outputs], axes[:num_outputs]
    return Matrix(weight, parameter(module, WEIGHT_SCALE, scale_init, outputs, output_axes, execution, jnp.float32))


def multiply(
    x: Float[Array, "*batch_and_inputs"],
    matrix: Matrix,
    num_inputs: int,
    execution: Execution,
    output_dtype: DTypeLike | None = None,
) -> Float[Array, "*batch_and_outputs"]:
    """Returns `project` for a weight that may be quantized. The scales multiply the sums, not the weights.

    Args:
      output_dtype: dtype of the result; None stands for `execution.dtype`.
    """
    x, (weight, scale) = x.astype(execution.dtype), matrix
    if scale is None:
        return project(x, weight, num_inputs, output_dtype)
    if execution.quantizes_inputs:
        x, x_scale = _quantize_inputs(x, num_inputs)
        y = project(x, weight, num_inputs, jnp.int32).astype(jnp.float32)
        y *= x_scale.reshape(*x_scale.shape, *(1 for _ in scale.shape))
    else:
        y = project(x, weight.astype(execution.dtype), num_inputs, jnp.float32)
    return (y * scale).astype(output_dtype or execution.dtype)


def _quantize_inputs(
    x: Float[Array, "*batch_and_inputs"], num_inputs: int
) -> tuple[Int[Array, "*batch_and_inputs"], Float[Array, "*batch"]]:
    """Rounds each vector of inputs to int8. Returns it, and the scale of each vector."""
    axes, limit = tuple(range(x.ndim - num_inputs, x.ndim)), _limit(jnp.int8)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=axes) / limit, jnp.finfo(jnp.float32).tiny)
    return jnp.round(x / jnp.expand_dims(scale, axes)).astype(jnp.int8), scale


class Linear(nn.Module):
    """y = W x + b with W of shape (*outputs, *inputs), plus s B A x if the parameters contain a low-rank adapter.

    In the adapter (LoRA, arXiv 2106.09685, eq. 3) A has the shape (rank, *inputs), B has the shape (*outputs, rank),
    and s is a scalar. With `Execution.quantization` W has 8 bits and one scale for each output.

    Attributes:
      outputs: Sizes of the output axes.
      axes: Logical names of the axes of W, outputs first.
      num_inputs: Number of trailing axes of the input that are contracted.
      use_bias: Whether to add a bias of shape (*outputs).
      output_dtype: dtype of the result, such as float32 for logits; None stands for `execution.dtype`.
    """

    outputs: tuple[int, ...]
    axes: Axes
    execution: Execution = Execution()
    num_inputs: int = 1
    use_bias: bool = True
    output_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch_and_inputs"]) -> Float[Array, "*batch_and_outputs"]:
        e = self.execution
        shape = (*self.outputs, *x.shape[x.ndim - self.num_inputs :])
        x = x.astype(e.dtype)
        y = multiply(x, matrix(self, shape, self.axes, self.num_inputs, e), self.num_inputs, e, self.output_dtype)
        if self.has_variable("params", LORA_A):
            # Does not compute W + s B A, because the sum and its gradient would be as large as W.
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
    """Embedding table."""

    num_embeddings: int
    width: int
    axes: Axes
    execution: Execution = Execution()

    def setup(self) -> None:
        shape = (self.num_embeddings, self.width)
        self.embedding = parameter(self, "embedding", nn.initializers.normal(0.02), shape, self.axes, self.execution)

    def __call__(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return jnp.take(self.embedding, ids, axis=0).astype(self.execution.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32 (arXiv 1910.07467)."""

    eps: float
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
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
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale, bias = _scale_and_bias(self, x.shape[-1], self.execution)
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(self.execution.dtype)


class GroupNorm(nn.Module):
    """GroupNorm of channels-last images, computed in float32 (arXiv 1803.08494)."""

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
        # Combines the terms of each channel first, for one multiplication and one addition per element.
        y = y * gain[:, None, None] + (bias - mean * gain)[:, None, None]
        return y.astype(self.execution.dtype)

    def _group_mean(self, per_channel: Float[Array, "B C"]) -> Float[Array, "B C"]:
        batch, channels = per_channel.shape
        grouped = per_channel.reshape(batch, self.groups, -1)
        return jnp.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape).reshape(batch, channels)


CONV_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2), out_axis=3)
"""Normal initializer of convolution kernels with variance 1 / fan-in."""


class Conv(nn.Module):
    """Square convolution with bias, channels last.

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
        """Returns kernel and bias in the dtype of the computation."""
        shape = (self.kernel_size, self.kernel_size, input_channels, self.channels)
        axes = (None, None, "conv_in", "conv_out")
        kernel = parameter(self, "kernel", CONV_INIT, shape, axes, self.execution)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.channels,), axes[-1:], self.execution)
        return kernel.astype(self.execution.dtype), bias.astype(self.execution.dtype)


def repeated_block(
    block: Any, depth: int, execution: Execution, *, in_axes: Any = 0, static_argnums: tuple[int, ...] = ()
) -> Any:
    """Adds the execution's remat policy to a block class and, if layers are scanned, a scan over `depth` layers.

    Args:
      block: Class of a flax module.
      in_axes: Axes of the block's further arguments to scan over (`nn.scan`).
      static_argnums: Static arguments of the block (`nn.remat`).

    Returns:
      A class: of a single block if layers are unrolled, else of all blocks with stacked parameters.
    """
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    unrolled = execution.layers == "unrolled"
    if execution.remat != "none":
        # In a scan XLA cannot merge the recomputation with the forward pass, so prevent_cse is not needed.
        policy = policies[execution.remat]
        block = nn.remat(block, policy=policy, prevent_cse=unrolled, static_argnums=static_argnums)
    if unrolled:
        return block
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=execution.scan_unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def unstack_params(params: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
    """Returns the parameters with the stack `name` of `depth` blocks split into subtrees `name_0`, `name_1`, ..."""
    blocks = {f"{name}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params[name]) for i in range(depth)}
    return {key: value for key, value in params.items() if key != name} | blocks


def stack_params(params: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
    """Returns the parameters with subtrees `name_0`, `name_1`, ... stacked to one subtree `name`."""
    blocks = [params[f"{name}_{i}"] for i in range(depth)]
    tree = {key: value for key, value in params.items() if not key.startswith(f"{name}_")}
    return tree | {name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
