"""Everything from nothing, in miniature."""

import json
import subprocess
import sys

import pytest

from checkpoints_convert import detect_layout
from configs import shapes_janus
from launch.plans import PLANS, recipe
from tests.launch.conftest import ROOT, environment


@pytest.mark.slow
def test_it_makes_both_models_and_their_report_and_does_nothing_twice(tmp_path):
    command = [sys.executable, "-m", "launch.shapes", "--budget=smoke", "--ablation", f"--workdir={tmp_path}"]
    subprocess.run(command, cwd=ROOT, env=environment(XLA_FLAGS=""), check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"understanding", "generation.overall", "generation.strict", "minutes"} <= set(report)
    assert set(report["one encoder"]) < set(report)
    assert detect_layout(tmp_path / "Janus-shapes") == "released"
    assert detect_layout(tmp_path / "one_encoder" / "converted") == "converted"
    before = (tmp_path / "converted" / "config.json").stat().st_mtime_ns
    again = subprocess.run(command, cwd=ROOT, env=environment(XLA_FLAGS=""), check=True, capture_output=True, text=True)
    assert (tmp_path / "converted" / "config.json").stat().st_mtime_ns == before
    assert "step 4/4" not in again.stdout


@pytest.mark.parametrize("budget", PLANS)
def test_a_budget_changes_how_long_and_not_what(tmp_path, budget):
    for number, stage in enumerate(shapes_janus.RECIPE.stages, 1):
        one = recipe(tmp_path, PLANS[budget], number).current
        assert one.trained == stage.trained
        assert one.steps == PLANS[budget].stages[number - 1]
        assert one.optimizer.warmup_steps <= one.steps // 10
        assert [phase.weights for phase in one.phases] == [phase.weights for phase in stage.phases]


def test_the_ablation_differs_in_the_encoder_alone(tmp_path):
    two, one = (recipe(tmp_path, PLANS["25min"], 2, encoder) for encoder in ("und_encoder", "gen_encoder"))
    assert one.architecture.understands_by == "gen_encoder"
    assert (one.stages, one.sources) == (two.stages, two.sources)
