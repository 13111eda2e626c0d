"""Tests of COCO-30K, MJHQ-30K and FID. tests/parity compares FID with clean-fid and pytorch-fid."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation import coco, mjhq
from janus_jax.evaluation.metrics import fid
from janus_jax.evaluation.metrics.inception import Inception, inception_params
from tests.evaluation.generation.fakes import run_benchmark, write_predictions
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
def simple_features(monkeypatch):
    """Replaces Inception's features with four numbers: the means of the channels and a constant."""

    class Extractor(fid.InceptionExtractor):
        def __init__(self, params, method, size=None):
            self.method, self.size = method, size

        def features(self, files):
            for file in files:
                yield features(fid.read_image(file, fid.METHODS[self.method], self.size))

    monkeypatch.setattr(fid, "FEATURE_DIM", 4)
    monkeypatch.setattr(fid, "InceptionExtractor", Extractor)
    monkeypatch.setattr(fid, "open_tensors", lambda file: inception_file())


def features(pixels):
    return np.append(pixels.mean(axis=(0, 1)), 1.0)[None]


def whole_image_features(files, method):
    return np.concatenate([features(fid.METHODS[method](np.asarray(Image.open(file)))) for file in files])


def write_images(folder, count, seed=5, suffix=".jpg"):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8)).save(folder / f"{n}{suffix}")


def distance(first, second):
    """Computes FID from features by its definition, with the eigenvalues of the product of the covariances."""
    roots = np.linalg.eigvals(np.cov(first.T) @ np.cov(second.T)).real.clip(0) ** 0.5
    spread = np.trace(np.cov(first.T)) + np.trace(np.cov(second.T)) - 2 * roots.sum()
    return np.sum((first.mean(0) - second.mean(0)) ** 2) + spread


def test_random_captions_get_small_images(captions, tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "_CAPTIONS", 6)
    requests, answers = run_benchmark(coco.BENCHMARK, captions, tmp_path / "out")
    assert [request.id for request in requests] == sorted({request.id for request in requests})
    assert len(requests) == 6 < 20
    number = int(requests[0].id) - 100
    assert requests[0].prompt == f"A cat on {number} mats."
    file = tmp_path / "out" / "predictions" / f"{number + 100:012}.png"
    assert answers[requests[0].id] == str(file)
    assert Image.open(file).size == (256, 256)
    again = coco.BENCHMARK.read(captions, coco.BENCHMARK.resolve_options({}))
    assert again == requests


def test_the_size_option_keeps_the_models_size(captions):
    assert coco.BENCHMARK.read(captions, coco.BENCHMARK.resolve_options({"size": "model"}))[0].size is None


def test_mjhq_images_are_in_folders_by_category(midjourney, tmp_path):
    out = tmp_path / "out"
    folder = write_predictions(mjhq.BENCHMARK, *run_benchmark(mjhq.BENCHMARK, midjourney, out), out)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png")) == [
        "animals/0000.png",
        "animals/0002.png",
        "art/0001.png",
    ]


def test_there_is_no_fid_without_weights(midjourney, tmp_path):
    requests, answers = run_benchmark(mjhq.BENCHMARK, midjourney, tmp_path / "out")
    assert mjhq.BENCHMARK.score(requests, answers, mjhq.BENCHMARK.resolve_options({})) == {}


@pytest.mark.parametrize("method", ["clean", "pytorch"])
def test_fid_to_a_folder(midjourney, tmp_path, simple_features, method):
    (midjourney / fid.INCEPTION).touch()
    write_images(midjourney / "reference" / "animals", 5)
    write_images(midjourney / "reference" / "art", 2, seed=6, suffix=".PNG")
    requests, answers = run_benchmark(mjhq.BENCHMARK, midjourney, tmp_path / "out")
    found = mjhq.BENCHMARK.score(requests, answers, {"fid": method})
    real = [file for file in (midjourney / "reference").rglob("*") if file.is_file()]
    assert len(real) == 7
    # Only one art image was generated, which has no covariance.
    animals = [[file for file in side if "animals" in str(file)] for side in (answers.values(), real)]
    assert found == {
        "fid": pytest.approx(distance(*(whole_image_features(side, method) for side in (answers.values(), real)))),
        "fid/animals": pytest.approx(distance(*(whole_image_features(side, method) for side in animals))),
    }


def test_coco_compares_center_squares_of_256_pixels(captions, tmp_path, simple_features):
    (captions / fid.INCEPTION).touch()
    (captions / "reference").mkdir()
    rng = np.random.default_rng(7)
    squares = []
    for n in range(4):
        square = rng.integers(0, 256, (300, 300, 3), np.uint8)
        # The white borders outside the square must not count.
        photograph = np.full((300, 300 + 2 * n, 3), 255, np.uint8)
        photograph[:, n : 300 + n] = square
        Image.fromarray(photograph).save(captions / "reference" / f"{n}.png")
        squares.append(np.asarray(Image.fromarray(square).resize((256, 256), Image.Resampling.LANCZOS)))
    requests, answers = run_benchmark(coco.BENCHMARK, captions, tmp_path / "out")
    found = coco.BENCHMARK.score(requests, answers, {"fid": "clean"})
    real = np.concatenate([features(fid.preprocess_clean(square)) for square in squares])
    assert found == {"fid": pytest.approx(distance(whole_image_features(answers.values(), "clean"), real))}


@pytest.mark.parametrize(("size", "columns"), [((640, 427), (106, 533)), ((640, 425), (108, 533))])
def test_the_center_square_rounds_as_torchvision(size, columns):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, columns[0] : columns[1]] = 200
    image = Image.fromarray(pixels)
    for rotated in (image, image.transpose(Image.Transpose.TRANSPOSE)):
        assert np.all(np.asarray(fid.center_square(rotated, 256)) == np.full((256, 256, 3), 200))


def test_fid_to_stored_statistics(captions, tmp_path, simple_features):
    (captions / fid.INCEPTION).touch()
    write_images(tmp_path / "real", 6)
    found = whole_image_features((tmp_path / "real").iterdir(), "pytorch")
    np.savez(captions / "reference_pytorch_256.npz", mu=found.mean(axis=0), sigma=np.cov(found.T))
    requests, answers = run_benchmark(coco.BENCHMARK, captions, tmp_path / "out", options={"fid": "pytorch"})
    score = coco.BENCHMARK.score(requests, answers, {"fid": "pytorch"})
    assert score == {"fid": pytest.approx(distance(whole_image_features(answers.values(), "pytorch"), found))}


@pytest.mark.parametrize("name", ["reference_pytorch_256.npz", "reference_clean.npz"])
def test_statistics_of_another_procedure_are_rejected(captions, name):
    (captions / fid.INCEPTION).touch()
    np.savez(captions / name, mu=0, sigma=0)
    with pytest.raises(JanusError, match=r"neither reference_clean_256.npz nor a folder reference; add one of them"):
        coco.BENCHMARK.read(captions, coco.BENCHMARK.resolve_options({}))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({fid.INCEPTION: b"", "reference/0.png": b""}, "pth is empty"),
        ({fid.INCEPTION: b"", "reference/0.txt": b""}, "reference contains no images"),
        ({fid.INCEPTION: b"", "reference_clean.npz": b"PK"}, r"reference_clean.npz is damaged"),
        ({"clip/config.json": b"{}"}, r"model.safetensors does not exist"),
    ],
)
def test_files_of_the_metrics_are_checked_before_generation(midjourney, monkeypatch, files, message):
    if "empty" not in message and fid.INCEPTION in files:
        monkeypatch.setattr(fid, "open_tensors", lambda file: {})
    for name, content in files.items():
        (midjourney / name).parent.mkdir(exist_ok=True)
        (midjourney / name).write_bytes(content)
    with pytest.raises(JanusError, match=message):
        mjhq.BENCHMARK.read(midjourney, mjhq.BENCHMARK.resolve_options({}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2048)}, "sigma is missing"),
        (
            {"mu": np.zeros(64), "sigma": np.zeros((64, 64))},
            r"mu has shape \[64\]; expected .* \[2048\]",
        ),
    ],
)
def test_statistics_of_another_network_are_rejected(tmp_path, arrays, message):
    np.savez(tmp_path / "reference_clean.npz", **arrays)
    with pytest.raises(JanusError, match=r"reference_clean.npz: " + message):
        fid.read_statistics(tmp_path / "reference_clean.npz")


def test_a_reference_folder_without_valid_images_is_reported(tmp_path):
    (tmp_path / "reference").mkdir()
    with pytest.raises(JanusError, match="reference contains no images"):
        fid.list_images(tmp_path / "reference")
    (tmp_path / "reference" / "a.png").write_text("not an image")
    with pytest.raises(JanusError, match=r"a.png"):
        list(fid.InceptionExtractor({}, "clean").features(fid.list_images(tmp_path / "reference")))


def test_images_of_the_input_size_are_only_scaled():
    pixels = np.random.default_rng(0).integers(0, 256, (299, 299, 3), np.uint8)
    np.testing.assert_allclose(fid.preprocess_clean(pixels), pixels / 128 - 1, rtol=1e-6)
    np.testing.assert_allclose(fid.preprocess_pytorch(pixels), pixels / 127.5 - 1, atol=1e-6)


@pytest.mark.slow
def test_features_are_in_the_order_of_the_files(tmp_path, monkeypatch):
    write_images(tmp_path / "real", 3, suffix=".png")
    monkeypatch.setattr(fid, "_BATCH_SIZE", 2)
    params = inception_params(inception_file())
    files = fid.list_images(tmp_path / "real")
    found = np.concatenate(list(fid.InceptionExtractor(params, "clean").features(files)))
    assert found.shape == (3, 2048)
    last = fid.preprocess_clean(np.asarray(Image.open(files[2])))[None]
    expected = jax.jit(Inception().apply)({"params": params}, np.concatenate([last, last]))[0]
    np.testing.assert_allclose(found[2], expected, rtol=1e-4, atol=1e-6)
