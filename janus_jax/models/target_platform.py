"""What a program is compiled for: the devices that are here, or others that it is compiled for ahead of time."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax

Platform = Literal["cpu", "gpu", "tpu"]

_PLATFORM: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def compiling_for(platform: Platform) -> Iterator[None]:
    """Within it, programs are traced with the kernels of that platform, whatever devices are here."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """Where what is now traced will run."""
    return _PLATFORM.get() or jax.default_backend()
