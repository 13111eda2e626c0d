"""FID of folders of pictures (arXiv 1706.08500), as its two usual implementations prepare them.

Both look through the Inception-v3 of 2015-12-05 that the first implementation took. Its weights are read from
pytorch-fid's file; what clean-fid fetches, NVIDIA's TorchScript, is another conversion of it. They differ before it:

- `clean` (clean-fid, arXiv 2104.11222): bicubic with antialiasing in float, as PIL does it; 128 stands for 0.
- `pytorch` (pytorch-fid): bilinear without antialiasing, as torch does it; 127.5 stands for 0.

Statistics made with one are of no use with the other.
"""

import functools
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from checkpoints_convert.readers import open_tensors
from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.frechet import FEATURES, SIDE, FeatureStatistics, Gaussian, frechet_distance
from janus_jax.files import naming, reading

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
REFERENCE = "reference"

_BATCH = 32
_READERS = min(8, os.cpu_count() or 1)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Prepare = Callable[[UInt8[np.ndarray, "H W 3"]], Float[np.ndarray, "299 299 3"]]


def clean(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "299 299 3"]:
    """A picture as clean-fid shows it to the network."""
    channels = [
        Image.fromarray(np.ascontiguousarray(pixels[..., channel], np.float32)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    resized = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)
    return (resized - np.float32(128)) / np.float32(128)


def pytorch(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "299 299 3"]:
    """A picture as pytorch-fid shows it to the network."""
    x = pixels.astype(np.float32) / np.float32(255)
    for axis in (0, 1):
        below, above, share = _neighbours(x.shape[axis])
        share = share.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = np.take(x, below, axis) * (1 - share) + np.take(x, above, axis) * share
    return 2 * x - 1


def _neighbours(size: int) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, " 299"]]:
    """Which two places of a line a place of the network's line lies between, and the share of the second."""
    places = ((np.arange(SIDE) + 0.5) * size / SIDE - 0.5).clip(0)
    below = np.minimum(places.astype(int), size - 1)
    return below, np.minimum(below + 1, size - 1), (places - below).astype(np.float32)


METHODS: Mapping[str, Prepare] = {"clean": clean, "pytorch": pytorch}
"""How pictures are prepared, by the name of the implementation. The default of every benchmark is the first."""

LAYOUT = f"""and for FID, which is left out without them:
{INCEPTION}
{REFERENCE}_clean.npz or {REFERENCE}_pytorch.npz (mu, sigma), or {REFERENCE}/**/*.png (.jpg ...)"""
SOURCE = "https://github.com/mseitzer/pytorch-fid/releases (fid_weights)"


def check_judge(data: Path, method: str) -> None:
    """Checks, before anything is drawn, that there is a reference where there are weights.

    Raises:
      JanusError: there is none.
    """
    if (data / INCEPTION).exists() and _reference(data, method) is None:
        raise JanusError(
            f"{data} holds {INCEPTION}, but neither {REFERENCE}_{method}.npz nor a folder {REFERENCE}; "
            f"give one of them, or remove the weights to leave FID out."
        )


def _reference(data: Path, method: str) -> Path | None:
    paths = (data / f"{REFERENCE}_{method}.npz", data / REFERENCE)
    return next((path for path in paths if path.exists()), None)


class Judge:
    """Inception, on its device.

    Args:
      params: of `models.inception.Inception`.
      method: how pictures are prepared, of `METHODS`.
    """

    def __init__(self, params: Mapping[str, Any], method: str) -> None:
        import jax

        from janus_jax.evaluation.metrics.inception import Inception

        self._prepare = METHODS[method]
        self._params = jax.device_put(params)
        self._apply = jax.jit(Inception().apply)

    def features(self, files: Sequence[Path]) -> Iterator[Float[np.ndarray, "B 2048"]]:
        """Of all pictures, in order, a batch at a time.

        Raises:
          JanusError: one is none.
        """
        with ThreadPoolExecutor(_READERS) as readers:
            left = iter(files)

            def fill() -> list[Future[Float[np.ndarray, "299 299 3"]]]:
                return [readers.submit(_prepared, file, self._prepare) for file in islice(left, _BATCH)]

            pending = fill()
            while pending:
                pixels, pending = [future.result() for future in pending], fill()
                batch = np.stack([*pixels, *[pixels[-1]] * (_BATCH - len(pixels))])
                yield np.asarray(self._apply({"params": self._params}, batch))[: len(pixels)]

    def statistics(self, files: Sequence[Path]) -> dict[str, FeatureStatistics]:
        """Of the pictures of each folder, by its name."""
        found: dict[str, FeatureStatistics] = {}
        folders = iter([file.parent.name for file in files])
        for batch in self.features(files):
            names = np.array(list(islice(folders, len(batch))))
            for name in np.unique(names).tolist():
                found.setdefault(name, FeatureStatistics(FEATURES)).add(batch[names == name])
        return found


def distances(data: Path, files: Sequence[Path], method: str) -> dict[str, float]:
    """FIDs of pictures to those of a benchmark's folder; nothing where that has no weights.

    Returns:
      `fid` of all; and `fid/NAME` of the two pictures or more in a folder NAME that both sides have.

    Raises:
      JanusError: what is there is not what it should be.
    """
    from janus_jax.evaluation.metrics.inception import inception_params

    if not (data / INCEPTION).exists():
        return {}
    check_judge(data, method)
    tensors = open_tensors(data / INCEPTION)
    with naming(data / INCEPTION):
        judge = Judge(inception_params(tensors), method)
    reference = _reference(data, method)
    assert reference is not None
    # What the drawn ones are held against is read first: if it will not do, nothing is looked at in vain.
    if reference.suffix == ".npz":
        real = stored(reference)
        return {"fid": frechet_distance(real, _together(judge.statistics(files)))}
    folders = judge.statistics(pictures_in(reference))
    drawn = judge.statistics(files)
    shared = [name for name in sorted(drawn) if name in folders and min(drawn[name].count, folders[name].count) > 1]
    parts = {f"fid/{name}": frechet_distance(folders[name], drawn[name]) for name in shared}
    return {"fid": frechet_distance(_together(folders), _together(drawn))} | parts


def _together(folders: Mapping[str, FeatureStatistics]) -> FeatureStatistics:
    return functools.reduce(operator.add, folders.values())


def stored(file: Path) -> Gaussian:
    """The statistics in an .npz file, as pytorch-fid and clean-fid write them.

    Raises:
      JanusError: it is damaged, or of another network.
    """
    with reading(file), np.load(file, allow_pickle=False) as arrays:
        found = {name: np.asarray(arrays[name], np.float64) for name in ("mu", "sigma") if name in arrays}
    shapes = {"mu": (FEATURES,), "sigma": (FEATURES, FEATURES)}
    for name, shape in shapes.items():
        if name not in found or found[name].shape != shape:
            is_there = f"is {list(found[name].shape)}" if name in found else "is missing"
            raise JanusError(f"{file}: {name} {is_there}; numbers of the shape {list(shape)} are expected.")
    return Gaussian(found["mu"], found["sigma"])


def pictures_in(folder: Path) -> list[Path]:
    """All pictures of a folder and those within.

    Raises:
      JanusError: there is none.
    """
    with reading(folder):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise JanusError(f"{folder} holds no picture; it should hold those that FID is measured against.")
    return files


def _prepared(file: Path, prepare: Prepare) -> Float[np.ndarray, "299 299 3"]:
    with reading(file), Image.open(file) as image:
        return prepare(np.asarray(image.convert("RGB")))
