"""FID beside the two packages that figures are usually of, with the same random Inception."""

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
    pytest.skip("setup.py's extra fid is not there", allow_module_level=True)
# A torchvision that was built for another torch has no kernels of its own, and importing it fails unless they have at
# least their names. Neither package runs them.
if torch.__version__.partition("+")[2] != BUILT_FOR:
    kernels = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        kernels.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from cleanfid import fid as cleanfid  # noqa: E402
from pytorch_fid import fid_score as scores  # noqa: E402
from pytorch_fid import inception as theirs  # noqa: E402

COUNT = 200
BATCH = 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two of them, of pictures of one size, since pytorch-fid takes no others: smaller and larger than 299."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("drawn", (256, 256)), ("real", (384, 320))):
        (folder / name).mkdir()
        for n in range(COUNT // 2):
            small = rng.integers(0, 256, (9, 9, 3), np.uint8)
            noise = rng.integers(0, 40, (size[1], size[0], 3), np.uint8)
            pixels = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)) // 2 + noise
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{n:02}.png")
    return folder / "drawn", folder / "real"


@pytest.fixture(scope="module")
def network():
    """pytorch-fid's, with random weights."""
    tensors = {name: torch.from_numpy(array) for name, array in inception_file().items()}
    with pytest.MonkeyPatch.context() as patch:
        filled = tensors | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: filled)
        return theirs.InceptionV3([3]).eval()


def ours(folders, method, monkeypatch):
    # Nothing is looked at in vain to fill a batch.
    monkeypatch.setattr(fid, "_BATCH", BATCH)
    judge = fid.Judge(inception_params(inception_file()), method)
    return [np.concatenate(list(judge.features(fid.pictures_in(folder)))) for folder in folders]


def ours_fid(features):
    sides = []
    for side in features:
        sides.append(FeatureStatistics(side.shape[1]))
        sides[-1].add(side)
    return frechet_distance(*sides)


def test_pytorch_fid(folders, network, monkeypatch):
    found = ours(folders, "pytorch", monkeypatch)
    expected = [
        scores.get_activations(sorted(folder.iterdir()), network, BATCH, 2048, "cpu", num_workers=0)
        for folder in folders
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    moments = [f(side) for side in expected for f in (lambda x: x.mean(axis=0), lambda x: np.cov(x, rowvar=False))]
    assert ours_fid(found) == pytest.approx(scores.calculate_frechet_distance(*moments), rel=1e-3)


def test_clean_fid(folders, network, monkeypatch):
    def eyes(pixels):
        # As clean-fid calls its own network: 0 to 255, resized already.
        assert pixels.shape[2:] == (299, 299)
        plain = theirs.InceptionV3.forward
        network.resize_input, network.normalize_input = False, False
        with torch.inference_mode():
            return plain(network, (pixels - 128) / 128)[0][..., 0, 0]

    found = ours(folders, "clean", monkeypatch)
    expected = [
        cleanfid.get_folder_features(
            str(folder), eyes, num_workers=0, batch_size=BATCH, device=torch.device("cpu"), mode="clean", verbose=False
        )
        for folder in folders
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    assert ours_fid(found) == pytest.approx(cleanfid.fid_from_feats(*expected), rel=1e-3)
