"""Test set-up: eight virtual CPU devices, bounded memory, and no parity tests if PyTorch is not installed."""

import ctypes
import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# jax reads these when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# Accelerators otherwise multiply float32 matrices with lower precision.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# No test reaches the network. Tests of the hub have their own server.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Stores compiled programs across test runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))

_PARITY_NEEDS = ("torch", "transformers", "diffusers")
collect_ignore = [] if all(map(importlib.util.find_spec, _PARITY_NEEDS)) else ["parity"]

_CLEAR_ABOVE = 0.9e9


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Drops compiled programs after a test module if the process is large. Hundreds of programs occupy gigabytes."""
    yield
    if "jax" in sys.modules and _resident_bytes() > _CLEAR_ABOVE:
        import jax

        jax.clear_caches()
        gc.collect()
        # Returns freed memory to the operating system, which glibc does not do by itself.
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def mount_disk(tmp_path):
    """Returns a function that mounts a file system of a size such as 512k."""
    disks = []

    def mount(size):
        disk = tmp_path / f"disk_{len(disks)}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture(scope="session")
def _bucket_server():
    from tests.bucket_server import BucketServer

    server = BucketServer()
    yield server
    server.stop()


@pytest.fixture
def bucket_server(_bucket_server, monkeypatch, tmp_path):
    """An emulator of Google Cloud Storage with the bucket `bucket`, which clients use until the test ends."""
    for name, value in {**_bucket_server.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    import gcsfs.retry  # It reads these variables.

    # No delays between repeated requests.
    monkeypatch.setattr(gcsfs.retry, "min", lambda *_: 0, raising=False)
    yield _bucket_server
    _bucket_server.reset()


@pytest.fixture
def bucket(bucket_server, tmp_path):
    """A folder on the bucket of `bucket_server`."""
    from janus_jax.buckets import as_path

    return as_path(f"gs://bucket{tmp_path}")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
