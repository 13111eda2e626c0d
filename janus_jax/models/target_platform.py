"""Platform that programs are traced for: that of the local devices, or the target of ahead-of-time compilation."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from janus_jax.accelerators import Platform

_TARGET: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("target_platform", default=None)


@contextlib.contextmanager
def target_platform(platform: Platform) -> Iterator[None]:
    """While the context is active, programs are traced for `platform` and use its kernels."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def current_platform() -> str:
    """Returns the platform for which programs are traced now."""
    return _TARGET.get() or jax.default_backend()
