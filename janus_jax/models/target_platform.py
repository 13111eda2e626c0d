"""Platform that programs are traced for: that of the local devices, or the target of ahead-of-time compilation."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from janus_jax.accelerators import Platform
from janus_jax.config import AttentionKernel

_TARGET: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("target_platform", default=None)


@contextlib.contextmanager
def target_platform(platform: Platform) -> Iterator[None]:
    """While the context is active, programs are traced for `platform` and use its kernels."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def default_attention() -> AttentionKernel:
    """Returns the attention kernel of the platform for which programs are traced now.

    cuDNN's kernel needs an NVIDIA GPU of compute capability 8.0 (Ampere).
    """
    platform = current_platform()
    if platform != "gpu":
        return "splash" if platform == "tpu" else "xla"
    if _TARGET.get() is not None:
        return "cudnn"
    # An AMD GPU has a name instead of a number, such as gfx942.
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    major = capability.partition(".")[0]
    return "cudnn" if major.isdecimal() and int(major) >= 8 else "xla"


def current_platform() -> str:
    """Returns the platform for which programs are traced now."""
    return _TARGET.get() or jax.default_backend()
