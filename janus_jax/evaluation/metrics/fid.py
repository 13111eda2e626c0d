"""FID of generated images (arXiv 1706.08500), with the preprocessing of clean-fid or of pytorch-fid.

Both packages use the Inception-v3 network of 2015-12-05. This module reads its weights from pytorch-fid's file;
clean-fid downloads another conversion of the same weights. The packages differ in how they resize and scale images:

- `clean` (clean-fid, arXiv 2104.11222): bicubic with antialiasing in floating point, as in PIL; 128 maps to 0.
- `pytorch` (pytorch-fid): bilinear without antialiasing, as in torch; 127.5 maps to 0.

Statistics with different preprocessing cannot be compared.

Some benchmarks first reduce all images, generated and reference, to squares of one size (`center_square`).
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

from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.frechet import FEATURE_DIM, INPUT_SIZE, FeatureStatistics, Gaussian, frechet_distance
from janus_jax.files import prefix_errors, reading

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
REFERENCE = "reference"

SOURCE = "https://github.com/mseitzer/pytorch-fid/releases (fid_weights)"

_BATCH_SIZE = 32
_READERS = min(8, os.cpu_count() or 1)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Preprocess = Callable[[UInt8[np.ndarray, "H W 3"]], Float[np.ndarray, "299 299 3"]]


def preprocess_clean(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "299 299 3"]:
    """Resizes and scales an image as clean-fid does."""
    size = (INPUT_SIZE, INPUT_SIZE)
    channels = [
        Image.fromarray(np.ascontiguousarray(pixels[..., channel], np.float32)).resize(size, Image.Resampling.BICUBIC)
        for channel in range(3)
    ]
    resized = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)
    return (resized - np.float32(128)) / np.float32(128)


def preprocess_pytorch(pixels: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "299 299 3"]:
    """Resizes and scales an image as pytorch-fid does."""
    x = pixels.astype(np.float32) / np.float32(255)
    for axis in (0, 1):
        size = x.shape[axis]
        centers = ((np.arange(INPUT_SIZE) + 0.5) * size / INPUT_SIZE - 0.5).clip(0)
        below = np.minimum(centers.astype(int), size - 1)
        weight = (centers - below).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        above = np.minimum(below + 1, size - 1)
        x = np.take(x, below, axis) * (1 - weight) + np.take(x, above, axis) * weight
    return 2 * x - 1


def center_square(image: Image.Image, size: int) -> Image.Image:
    """Crops the central square of an image and resizes it, as GigaGAN's evaluation script does before clean-fid."""
    side = min(image.size)
    # As in torchvision, halves are rounded to the even number.
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


METHODS: Mapping[str, Preprocess] = {"clean": preprocess_clean, "pytorch": preprocess_pytorch}
"""Preprocessing functions by name. The first is the default of every benchmark."""


class InceptionExtractor:
    """Computes Inception features of image files.

    Args:
      params: Parameters of `inception.Inception`.
      method: Name of the preprocessing, a key of `METHODS`.
      size: Size of the squares to which all images are first reduced (`center_square`); None for whole images.
    """

    def __init__(self, params: Mapping[str, Any], method: str, size: int | None = None) -> None:
        import jax

        from janus_jax.evaluation.metrics.inception import Inception

        self._read = functools.partial(read_image, preprocess=METHODS[method], size=size)
        self._params = jax.device_put(params)
        self._apply = jax.jit(Inception().apply)

    def features(self, files: Sequence[Path]) -> Iterator[Float[np.ndarray, "B 2048"]]:
        """Yields the features of the images in the order of the files, one batch at a time.

        Raises:
          JanusError: A file is not an image.
        """
        with ThreadPoolExecutor(_READERS) as readers:
            remaining = iter(files)

            def submit() -> list[Future[Float[np.ndarray, "299 299 3"]]]:
                return [readers.submit(self._read, file) for file in islice(remaining, _BATCH_SIZE)]

            pending = submit()
            while pending:
                pixels, pending = [future.result() for future in pending], submit()
                batch = np.stack([*pixels, *[pixels[-1]] * (_BATCH_SIZE - len(pixels))])
                yield np.asarray(self._apply({"params": self._params}, batch))[: len(pixels)]

    def statistics(self, files: Sequence[Path]) -> dict[str, FeatureStatistics]:
        """Returns feature statistics by the name of the folder that contains the images."""
        statistics: dict[str, FeatureStatistics] = {}
        folders = iter([file.parent.name for file in files])
        for batch in self.features(files):
            names = np.array(list(islice(folders, len(batch))))
            for name in np.unique(names).tolist():
                statistics.setdefault(name, FeatureStatistics(FEATURE_DIM)).add(batch[names == name])
        return statistics


def layout(size: int | None = None) -> str:
    """Describes the files that `compute_fid` needs, as part of `Benchmark.layout`."""
    names = " or ".join(f"{_statistics_name(method, size)}.npz" for method in METHODS)
    return f"for FID, optional:\n{INCEPTION}\n{names} (mu, sigma), or {REFERENCE}/**/*.png (.jpg ...)"


def compute_fid(data: Path, files: Sequence[Path], method: str, size: int | None = None) -> dict[str, float]:
    """Computes the FID between images and the references in a benchmark's data folder.

    Args:
      data: Data folder of the benchmark, with the files of `layout`.
      files: The generated images.
      method: Name of the preprocessing, a key of `METHODS`.
      size: Size of the squares to which all images are first reduced (`center_square`); None for whole images.

    Returns:
      `fid` of all images, and `fid/NAME` for each folder NAME with at least two generated images and two references.
      Empty if the data folder contains no Inception weights.

    Raises:
      JanusError: A weight file, reference or image is missing or malformed.
    """
    from janus_jax.evaluation.metrics.inception import inception_params

    reference = check_reference(data, method, size)
    if reference is None:
        return {}
    tensors = open_tensors(data / INCEPTION)
    with prefix_errors(data / INCEPTION):
        extractor = InceptionExtractor(inception_params(tensors), method, size)
    # References are read first, so that their errors are reported early.
    if reference.suffix == ".npz":
        stored = read_statistics(reference)
        return {"fid": frechet_distance(stored, _total(extractor.statistics(files)))}
    real = extractor.statistics(list_images(reference))
    generated = extractor.statistics(files)
    common = [name for name in sorted(generated) if name in real and min(generated[name].count, real[name].count) > 1]
    by_folder = {f"fid/{name}": frechet_distance(real[name].gaussian(), generated[name].gaussian()) for name in common}
    return {"fid": frechet_distance(_total(real), _total(generated))} | by_folder


def check_reference(data: Path, method: str, size: int | None = None) -> Path | None:
    """Checks the files of FID in a benchmark's data folder.

    Benchmarks call this function before they generate images, so that errors are reported early.

    Returns:
      The path of the reference statistics or images, or None if the folder contains no Inception weights.

    Raises:
      JanusError: The folder contains Inception weights but no reference, or one of them is damaged.
    """
    if not (data / INCEPTION).exists():
        return None
    statistics, images = data / f"{_statistics_name(method, size)}.npz", data / REFERENCE
    if not statistics.exists() and not images.exists():
        raise JanusError(
            f"{data} contains {INCEPTION}, but neither {statistics.name} nor a folder {REFERENCE}; "
            f"add one of them, or remove the weights to skip FID."
        )
    open_tensors(data / INCEPTION)
    if statistics.exists():
        read_statistics(statistics)
        return statistics
    list_images(images)
    return images


def _statistics_name(method: str, size: int | None) -> str:
    # With the size in the name, statistics of whole images are not mistaken for those of squares.
    return f"{REFERENCE}_{method}" + (f"_{size}" if size else "")


def read_statistics(file: Path) -> Gaussian:
    """Reads feature statistics from an .npz file of pytorch-fid or clean-fid.

    Raises:
      JanusError: The file is damaged or belongs to another network.
    """
    with reading(file), np.load(file, allow_pickle=False) as content:
        arrays = {name: np.asarray(content[name], np.float64) for name in ("mu", "sigma") if name in content}
    for name, shape in {"mu": (FEATURE_DIM,), "sigma": (FEATURE_DIM, FEATURE_DIM)}.items():
        if name not in arrays or arrays[name].shape != shape:
            found = f"has shape {list(arrays[name].shape)}" if name in arrays else "is missing"
            raise JanusError(f"{file}: {name} {found}; expected an array of shape {list(shape)}.")
    return Gaussian(arrays["mu"], arrays["sigma"])


def list_images(folder: Path) -> list[Path]:
    """Returns the sorted paths of all images in a folder and its subfolders.

    Raises:
      JanusError: The folder contains no images.
    """
    with reading(folder):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise JanusError(f"{folder} contains no images; expected the reference images of FID.")
    return files


def _total(folders: Mapping[str, FeatureStatistics]) -> Gaussian:
    return functools.reduce(operator.add, folders.values()).gaussian()


def read_image(file: Path, preprocess: Preprocess, size: int | None) -> Float[np.ndarray, "299 299 3"]:
    """Reads an image file, optionally reduces it to a square (`center_square`), and preprocesses it."""
    with reading(file), Image.open(file) as image:
        rgb = image.convert("RGB")
    return preprocess(np.asarray(center_square(rgb, size) if size else rgb))
