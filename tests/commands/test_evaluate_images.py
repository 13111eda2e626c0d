"""Tests of the evaluate command with GenEval: images, resuming, and results of the official scorer."""

import json

import numpy as np
import pytest
from PIL import Image

from janus_jax.config import preset
from tests.commands.conftest import run
from tests.pseudo import CORPUS, make_checkpoint

TAGS = ("single_object", "counting")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with model, data and the results of one run, and the finished process."""
    folder = tmp_path_factory.mktemp("geneval")
    make_checkpoint(folder / "model", preset("tiny"), CORPUS)
    (folder / "data").mkdir()
    lines = [{"tag": tag, "include": [{"class": "cup", "count": 1}], "prompt": f"a {tag}"} for tag in TAGS]
    (folder / "data" / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    process = evaluate(folder)
    assert process.returncode == 0, process.stderr
    return folder, process


def evaluate(folder, *more):
    paths = [f"--model={folder / 'model'}", f"--data={folder / 'data'}", f"--out={folder / 'out'}"]
    flags = ["--benchmark=geneval", "--option=images=2", "--batch_size=2", "--dtype=float32", "--parallel_window=auto"]
    return run("launch.evaluate", *paths, *flags, *more)


@pytest.mark.slow
def test_images_are_in_the_official_folders(finished):
    folder, process = finished
    predictions = folder / "out" / "predictions"
    files = [predictions / f"{p:05}" / "samples" / f"{n:04}.png" for p in range(2) for n in range(2)]
    assert len({Image.open(file).tobytes() for file in files}) == 4
    assert json.loads((predictions / "00001" / "metadata.jsonl").read_text())["tag"] == "counting"
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["scores"] == {}
    assert results["options"] == {"images": "2", "guidance_scale": "model", "temperature": "model"}
    assert "GenEval" in process.stdout


def test_a_second_call_scores_the_official_results_without_generating(finished):
    folder, _ = finished
    predictions = folder / "out" / "predictions"
    before = {file: file.stat().st_mtime_ns for file in predictions.rglob("*.png")}
    lines = [
        {"filename": f"{predictions}/{p:05}/samples/{n:04}.png", "correct": p == 0 or n == 0}
        for p in range(2)
        for n in range(2)
    ]
    (predictions / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    process = evaluate(folder)
    assert process.returncode == 0, process.stderr
    scores = json.loads((folder / "out" / "results.json").read_text())["scores"]
    assert scores == {"overall": 0.75, "single": 1.0, "count": 0.5}
    assert {file: file.stat().st_mtime_ns for file in predictions.rglob("*.png")} == before


@pytest.mark.slow
def test_a_run_with_other_sampling_options_is_refused(finished):
    folder, _ = finished
    process = evaluate(folder, "--option=guidance_scale=3")
    assert process.returncode == 2
    assert "belongs to a run with options" in process.stderr


@pytest.mark.nightly
def test_the_judge_selects_by_the_metadata_of_the_prompt(finished, tmp_path, monkeypatch):
    folder, _ = finished
    (tmp_path / "mine.py").write_text(
        "def wanted(prompts, images, metadata):\n"
        "    signs = [1 if one['tag'] == 'counting' else -1 for one in metadata]\n"
        "    return [sign * image.mean() for sign, image in zip(signs, images)]\n"
    )
    monkeypatch.chdir(tmp_path)
    out = f"--out={tmp_path / 'out'}"
    process = evaluate(folder, out, "--option=images=1", "--best_of=2", "--judge=mine:wanted")
    assert process.returncode == 0, process.stderr
    for prompt, select in enumerate((min, max)):
        candidates = folder / "out" / "predictions" / f"{prompt:05}" / "samples"
        images = [Image.open(candidates / f"{number:04}.png") for number in range(2)]
        best = Image.open(tmp_path / "out" / "predictions" / f"{prompt:05}" / "samples" / "0000.png")
        assert best.tobytes() == select(images, key=np.mean).tobytes()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["run"]["best_of"] == 2
    assert "belongs to a run with" in evaluate(folder, out, "--option=images=1").stderr
