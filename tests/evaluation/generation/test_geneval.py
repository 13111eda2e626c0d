"""GenEval: the official folders, and the official scorer's results counted as its own summary does."""

import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation.geneval import BENCHMARK
from tests.evaluation.generation.painting import draw, painted, pixels, predicted

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


def results(folder, right, pictures=range(7 * 4)):
    """A results file as the official scorer writes it: whether picture number n is right."""
    lines = []
    for n in pictures:
        prompt, number = divmod(n, 4)
        line = {"filename": f"/elsewhere/predictions/{prompt:05}/samples/{number:04}.png", "tag": TAGS[prompt]}
        lines.append(line | {"prompt": "", "correct": right(prompt, number), "reason": "", "metadata": "{}"})
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_official_folders(data, tmp_path):
    out = tmp_path / "out"
    folder = predicted(BENCHMARK, *draw(BENCHMARK, data, out), out)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == sorted(
        [f"{p:05}/samples/{n:04}.png" for p in range(7) for n in range(4)]
        + [f"{p:05}/metadata.jsonl" for p in range(7)]
    )
    source = (data / "evaluation_metadata.jsonl").read_text().splitlines()
    assert [json.loads((folder / f"{n:05}" / "metadata.jsonl").read_text()) for n in range(7)] == list(
        map(json.loads, source)
    )
    assert (pixels(folder / "00002/samples/0003.png") == painted("a photo of 2 cups", (2, 3))).all()


def test_tasks_are_shares_of_pictures_and_the_score_their_mean(data, tmp_path):
    out = tmp_path / "out"
    pictures, answers = draw(BENCHMARK, data, out)
    assert BENCHMARK.score(pictures, answers, {}) == {}
    # Prompt p has min(p, 4) right of four; the first and the last are of one task.
    results(predicted(BENCHMARK, pictures, answers, out), lambda prompt, number: number < prompt)
    expected = {"single": 0.5, "two": 0.25, "count": 0.5, "colours": 0.75, "position": 1.0, "attribute": 1.0}
    found = BENCHMARK.score(pictures, answers, {})
    assert found == pytest.approx({"overall": 4 / 6} | expected)
    assert next(iter(found)) == "overall"


def test_results_that_lack_a_picture_are_refused(data, tmp_path):
    out = tmp_path / "out"
    pictures, answers = draw(BENCHMARK, data, out)
    results(predicted(BENCHMARK, pictures, answers, out), lambda *_: True, range(26))
    with pytest.raises(JanusError, match=r"results.jsonl lacks predictions/00006/samples/0002.png and 1 more"):
        BENCHMARK.score(pictures, answers, {})


def test_a_verdict_that_is_none_is_told(data, tmp_path):
    out = tmp_path / "out"
    pictures, answers = draw(BENCHMARK, data, out)
    results(predicted(BENCHMARK, pictures, answers, out), lambda *_: "yes")
    with pytest.raises(JanusError, match=r"results.jsonl, line 1: correct is 'yes'; true or false is expected"):
        BENCHMARK.score(pictures, answers, {})


def test_fewer_pictures_of_a_prompt(data, tmp_path):
    pictures, _ = draw(BENCHMARK, data, tmp_path / "out", options={"images": "1"})
    assert [picture.file for picture in pictures[:2]] == [f"predictions/0000{n}/samples/0000.png" for n in range(2)]


@pytest.mark.parametrize(
    ("option", "value"), [("images", "0"), ("images", "1.5"), ("guidance_scale", "much"), ("temperature", "-1")]
)
def test_a_number_that_will_not_do_is_refused(option, value):
    with pytest.raises(JanusError, match=rf"geneval's option {option} is '{value}'; it must be a .*number from"):
        BENCHMARK.settled({option: value})


def test_numbers_that_are_the_same_are_written_alike():
    assert BENCHMARK.settled({"guidance_scale": "5.0"}) == BENCHMARK.settled({"guidance_scale": "5"})


def test_a_models_own_settings_are_the_default_and_can_be_asked_for():
    settled = BENCHMARK.settled({})
    assert settled["guidance_scale"] == settled["temperature"] == "own"
    assert BENCHMARK.settled({"guidance_scale": "own"}) == settled


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"tag": "mood", "include": [], "prompt": "x"}, "tag is 'mood'; one of single_object"),
        ({"tag": "colors", "include": []}, "the field prompt is missing"),
        ({"tag": "colors", "prompt": "x"}, "the field include is missing"),
        ({"tag": "colors", "include": [{"count": 1}], "prompt": "x"}, "entry 1: the field class is missing"),
    ],
)
def test_a_malformed_line_is_told(tmp_path, line, told):
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(JanusError, match="evaluation_metadata.jsonl, line 1.*" + told):
        BENCHMARK.read(tmp_path, BENCHMARK.settled({}))
