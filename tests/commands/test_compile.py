"""`janus-compile` for hardware that is not attached."""

import json

import pytest

from tests.aot.test_topologies import HAS_TPU
from tests.commands.conftest import ROOT, run

CONFIG = f"--config={ROOT / 'tests' / 'training' / 'runs.py'}"


@pytest.mark.nightly
@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("topology", "device"), [("v5e:4x4", "TPU v5 lite"), ("v4:2x2x4", "TPU v4"), ("tpu7x:2x2x2", "TPU7x")]
)
def test_step_compiles_for_detached_tpus(tmp_path, topology, device):
    file = tmp_path / "report.json"
    done = run(
        "launch.compile",
        *(CONFIG, "--config.stage=2", "--config.stages.stage_2.batch_size=16", f"--topology={topology}"),
        "--config.stages.stage_2.precision.compute=bfloat16",
        f"--json={file}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fits"
    report = json.loads(file.read_text())
    assert (report["devices"], report["device"], report["attention"]) == (16, device, "splash")
    assert report["programs"][0]["traffic"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "--topology v9:2x2 is not a topology"),
        ("cpu:1x1", "peak FLOP/s of cpu in float32 is not known; set config.resources.peak_flops"),
    ],
)
def test_invalid_topology_or_unknown_peak_is_a_user_error(refuses, tmp_path, topology, message):
    assert message in refuses("launch.compile", CONFIG, f"--topology={topology}", cwd=tmp_path)
