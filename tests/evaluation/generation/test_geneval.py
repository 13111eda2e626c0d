"""Tests of GenEval: the folders for the official scorer, and scores from its results."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation.geneval import BENCHMARK
from tests.evaluation.generation.fakes import expected_pixels, read_pixels, run_benchmark, write_predictions

TAGS = ["single_object", "two_object", "counting", "colors", "position", "color_attr", "single_object"]


@pytest.fixture
def data(tmp_path):
    lines = [
        {"tag": tag, "include": [{"class": "cup", "count": 1}], "prompt": f"a photo of {n} cups"}
        for n, tag in enumerate(TAGS)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data"


def write_results(folder, is_correct, images=range(7 * 4)):
    """Writes a results file as the official scorer does."""
    lines = []
    for n in images:
        prompt, number = divmod(n, 4)
        line = {"filename": f"/elsewhere/predictions/{prompt:05}/samples/{number:04}.png", "tag": TAGS[prompt]}
        lines.append(line | {"prompt": "", "correct": is_correct(prompt, number), "reason": "", "metadata": "{}"})
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_predictions_are_in_the_official_folders(data, tmp_path):
    out = tmp_path / "out"
    folder = write_predictions(BENCHMARK, *run_benchmark(BENCHMARK, data, out), out)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == sorted(
        [f"{p:05}/samples/{n:04}.png" for p in range(7) for n in range(4)]
        + [f"{p:05}/metadata.jsonl" for p in range(7)]
    )
    source = (data / "evaluation_metadata.jsonl").read_text().splitlines()
    assert [json.loads((folder / f"{n:05}" / "metadata.jsonl").read_text()) for n in range(7)] == list(
        map(json.loads, source)
    )
    assert (read_pixels(folder / "00002/samples/0003.png") == expected_pixels("a photo of 2 cups", (2, 3))).all()


def test_the_overall_score_is_the_mean_of_the_task_scores(data, tmp_path):
    out = tmp_path / "out"
    requests, answers = run_benchmark(BENCHMARK, data, out)
    assert BENCHMARK.score(requests, answers, {}) == {}
    # Prompt p has min(p, 4) correct images of four. The first and the last prompt belong to one task.
    write_results(write_predictions(BENCHMARK, requests, answers, out), lambda prompt, number: number < prompt)
    expected = {"single": 0.5, "two": 0.25, "count": 0.5, "colors": 0.75, "position": 1.0, "attribute": 1.0}
    found = BENCHMARK.score(requests, answers, {})
    assert found == pytest.approx({"overall": 4 / 6} | expected)
    assert next(iter(found)) == "overall"


def test_results_that_lack_an_image_are_refused(data, tmp_path):
    out = tmp_path / "out"
    requests, answers = run_benchmark(BENCHMARK, data, out)
    write_results(write_predictions(BENCHMARK, requests, answers, out), lambda *_: True, range(26))
    with pytest.raises(JanusError, match=r"results.jsonl lacks predictions/00006/samples/0002.png and 1 more"):
        BENCHMARK.score(requests, answers, {})


def test_a_result_that_is_not_boolean_is_reported(data, tmp_path):
    out = tmp_path / "out"
    requests, answers = run_benchmark(BENCHMARK, data, out)
    write_results(write_predictions(BENCHMARK, requests, answers, out), lambda *_: "yes")
    with pytest.raises(JanusError, match=r"results.jsonl, line 1: correct is 'yes'; expected true or false"):
        BENCHMARK.score(requests, answers, {})


def test_the_number_of_images_per_prompt_is_an_option(data, tmp_path):
    requests, _ = run_benchmark(BENCHMARK, data, tmp_path / "out", options={"images": "1"})
    assert [request.file for request in requests[:2]] == [f"predictions/0000{n}/samples/0000.png" for n in range(2)]


@pytest.mark.parametrize(
    ("option", "value"), [("images", "0"), ("images", "1.5"), ("guidance_scale", "much"), ("temperature", "-1")]
)
def test_an_invalid_number_is_refused(option, value):
    with pytest.raises(JanusError, match=rf"option {option} is '{value}'; it must be an? (number|integer) from"):
        BENCHMARK.resolve_options({option: value})


def test_equal_numbers_have_one_notation():
    assert BENCHMARK.resolve_options({"guidance_scale": "5.0"}) == BENCHMARK.resolve_options({"guidance_scale": "5"})
