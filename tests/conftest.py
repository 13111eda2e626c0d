"""Test set-up: a CPU with eight virtual devices, bounded memory, and parity tests only if PyTorch is installed."""

import ctypes
import gc
import importlib.util
import os
import sys
from pathlib import Path

import pytest

# jax reads these when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# float32 must mean float32 on an accelerator too.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Programs that took a second or more to compile are kept from run to run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))

_PARITY_NEEDS = ("torch", "transformers", "diffusers")
collect_ignore = [] if all(map(importlib.util.find_spec, _PARITY_NEEDS)) else ["parity"]

_CLEAR_ABOVE = 0.9e9


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Drops compiled programs after a module once the process is large. Hundreds of them add up to gigabytes."""
    yield
    if "jax" in sys.modules and _resident_bytes() > _CLEAR_ABOVE:
        import jax

        jax.clear_caches()
        gc.collect()
        # Returns freed memory to the system; glibc keeps it otherwise.
        ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
