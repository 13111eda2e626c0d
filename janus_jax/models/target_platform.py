"""Platform that programs are traced for: the local devices, or the target of ahead-of-time compilation."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from janus_jax.accelerators import Platform

_TARGET: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("target_platform", default=None)


@contextlib.contextmanager
def target_platform(platform: Platform) -> Iterator[None]:
    """Traces programs with the kernels of `platform` while the context is active."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def current_platform() -> str:
    """Returns the platform that the program being traced will run on."""
    return _TARGET.get() or jax.default_backend()
