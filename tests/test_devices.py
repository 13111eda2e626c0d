"""Errors for missing devices, and for attention kernels that need another platform."""

import os
import subprocess
import sys

import jax
import pytest

from janus_jax.devices import initialize_devices
from janus_jax.errors import JanusError

# Prints the error for each value of JAX_PLATFORMS. No value works, so jax tries again each time.
CODE = """
import sys
import jax
from janus_jax.devices import initialize_devices
from janus_jax.errors import JanusError
for platforms in sys.argv[1:]:
    jax.config.update("jax_platforms", platforms)
    try:
        initialize_devices()
    except JanusError as error:
        print(error)
"""


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_platforms_without_devices_are_reported_in_one_sentence():
    platforms = ["cuda", "tpu", "nowhere"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CODE, *platforms], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *(
            f"JAX_PLATFORMS is {name}, but jax finds no device of the platform {name}, which needs {needs}; set "
            f"JAX_PLATFORMS=cpu, or unset it to use the devices that jax finds."
            for name, needs in (
                ("cuda", "an NVIDIA GPU with its driver, and the package jax[cuda13]"),
                ("tpu", "a TPU, and the package jax[tpu]"),
            )
        ),
        "JAX_PLATFORMS is nowhere, but jax has no platform nowhere; set it to cpu, cuda, rocm or tpu, or unset it to "
        "use the devices that jax finds.",
    ], done.stderr


def test_kernels_of_other_platforms_are_refused(monkeypatch):
    assert initialize_devices() == "cpu"
    with pytest.raises(JanusError, match=r"^--attention is cudnn, which needs an NVIDIA GPU, but the devices"):
        initialize_devices("cudnn", "--attention")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert initialize_devices("cudnn") == "gpu"
    with pytest.raises(JanusError, match=r"^attention is splash, which needs a TPU, but"):
        initialize_devices("splash")
