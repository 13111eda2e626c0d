"""The command draws what is asked for, goes on where it stopped, and prints what the official scorer found."""

import json

import pytest
from PIL import Image

from janus_jax.config import preset
from tests.commands.conftest import run
from tests.pseudo import CORPUS, make_checkpoint

TAGS = ("single_object", "counting")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a model, data and what one run made of them, and what the run said."""
    folder = tmp_path_factory.mktemp("geneval")
    make_checkpoint(folder / "model", preset("tiny"), CORPUS)
    (folder / "data").mkdir()
    lines = [{"tag": tag, "include": [{"class": "cup", "count": 1}], "prompt": f"a {tag}"} for tag in TAGS]
    (folder / "data" / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ran = evaluate(folder)
    assert ran.returncode == 0, ran.stderr
    return folder, ran


def evaluate(folder, *more):
    places = [f"--model={folder / 'model'}", f"--data={folder / 'data'}", f"--out={folder / 'out'}"]
    flags = ["--benchmark=geneval", "--option=images=2", "--batch_size=2", "--dtype=float32"]
    return run("launch.evaluate", *places, *flags, *more)


def test_official_folders_and_results(done):
    folder, ran = done
    predictions = folder / "out" / "predictions"
    files = [predictions / f"{p:05}" / "samples" / f"{n:04}.png" for p in range(2) for n in range(2)]
    assert len({Image.open(file).tobytes() for file in files}) == 4
    assert json.loads((predictions / "00001" / "metadata.jsonl").read_text())["tag"] == "counting"
    results = json.loads((folder / "out" / "results.json").read_text())
    assert results["scores"] == {}
    assert results["options"] == {"images": "2", "guidance_scale": "own", "temperature": "own"}
    assert "GenEval" in ran.stdout


def test_another_call_counts_what_the_scorer_found_and_draws_nothing(done):
    folder, _ = done
    predictions = folder / "out" / "predictions"
    before = {file: file.stat().st_mtime_ns for file in predictions.rglob("*.png")}
    verdicts = [
        {"filename": f"{predictions}/{p:05}/samples/{n:04}.png", "correct": p == 0 or n == 0}
        for p in range(2)
        for n in range(2)
    ]
    (predictions / "results.jsonl").write_text("\n".join(map(json.dumps, verdicts)))
    ran = evaluate(folder)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((folder / "out" / "results.json").read_text())["scores"] == {
        "overall": 0.75,
        "single": 1.0,
        "count": 0.5,
    }
    assert {file: file.stat().st_mtime_ns for file in predictions.rglob("*.png")} == before


def test_other_settings_of_the_drawing_are_refused(done):
    folder, _ = done
    ran = evaluate(folder, "--option=guidance_scale=3")
    assert ran.returncode == 2
    assert "was begun with options" in ran.stderr
