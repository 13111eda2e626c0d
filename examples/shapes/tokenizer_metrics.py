"""What a tokenizer keeps of the shapes world, and how easy its codes are to predict."""

from collections import Counter

import numpy as np
from jaxtyping import Float, Int, UInt8

from examples.shapes.dataset.detector import detect
from examples.shapes.dataset.render import PALETTE

_COLOURED = 0.3
"""Chroma, of 1, above which a pixel is of a thing."""

_COVER = 0.5
"""Share of a patch's pixels that a thing covers where the patch has a colour."""

Images = UInt8[np.ndarray, "N S S 3"]


def read_right(images: Images, reconstructions: Images) -> float:
    """The share of reconstructions in which the detector finds the shapes and colours it finds in the images."""
    return float(np.mean([_things(a) == _things(b) for a, b in zip(images, reconstructions, strict=True)]))


def _things(image: UInt8[np.ndarray, "S S 3"]) -> Counter[tuple[str, str]]:
    return Counter((found.shape, found.colour) for found in detect(image))


def colour_determined(images: Images, ids: Int[np.ndarray, "N T"]) -> float:
    """How often the colour of a patch of a thing is the commonest among the patches with the same code.

    1 where a code says which colour it is; where it does not, what is drawn from codes has the right shapes in random
    colours.
    """
    patches = patches_of(images, ids.shape[1])
    chroma = patches.max(axis=-1) - patches.min(axis=-1)
    on_thing = chroma > _COLOURED
    chosen = on_thing.mean(axis=1) >= _COVER
    if not chosen.any():
        return 1.0
    pixels = np.where(on_thing[..., None], patches, np.nan)[chosen]
    colours = np.argmin(_distance(np.nanmean(pixels, axis=1)), axis=1)
    table = np.zeros((int(ids.max()) + 1, len(PALETTE)), np.int64)
    np.add.at(table, (ids.reshape(-1)[chosen], colours), 1)
    return float(table.max(axis=1).sum() / table.sum())


def _distance(colours: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M P"]:
    """To each colour of the palette, brightness and paleness left aside."""

    def hue(x: Float[np.ndarray, "K 3"]) -> Float[np.ndarray, "K 3"]:
        low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        return (x - low) / np.maximum(high - low, 1e-6)

    palette = np.array(list(PALETTE.values()), np.float64) / 255
    return np.square(hue(colours)[:, None] - hue(palette)[None]).sum(axis=-1)


def patches_of(images: Images, per_image: int) -> Float[np.ndarray, "M P 3"]:
    """The pixels of every code's own square, in 0..1, in the order of the codes."""
    count, size = images.shape[:2]
    grid = int(per_image**0.5)
    side = size // grid
    squares = images.reshape(count, grid, side, grid, side, 3).swapaxes(2, 3)
    return squares.reshape(count * per_image, side * side, 3).astype(np.float64) / 255
