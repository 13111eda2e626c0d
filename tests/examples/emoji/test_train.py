"""The driver of the emoji example, and all its commands on a dozen pictures."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.emoji import commands
from janus_jax.errors import JanusError
from tests.commands.conftest import ROOT, environment
from tests.configs.test_configs import lines

STORED = Path(__file__).parent / "stored"
CONFIGS = sorted(file.stem for file in (ROOT / "examples" / "emoji" / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_matches_stored_values(name):
    config = importlib.import_module(f"examples.emoji.configs.{name}").get_config()
    assert "\n".join(lines(config)) + "\n" == (STORED / f"{name}.txt").read_text()


def test_a_failed_command_is_repeated_and_completed_ones_are_not(tmp_path, monkeypatch, capsys):
    ran, results = [], {step.command: step.result for step in commands.steps(tmp_path, "smoke")}

    def complete(arguments, **_):
        step = next(command for command in results if commands._arguments(command) == arguments)
        ran.append(step)
        failed = "--config.stage=2" in step and ran.count(step) == 1
        if not failed:
            results[step].parent.mkdir(parents=True, exist_ok=True)
            results[step].write_text(json.dumps({"scores": {"name": 1.0}}))
        return subprocess.CompletedProcess(arguments, int(failed))

    monkeypatch.setattr(subprocess, "run", complete)
    with pytest.raises(JanusError, match="stage 2 failed"):
        commands.run(tmp_path, "smoke")
    commands.run(tmp_path, "smoke")
    assert [command for command in ran if ran.count(command) > 1] == 2 * [
        step.command for step in commands.steps(tmp_path, "smoke") if step.name == "stage 2"
    ]
    assert list(dict.fromkeys(ran)) == list(results)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["generation"] == {"name": 1.0}
    assert set(report["minutes"]) == {step.name for step in commands.steps(tmp_path, "smoke")}
    assert "$ npm pack emoji-datasource-google" in capsys.readouterr().out


def test_missing_npm_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JanusError, match=r"npm is not installed; .* give the package with --package"):
        commands.run(tmp_path / "emoji", "smoke")


@pytest.mark.slow
def test_all_commands_run_on_a_dozen_pictures(package, tmp_path):
    command = [sys.executable, "-m", "examples.emoji.train", "--budget=smoke", f"--package={package}"]
    environ = environment(XLA_FLAGS="--xla_backend_optimization_level=0")
    subprocess.run([*command, f"--workdir={tmp_path}"], cwd=ROOT, env=environ, check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"minutes", "minutes in all", "understanding", "generation"}
    assert (tmp_path / "evaluation" / "generation" / "predictions" / "sheet.png").exists()
    assert Image.open(tmp_path / "figures" / "reconstructions.png").size == (3 * 48, 2 * 48)
    assert (tmp_path / "figures" / "curves.svg").exists()


if __name__ == "__main__":
    for name in CONFIGS:
        config = importlib.import_module(f"examples.emoji.configs.{name}").get_config()
        (STORED / f"{name}.txt").write_text("\n".join(lines(config)) + "\n")
