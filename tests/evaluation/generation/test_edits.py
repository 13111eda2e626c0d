"""Tests of ImgEdit-Bench and GEdit-Bench: the folders for the official scorers, and scores from their results."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation import gedit, imgedit
from janus_jax.evaluation.generation.edit_requests import generate_edits
from janus_jax.processing import open_image
from tests.data.samples import image, parquet
from tests.evaluation.generation.fakes import (
    FakeEditModel,
    expected_pixels,
    read_pixels,
    run_benchmark,
    write_predictions,
)

SIZES = [(24, 12), (12, 24), (16, 16), (20, 15), (9, 27)]
TYPES = ["adjust", "add", "adjust", "style", "add"]
EDITS = {
    str(90 - number): {"id": f"animal/{number}.png", "prompt": f"Edit {number}.", "edit_type": kind}
    for number, kind in enumerate(TYPES)
}
COLUMNS = ("task_type", "instruction_language", "key")
LENGTHS = ["Make it blue.", "Add a boat. " * 20]
run = functools.partial(run_benchmark, generate=generate_edits)


def source(number):
    return image(number, "PNG", size=SIZES[number])


@pytest.fixture
def photos(tmp_path):
    """Data of ImgEdit-Bench."""
    folder = tmp_path / "data"
    (folder / "animal").mkdir(parents=True)
    for number in range(5):
        (folder / "animal" / f"{number}.png").write_bytes(source(number))
    (folder / "basic_edit.json").write_text(json.dumps(EDITS))
    return folder


def rows():
    """Rows of GEdit-Bench: two tasks in two languages."""
    keys = [f"k{number}" for number in range(4)]
    return {
        "key": keys,
        "task_type": ["subject-add", "subject-add", "tone_transfer", "tone_transfer"],
        "instruction": [f"{LENGTHS[number % 2]} {number}" for number in range(4)],
        "instruction_language": ["en", "cn", "en", "cn"],
        "input_image": [{"bytes": source(number), "path": None} for number in range(4)],
        "input_image_raw": [{"bytes": b"", "path": None}] * 4,
        "Intersection_exist": [True] * 4,
    }


def edited(number, prompt, index, seed=0):
    """Returns the pixels that the fake model returns for source image `number`."""
    return expected_pixels(f"{prompt} {np.asarray(open_image(source(number))).sum()}", (index, 0), seed)


def test_imgedit_files_are_those_that_the_official_scorer_reads(photos, tmp_path):
    out = tmp_path / "out"
    folder = write_predictions(
        imgedit.BENCHMARK, *run(imgedit.BENCHMARK, photos, out, FakeEditModel(), {"padding": "keep"}), out
    )
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{key}.png" for key in EDITS)
    for number, (key, values) in enumerate(EDITS.items()):
        np.testing.assert_array_equal(read_pixels(folder / f"{key}.png"), edited(number, values["prompt"], number))


def test_padding_is_cut_off(photos, tmp_path):
    out = tmp_path / "out"
    run(imgedit.BENCHMARK, photos, out, FakeEditModel())
    whole = edited(0, "Edit 0.", 0)  # A square of 12 pixels, for a source image of 24 x 12 pixels.
    np.testing.assert_array_equal(read_pixels(out / "predictions" / "90.png"), whole[3:9])
    assert Image.open(out / "predictions" / "89.png").size == (6, 12)
    assert Image.open(out / "predictions" / "88.png").size == (12, 12)


def test_the_model_gets_the_style_and_the_given_settings(photos, tmp_path):
    model = FakeEditModel()
    options = {"style": "janus_pro_r1_edit", "guidance_scale": "3"}
    run(imgedit.BENCHMARK, photos, tmp_path / "out", model, options)
    assert model.settings[0] == {"style": "janus_pro_r1_edit", "guidance_scale": 3.0}
    # This style crops, so nothing is cut off.
    assert Image.open(tmp_path / "out" / "predictions" / "90.png").size == (12, 12)


def test_an_interrupted_run_continues_with_the_remaining_edits(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(imgedit.BENCHMARK, photos, tmp_path / "out", FakeEditModel(stop_at=1), batch_size=2)
    model = FakeEditModel()
    run(imgedit.BENCHMARK, photos, tmp_path / "out", model, batch_size=2)
    assert len(model.batches) == 2
    run(imgedit.BENCHMARK, photos, tmp_path / "whole", FakeEditModel(), batch_size=5)
    for key in EDITS:
        one, other = (read_pixels(tmp_path / name / "predictions" / f"{key}.png") for name in ("out", "whole"))
        np.testing.assert_array_equal(one, other)


def test_grades_are_averaged_by_type(photos, tmp_path):
    requests, answers = run(imgedit.BENCHMARK, photos, tmp_path / "out", FakeEditModel())
    score = functools.partial(imgedit.BENCHMARK.score, requests, answers, {})
    assert score() == {}
    file = tmp_path / "out" / "predictions" / "average_score.json"
    grades = dict(zip(EDITS, (1, 2, 4, 5, 3.5), strict=True))
    file.write_text(json.dumps(grades))
    found = score()
    assert found == pytest.approx({"overall": 3.1, "add": 2.75, "adjust": 2.5, "style": 5})
    assert next(iter(found)) == "overall"
    for value in (7, "5", None):
        file.write_text(json.dumps(grades | {"88": value}))
        with pytest.raises(JanusError, match=r"average_score\.json: .*88"):
            score()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "/etc/passwd"}, "is outside"),
        ({"id": "../0.png"}, "is outside"),
        ({"edit_type": "other"}, "edit_type is 'other'"),
        ({"prompt": " "}, "prompt is ' '"),
        ({"id": "animal/absent.png"}, r"absent\.png, the image of question 90, is missing"),
    ],
)
def test_malformed_imgedit_data_is_reported(photos, change, words):
    (photos / "basic_edit.json").write_text(json.dumps(EDITS | {"90": EDITS["90"] | change}))
    with pytest.raises(JanusError, match=words):
        imgedit.BENCHMARK.load_items(photos, imgedit.BENCHMARK.resolve_options({}))


def test_a_key_that_leads_out_of_the_folder_is_refused(photos):
    (photos / "basic_edit.json").write_text(json.dumps({"../x": EDITS["90"]}))
    with pytest.raises(JanusError, match="is not a file name"):
        imgedit.BENCHMARK.read(photos, imgedit.BENCHMARK.resolve_options({}))


def test_gedit_files_are_those_that_the_official_scorer_reads(tmp_path):
    (tmp_path / "data").mkdir()
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows())
    out, model = tmp_path / "out", FakeEditModel()
    requests, answers = run(gedit.BENCHMARK, tmp_path / "data", out, model, {"padding": "keep"})
    # Instructions of different lengths are in different batches.
    assert {len(set(map(len, batch))) for batch in model.batches} == {1}
    folder = write_predictions(gedit.BENCHMARK, requests, answers, out)
    found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    names = ["/".join(("fullset", *row)) for row in zip(*(rows()[name] for name in COLUMNS), strict=True)]
    assert found == sorted(f"{name}{end}.png" for name in names for end in ("", "_SRCIMG"))
    for number, name in enumerate(names):
        original = np.asarray(open_image(source(number)))
        np.testing.assert_array_equal(read_pixels(folder / f"{name}_SRCIMG.png"), original)
        expected = edited(number, rows()["instruction"][number], number)
        np.testing.assert_array_equal(read_pixels(folder / f"{name}.png"), expected)


def test_gedit_in_one_language_has_the_same_images(tmp_path):
    (tmp_path / "data").mkdir()
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows())
    requests, _ = run(gedit.BENCHMARK, tmp_path / "data", tmp_path / "cn", FakeEditModel(), {"language": "cn"})
    assert [(request.id, request.prompt_index) for request in requests] == [
        ("subject-add/cn/k1", 1),
        ("tone_transfer/cn/k3", 3),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task_type": ["other"] * 4}, "task_type is 'other'"),
        ({"key": ["../x"] * 4}, "key is '../x'"),
        ({"input_image": [{"bytes": None, "path": "a.png"}] * 4}, "input_image contains no bytes"),
        ({"instruction": [""] * 4}, "instruction is ''"),
    ],
)
def test_malformed_gedit_data_is_reported(tmp_path, change, words):
    parquet(tmp_path / "a.parquet", rows() | change)
    with pytest.raises(JanusError, match=rf"a\.parquet, row 1: {words}"):
        gedit.BENCHMARK.read(tmp_path, gedit.BENCHMARK.resolve_options({}))


def test_a_damaged_source_image_is_named(photos, tmp_path):
    (photos / "animal" / "1.png").write_bytes(source(1)[:50])
    with pytest.raises(JanusError, match="The source image of 89"):
        run(imgedit.BENCHMARK, photos, tmp_path / "out", FakeEditModel())
