"""Metrics of image tokenizers on the shapes dataset: are objects preserved, and does each code have one color?"""

from collections import Counter

import numpy as np
from jaxtyping import Float, Int, UInt8

from examples.shapes.dataset.detector import detect
from examples.shapes.dataset.render import PALETTE

_OBJECT_CHROMA = 0.3
"""Chroma, in [0, 1], above which a pixel belongs to an object."""

_MIN_COVER = 0.5
"""Fraction of object pixels above which a patch has a color."""

Images = UInt8[np.ndarray, "N S S 3"]


def reconstruction_metrics(
    images: Images, reconstructions: Images, ids: Int[np.ndarray, "N T"] | None
) -> dict[str, float]:
    """Returns all metrics by name. Without code ids (VAE), the metrics of codes are omitted."""
    scores = {"read_right": fraction_preserved(images, reconstructions)}
    if ids is not None:
        scores["colour_explained"] = explained_variance(patches_of(images, ids.shape[1]).mean(axis=1), ids)
        scores["colour_determined"] = color_determined(images, ids)
    return scores


def fraction_preserved(images: Images, reconstructions: Images) -> float:
    """Returns the fraction of reconstructions in which the detector finds the shapes and colors of the image."""
    return float(np.mean([_kinds(a) == _kinds(b) for a, b in zip(images, reconstructions, strict=True)]))


def _kinds(image: UInt8[np.ndarray, "S S 3"]) -> Counter[tuple[str, str]]:
    return Counter((found.shape, found.color) for found in detect(image))


def explained_variance(values: Float[np.ndarray, "M 3"], ids: Int[np.ndarray, "N T"]) -> float:
    """Returns the fraction of the variance of patch colors that lies between codes, not among patches of one code."""
    flat = ids.reshape(-1)
    counts = np.maximum(np.bincount(flat), 1)[:, None]
    means = np.stack([np.bincount(flat, values[:, c]) for c in range(3)], axis=1) / counts
    total = np.square(values - values.mean(axis=0)).sum()
    return float(1 - np.square(values - means[flat]).sum() / total) if total else 1.0


def color_determined(images: Images, ids: Int[np.ndarray, "N T"]) -> float:
    """Returns the fraction of object patches whose color is the most frequent one of their code.

    The value is 1 if codes determine colors. With a low value, generated images show the right shapes in random colors.
    """
    patches = patches_of(images, ids.shape[1])
    chroma = patches.max(axis=-1) - patches.min(axis=-1)
    on_object = chroma > _OBJECT_CHROMA
    chosen = on_object.mean(axis=1) >= _MIN_COVER
    if not chosen.any():
        return 1.0
    pixels = np.where(on_object[..., None], patches, np.nan)[chosen]
    colors = np.argmin(_palette_distance(np.nanmean(pixels, axis=1)), axis=1)
    table = np.zeros((int(ids.max()) + 1, len(PALETTE)), np.int64)
    np.add.at(table, (ids.reshape(-1)[chosen], colors), 1)
    return float(table.max(axis=1).sum() / table.sum())


def _palette_distance(colors: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M P"]:
    """Returns the distance of each color to each palette color, independent of brightness and saturation."""

    def hue(x: Float[np.ndarray, "K 3"]) -> Float[np.ndarray, "K 3"]:
        low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        return (x - low) / np.maximum(high - low, 1e-6)

    palette = np.array(list(PALETTE.values()), np.float64) / 255
    return np.square(hue(colors)[:, None] - hue(palette)[None]).sum(axis=-1)


def patches_of(images: Images, per_image: int) -> Float[np.ndarray, "M P 3"]:
    """Returns the pixels of each patch, in [0, 1], in the order of the code ids."""
    count, size = images.shape[:2]
    grid = int(per_image**0.5)
    side = size // grid
    squares = images.reshape(count, grid, side, grid, side, 3).swapaxes(2, 3)
    return squares.reshape(count * per_image, side * side, 3).astype(np.float64) / 255
