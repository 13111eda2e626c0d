"""COCO-30K and MJHQ-30K: which pictures are drawn, and what FID is taken of. Its numbers are beside the usual
packages' in tests/parity."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation import coco, mjhq
from janus_jax.evaluation.metrics import fid
from janus_jax.evaluation.metrics.inception import Inception, inception_params
from tests.evaluation.generation.painting import draw, predicted
from tests.training.image_tokenizer.network_files import inception_file

CATEGORIES = ["animals", "art", "animals"]


@pytest.fixture
def captions(tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    entries = [{"image_id": n // 5, "id": 100 + n, "caption": f"A cat on\n{n} mats. "} for n in range(20)]
    (folder / "captions_val2014.json").write_text(json.dumps({"images": [], "annotations": entries}))
    return folder


@pytest.fixture
def midjourney(tmp_path):
    folder = tmp_path / "mjhq"
    folder.mkdir()
    entries = {f"{n:04x}": {"category": category, "prompt": f"art {n}"} for n, category in enumerate(CATEGORIES)}
    (folder / "meta_data.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def numbers_for_eyes(monkeypatch):
    """In Inception's place a net of four features that are easily had: the means of the channels, and a constant."""

    class Judge(fid.Judge):
        def __init__(self, params, method):
            self.method = method

        def features(self, files):
            for file in files:
                yield features(file, self.method)

    monkeypatch.setattr(fid, "FEATURES", 4)
    monkeypatch.setattr(fid, "Judge", Judge)
    monkeypatch.setattr(fid, "open_tensors", lambda file: inception_file())


def features(file, method):
    pixels = fid.METHODS[method](np.asarray(Image.open(file)))
    return np.append(pixels.mean(axis=(0, 1)), 1.0)[None]


def put_pictures(folder, count, seed=5, suffix=".jpg"):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).save(folder / f"{n}{suffix}")


def distance(files, others, method="clean"):
    """By the definition, with the root of a matrix that need not be symmetric."""
    first, second = (np.concatenate([features(file, method) for file in side]) for side in (files, others))
    roots = np.linalg.eigvals(np.cov(first.T) @ np.cov(second.T)).real.clip(0) ** 0.5
    spread = np.trace(np.cov(first.T)) + np.trace(np.cov(second.T)) - 2 * roots.sum()
    return np.sum((first.mean(0) - second.mean(0)) ** 2) + spread


def test_captions_are_drawn_and_their_pictures_are_small(captions, tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "_CAPTIONS", 6)
    pictures, answers = draw(coco.BENCHMARK, captions, tmp_path / "out")
    assert [picture.id for picture in pictures] == sorted({picture.id for picture in pictures})
    assert len(pictures) == 6 < 20
    number = int(pictures[0].id) - 100
    assert pictures[0].prompt == f"A cat on {number} mats."
    file = tmp_path / "out" / "predictions" / f"{number + 100:012}.png"
    assert answers[pictures[0].id] == str(file)
    assert Image.open(file).size == (256, 256)
    again = coco.BENCHMARK.read(captions, coco.BENCHMARK.settled({}))
    assert again == pictures


def test_pictures_may_keep_their_own_size(captions):
    assert coco.BENCHMARK.read(captions, coco.BENCHMARK.settled({"size": "own"}))[0].side is None


def test_midjourneys_prompts_lie_in_folders_of_categories(midjourney, tmp_path):
    out = tmp_path / "out"
    folder = predicted(mjhq.BENCHMARK, *draw(mjhq.BENCHMARK, midjourney, out), out)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png")) == [
        "animals/0000.png",
        "animals/0002.png",
        "art/0001.png",
    ]


def test_without_weights_there_is_no_figure(midjourney, tmp_path):
    pictures, answers = draw(mjhq.BENCHMARK, midjourney, tmp_path / "out")
    assert mjhq.BENCHMARK.score(pictures, answers, mjhq.BENCHMARK.settled({})) == {}


@pytest.mark.parametrize("method", ["clean", "pytorch"])
def test_fid_to_a_folder(midjourney, tmp_path, numbers_for_eyes, method):
    (midjourney / fid.INCEPTION).touch()
    put_pictures(midjourney / "reference" / "animals", 5)
    put_pictures(midjourney / "reference" / "art", 2, seed=6, suffix=".PNG")
    pictures, answers = draw(mjhq.BENCHMARK, midjourney, tmp_path / "out")
    found = mjhq.BENCHMARK.score(pictures, answers, {"fid": method})
    real = [file for file in (midjourney / "reference").rglob("*") if file.is_file()]
    assert len(real) == 7
    # Of art one picture was drawn, which is no distribution.
    animals = [[file for file in side if "animals" in str(file)] for side in (answers.values(), real)]
    assert found == {
        "fid": pytest.approx(distance(list(answers.values()), real, method), rel=1e-6),
        "fid/animals": pytest.approx(distance(*animals, method), rel=1e-6),
    }


def test_fid_to_stored_statistics(captions, tmp_path, numbers_for_eyes):
    (captions / fid.INCEPTION).touch()
    put_pictures(tmp_path / "real", 6)
    files = list((tmp_path / "real").iterdir())
    found = np.concatenate([features(file, "pytorch") for file in files])
    np.savez(captions / "reference_pytorch.npz", mu=found.mean(axis=0), sigma=np.cov(found.T))
    pictures, answers = draw(coco.BENCHMARK, captions, tmp_path / "out", options={"fid": "pytorch"})
    score = coco.BENCHMARK.score(pictures, answers, {"fid": "pytorch"})
    expected = distance(list(answers.values()), files, "pytorch")
    assert score == {"fid": pytest.approx(expected, rel=1e-6)}


def test_statistics_of_the_other_preparation_will_not_do(captions):
    (captions / fid.INCEPTION).touch()
    np.savez(captions / "reference_pytorch.npz", mu=0, sigma=0)
    with pytest.raises(JanusError, match=r"neither reference_clean.npz nor a folder reference; give one of them"):
        coco.BENCHMARK.read(captions, coco.BENCHMARK.settled({}))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"mu": np.zeros(2048)}, "sigma is missing"),
        ({"mu": np.zeros(64), "sigma": np.zeros((64, 64))}, r"mu is \[64\]; numbers of the shape \[2048\]"),
    ],
)
def test_statistics_of_another_network_are_told(tmp_path, arrays, told):
    np.savez(tmp_path / "reference_clean.npz", **arrays)
    with pytest.raises(JanusError, match=r"reference_clean.npz: " + told):
        fid.stored(tmp_path / "reference_clean.npz")


def test_a_picture_that_is_none_is_named(tmp_path):
    (tmp_path / "reference").mkdir()
    with pytest.raises(JanusError, match="reference holds no picture"):
        fid.pictures_in(tmp_path / "reference")
    (tmp_path / "reference" / "a.png").write_text("none")
    with pytest.raises(JanusError, match=r"a.png"):
        list(fid.Judge({}, "clean").features(fid.pictures_in(tmp_path / "reference")))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"prompt": "x"}, "entry a: the field category is missing"),
        ({"category": "art"}, "entry a: the field prompt is missing"),
        ({"category": "../..", "prompt": "x"}, "entry a: '../..' is part of a file's name"),
    ],
)
def test_malformed_prompts_are_told(tmp_path, entry, told):
    (tmp_path / "meta_data.json").write_text(json.dumps({"a": entry}))
    with pytest.raises(JanusError, match=r"meta_data.json, " + told):
        mjhq.BENCHMARK.read(tmp_path, mjhq.BENCHMARK.settled({}))


def test_malformed_captions_are_told(tmp_path):
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"annotations": [{"id": 1}]}))
    with pytest.raises(JanusError, match=r"captions_val2014.json: annotations, entry 1: the field caption is missing"):
        coco.BENCHMARK.read(tmp_path, coco.BENCHMARK.settled({}))


def test_what_needs_no_resizing_is_only_scaled():
    pixels = np.random.default_rng(0).integers(0, 256, (299, 299, 3), np.uint8)
    np.testing.assert_allclose(fid.clean(pixels), pixels / 128 - 1, rtol=1e-6)
    np.testing.assert_allclose(fid.pytorch(pixels), pixels / 127.5 - 1, atol=1e-6)


def test_features_are_inceptions_of_each_picture_in_order(tmp_path, monkeypatch):
    put_pictures(tmp_path / "real", 3, suffix=".png")
    monkeypatch.setattr(fid, "_BATCH", 2)
    params = inception_params(inception_file())
    files = fid.pictures_in(tmp_path / "real")
    found = np.concatenate(list(fid.Judge(params, "clean").features(files)))
    assert found.shape == (3, 2048)
    last = fid.clean(np.asarray(Image.open(files[2])))[None]
    expected = jax.jit(Inception().apply)({"params": params}, np.concatenate([last, last]))[0]
    np.testing.assert_allclose(found[2], expected, rtol=1e-4, atol=1e-6)
