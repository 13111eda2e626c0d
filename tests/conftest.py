"""How the tests run: on a CPU that shows eight devices, with PyTorch's comparison only where it is installed."""

import importlib.util
import os
from pathlib import Path

# All of this is read when jax starts, so it has to stand before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# float32 shall mean float32 on an accelerator too.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# What took a second or more to compile is kept from run to run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))

_PARITY_NEEDS = ("torch", "transformers", "diffusers")
collect_ignore = [] if all(map(importlib.util.find_spec, _PARITY_NEEDS)) else ["parity"]
