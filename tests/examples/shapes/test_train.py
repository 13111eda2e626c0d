"""Training from scratch with the smallest budget, and the recipes with each budget."""

import json
import subprocess
import sys

import pytest

import janus_jax
from checkpoints_convert import open_checkpoint
from examples.shapes.budgets import MODELS, stage_recipe
from tests.commands.conftest import ROOT, environment, run


def command(workdir, model, *flags):
    return [
        *(sys.executable, "-m", "examples.shapes.train", f"--model={model}", "--budget=smoke"),
        *(f"--workdir={workdir}", *flags),
    ]


@pytest.mark.nightly
@pytest.mark.parametrize(("model", "flags"), [("janus", ("--ablation",)), ("janusflow", ())])
def test_training_makes_a_model_and_a_report_and_is_not_repeated(model, flags, tmp_path):
    environ = environment(XLA_FLAGS="")
    subprocess.run(command(tmp_path, model, *flags), cwd=ROOT, env=environ, check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"understanding", "generation.overall", "generation.strict", "minutes"} <= set(report)
    released = tmp_path / MODELS[model].released
    assert open_checkpoint(released).layout == "released"
    ((image,),) = janus_jax.load(released, "float32").generate("A red circle.")
    assert image.size == (48, 48)
    if flags:
        assert set(report["one encoder"]) < set(report)
        assert open_checkpoint(tmp_path / "one_encoder" / "converted").layout == "orbax"
    before = (tmp_path / "converted" / "config.json").stat().st_mtime_ns
    again = subprocess.run(
        command(tmp_path, model, *flags), cwd=ROOT, env=environ, check=True, capture_output=True, text=True
    )
    assert (tmp_path / "converted" / "config.json").stat().st_mtime_ns == before
    assert "step 4/4" not in again.stdout


@pytest.mark.parametrize(("model", "name"), [(model, name) for model in MODELS for name in MODELS[model].budgets])
def test_a_budget_changes_steps_only(tmp_path, model, name):
    small = MODELS[model]
    budget = small.budgets[name]
    for number, stage in enumerate(small.module.RECIPE.stages, 1):
        one = stage_recipe(tmp_path, budget, number, "und_encoder", small).current
        assert one.trained == stage.trained
        assert one.steps == budget.stages[number - 1]
        assert one.optimizer.warmup_steps <= one.steps // 10
        assert [phase.weights for phase in one.phases] == [phase.weights for phase in stage.phases]


def test_the_ablation_changes_the_encoder_only(tmp_path):
    budget = MODELS["janus"].budgets["25min"]
    two, one = (stage_recipe(tmp_path, budget, 2, encoder) for encoder in ("und_encoder", "gen_encoder"))
    assert one.architecture.understanding_encoder == "gen_encoder"
    assert one.architecture.und_encoder.num_patches == one.architecture.gen_encoder.num_tokens
    assert (one.stages[1:], one.sources) == (two.stages[1:], two.sources)
    assert one.architecture.llm == two.architecture.llm


@pytest.mark.slow
def test_user_errors_are_reported(tmp_path):
    flow = ("examples.shapes.train", "--model=janusflow", f"--workdir={tmp_path}")
    refused = run(*flow, "--ablation", cwd=ROOT)
    assert refused.returncode == 2
    assert "--ablation needs an image tokenizer" in refused.stderr
    (tmp_path / "Janus-shapes").mkdir()
    assert "contains Janus-shapes; choose another folder" in run(*flow, cwd=ROOT).stderr
