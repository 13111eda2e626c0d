"""Compares FID with pytorch-fid and clean-fid, for the same random Inception weights."""

from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
from PIL import Image

from janus_jax.evaluation.metrics import fid
from janus_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from janus_jax.evaluation.metrics.inception import inception_params
from tests.training.image_tokenizer.network_files import inception_file

torch = pytest.importorskip("torch")
try:
    BUILT_FOR = version("torchvision").partition("+")[2]
except PackageNotFoundError:
    pytest.skip("the extra fid is not installed", allow_module_level=True)
# A torchvision that was built for another version of torch lacks its kernels. Importing it needs only their
# declarations, and neither package runs them.
if torch.__version__.partition("+")[2] != BUILT_FOR:
    kernels = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        kernels.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from cleanfid import fid as cleanfid  # noqa: E402
from pytorch_fid import fid_score as pytorch_fid  # noqa: E402
from pytorch_fid import inception as pytorch_inception  # noqa: E402

COUNT = 200
BATCH = 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders: images smaller and larger than 299 pixels. pytorch-fid needs one size per folder."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, size in (("generated", (256, 256)), ("real", (384, 320))):
        (folder / name).mkdir()
        for n in range(COUNT // 2):
            small = rng.integers(0, 256, (9, 9, 3), np.uint8)
            noise = rng.integers(0, 40, (size[1], size[0], 3), np.uint8)
            pixels = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)) // 2 + noise
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{n:02}.png")
    return folder / "generated", folder / "real"


@pytest.fixture(scope="module")
def network():
    """The network of pytorch-fid with random weights."""
    tensors = {name: torch.from_numpy(array) for name, array in inception_file().items()}
    with pytest.MonkeyPatch.context() as patch:
        filled = tensors | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        patch.setattr(pytorch_inception, "load_state_dict_from_url", lambda *_, **__: filled)
        return pytorch_inception.InceptionV3([3]).eval()


def extract(folders, method, monkeypatch, size=None):
    # This batch size divides the number of images, so no batch is padded.
    monkeypatch.setattr(fid, "_BATCH_SIZE", BATCH)
    extractor = fid.InceptionExtractor(inception_params(inception_file()), method, size)
    return [np.concatenate(list(extractor.features(fid.list_images(folder)))) for folder in folders]


def compute_fid(features):
    sides = [FeatureStatistics(side.shape[1]) for side in features]
    for statistics, side in zip(sides, features, strict=True):
        statistics.add(side)
    return frechet_distance(*(statistics.gaussian() for statistics in sides))


def test_fid_matches_pytorch_fid(folders, network, monkeypatch):
    found = extract(folders, "pytorch", monkeypatch)
    expected = [
        pytorch_fid.get_activations(sorted(folder.iterdir()), network, BATCH, 2048, "cpu", num_workers=0)
        for folder in folders
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    moments = [f(side) for side in expected for f in (lambda x: x.mean(axis=0), lambda x: np.cov(x, rowvar=False))]
    assert compute_fid(found) == pytest.approx(pytorch_fid.calculate_frechet_distance(*moments), rel=1e-3)


def lanczos_square(pixels):
    side = min(pixels.shape[:2])
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(("size", "transform"), [(None, None), (256, lanczos_square)])
def test_fid_matches_clean_fid(folders, network, monkeypatch, size, transform):
    def network_of_clean_fid(pixels):
        # clean-fid passes resized pixels from 0 to 255.
        assert pixels.shape[2:] == (299, 299)
        network.resize_input, network.normalize_input = False, False
        with torch.inference_mode():
            return network((pixels - 128) / 128)[0][..., 0, 0]

    found = extract(folders, "clean", monkeypatch, size)
    expected = [
        cleanfid.get_folder_features(
            str(folder),
            network_of_clean_fid,
            num_workers=0,
            batch_size=BATCH,
            device=torch.device("cpu"),
            mode="clean",
            verbose=False,
            custom_image_tranform=transform,
        )
        for folder in folders
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    assert compute_fid(found) == pytest.approx(cleanfid.fid_from_feats(*expected), rel=1e-3)
