"""Fast computation of an encoder whose convolution kernels are zero outside the patch of each code.

The PCA encoder (`pca_init`) is such an encoder. Without the zeros it is several times faster on a CPU.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from janus_jax.models.layers import Conv


def patchwise_encoder() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which the convolutions of an encoder use the kernel weights inside the patch only.

    These are the center of a 3x3 kernel and the upper left 2x2 of a downsampling kernel. The output does not change if
    the other weights are zero.
    """
    return nn.intercept_methods(_skip_outer_taps)


def _skip_outer_taps(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    conv = context.module
    # The type test excludes Upsample, a subclass of Conv in the decoder.
    if type(conv) is not Conv or conv.path[:1] != ("encoder",) or context.method_name != "__call__":
        return call(*args, **kwargs)
    (x,) = args
    kernel, bias = conv.weights(x.shape[-1])
    batch, height, width, channels = x.shape
    if conv.stride == 1:
        return x @ kernel[1, 1] + bias
    squares = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    squares = squares.reshape(batch, height // 2, width // 2, 4 * channels)
    return squares @ kernel[:2, :2].reshape(4 * channels, -1) + bias
