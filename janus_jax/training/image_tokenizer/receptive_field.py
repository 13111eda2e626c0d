"""How far around it a code looks.

The released encoder sees hundreds of pixels around the patch that a code stands for, so that a code says something of
its neighbours and the neighbours' codes are hard to guess from it. A transformer has to guess them. An encoder that
looks at the patch alone has codes that are easier to predict; it is the released architecture with most taps of its
kernels at zero, so that its weights fit the released layout.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.layers import Conv

Reach = Literal["full", "patch"]
Params = Any


def reach_mask(params: Params, reach: Reach) -> Params:
    """Ones where a parameter of the tokenizer may differ from zero, of shapes that broadcast.

    With "patch" the encoder's 3x3 convolutions keep their middle tap, its downsampling convolutions the 2x2 taps of
    their own square, and its attention adds nothing. What is left of the surroundings is in the statistics of the
    group norms.
    """

    def mask(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        names = [entry.key for entry in path]
        ones = np.ones((1,) * leaf.ndim, np.float32)
        if reach == "full" or names[0] != "encoder":
            return ones
        if names[-1] == "kernel":
            kept = np.zeros((3, 3, 1, 1), np.float32)
            kept[(slice(0, 2), slice(0, 2)) if "downsample" in names else (1, 1)] = 1
            return kept
        # The attention's sum is added to what goes around it: without its last map there is nothing to add.
        return np.zeros_like(ones) if names[-2] == "out" else ones

    return jax.tree_util.tree_map_with_path(mask, params)


def within_reach(params: Params, mask: Params) -> Params:
    """The parameters, or their gradients, with zeros where the mask has them."""
    return jax.tree.map(lambda leaf, kept: leaf * jnp.asarray(kept, leaf.dtype), params, mask)


def encoder_reach(reach: Reach) -> contextlib.AbstractContextManager[Any]:
    """Within it, the convolutions of an encoder masked to that reach are computed without the zeros of their kernels.

    The numbers are the same; on a CPU a patch-wise encoder is several times as fast.
    """
    return contextlib.nullcontext() if reach == "full" else nn.intercept_methods(_without_zeros)


def _without_zeros(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    conv = context.module
    # An Upsample is a Conv as well, and of the decoder; as is everything that is not below `encoder`.
    if type(conv) is not Conv or conv.path[:1] != ("encoder",) or context.method_name != "__call__":
        return call(*args, **kwargs)
    (x,) = args
    kernel, bias = conv.weights(x.shape[-1])
    rows, height, width, inputs = x.shape
    if conv.stride == 1:
        return x @ kernel[1, 1] + bias
    squares = x.reshape(rows, height // 2, 2, width // 2, 2, inputs).swapaxes(2, 3)
    return squares.reshape(rows, height // 2, width // 2, 4 * inputs) @ kernel[:2, :2].reshape(4 * inputs, -1) + bias
