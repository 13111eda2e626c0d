"""The command, for a TPU that is not here."""

import json

import pytest

from tests.aot.test_topologies import HAS_TPU
from tests.commands.conftest import ROOT, run


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("topology", "device"), [("v5e:4x4", "TPU v5 lite"), ("v4:2x2x4", "TPU v4"), ("tpu7x:2x2x2", "TPU7x")]
)
def test_a_step_is_compiled_for_tpus_that_are_not_here(tmp_path, topology, device):
    file = tmp_path / "report.json"
    config = ROOT / "tests" / "training" / "runs.py"
    done = run(
        "launch.compile",
        *(f"--config={config}", "--config.stage=2", "--config.stages.stage_2.batch_size=16", f"--topology={topology}"),
        *("--config.stages.stage_2.precision.compute=bfloat16", "--config.resources.attention=splash"),
        f"--json={file}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fits"
    whole = json.loads(file.read_text())
    assert (whole["devices"], whole["device"]) == (16, device)
    assert whole["programs"][0]["collectives"]


def test_a_topology_that_is_none_is_refused_before_anything_is_compiled(refuses, tmp_path):
    config = ROOT / "tests" / "training" / "runs.py"
    told = refuses("launch.compile", f"--config={config}", "--topology=v9:2x2", cwd=tmp_path)
    assert "--topology v9:2x2 is none" in told


def test_a_device_of_which_nobody_says_what_it_computes_is_refused_before_anything_is_compiled(refuses, tmp_path):
    config = ROOT / "tests" / "training" / "runs.py"
    told = refuses("launch.compile", f"--config={config}", "--topology=cpu:1x1", cwd=tmp_path)
    assert "computes in float32 is not known; give config.resources.peak_flops" in told
