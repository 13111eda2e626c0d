"""Detects the shapes in an image by color and template matching, without training.

Backgrounds and shadows are nearly grey, so connected regions of high chroma are objects. Each region is centered,
scaled to a fixed area and compared with all shapes. The color of a region is the palette color with the nearest hue.
The detector uses pixels only, so it also works on reconstructions of a tokenizer and images of a model.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from examples.shapes.dataset.render import PALETTE, outline
from examples.shapes.dataset.scene import SIZES
from examples.shapes.dataset.vocabulary import FULL_VOCABULARY, Vocabulary
from janus_jax.errors import JanusError

UNKNOWN = "unknown"
"""Shape of a colored region that matches no shape of the vocabulary."""

_MAX_SIDE = 96  # Larger images are scaled down, because they show no more details.
_GREY_CHROMA = 0.10  # maximum chroma of backgrounds
_MIN_CHROMA = 0.30  # below the chroma of a pixel that is more than half covered by any palette color
_MIN_AREA = 0.006  # fraction of the image; a small moon, the smallest object, has twice that
_MAX_EXTENT = 0.6  # fraction of the image side; a larger region is a colored background
_MIN_OVERLAP = 0.66
_SPLIT_CHROMA = (0.62, 0.78)  # fractions of a region's chroma that separate touching objects
_GRID = np.linspace(-1.25, 1.25, 24, dtype=np.float32)  # sampling positions, in units of the square root of the area

_Mask = Bool[np.ndarray, "H W"]
_Plane = Float[np.ndarray, "H W"]
_Region = tuple[tuple[slice, slice], _Mask]  # a window of the image, and the pixels of the region in it


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
      shape: Shape of the vocabulary, or UNKNOWN.
      color: Color of the vocabulary.
      box: Left, top, right and bottom, as fractions of the image side.
      score: Overlap with the shape, in [0, 1].
    """

    shape: str
    color: str
    box: tuple[float, float, float, float]
    score: float

    @property
    def center(self) -> tuple[float, float]:
        """Center (x, y) of the box, as a fraction of the image side."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def detect(image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary = FULL_VOCABULARY) -> list[Detection]:
    """Returns the objects found in an RGB image, in no particular order. Tiny regions are ignored.

    Args:
      image: Image of any size.
      vocabulary: Shapes and colors that can be detected. The default includes the words for fine-tuning, so that a
        heart is not taken for another shape.

    Raises:
      JanusError: The image does not have three channels of 8 bits.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise JanusError(f"The image has shape {image.shape} and dtype {image.dtype}; give [H, W, 3] in uint8.")
    longest = max(image.shape[:2])
    if longest > _MAX_SIDE:
        height, width = (round(side * _MAX_SIDE / longest) for side in image.shape[:2])
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    red, green, blue = np.moveaxis(image.astype(np.float32) / 255, -1, 0)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    hue = np.stack([red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(3) / 2)], -1)
    analysis = _Analysis(chroma, hue, vocabulary)
    return [found for region in analysis.regions(chroma > _MIN_CHROMA) for found in analysis.detect(region)]


class _Analysis:
    """Finds the objects of one image."""

    def __init__(self, chroma: _Plane, hue: Float[np.ndarray, "H W 2"], vocabulary: Vocabulary):
        self._chroma, self._hue, self._vocabulary = chroma, hue, vocabulary
        self._min_area = _MIN_AREA * chroma.size

    def regions(self, mask: _Mask) -> Iterator[_Region]:
        """Yields the connected regions of a mask that have sufficient area, in windows with a margin of one pixel."""
        labels, _ = ndimage.label(mask)
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in window)
            region = labels[wide] == label
            if np.count_nonzero(region) >= self._min_area:
                yield (wide[0], wide[1]), region

    def detect(self, region: _Region, splits: tuple[float, ...] = _SPLIT_CHROMA) -> list[Detection]:
        """Returns the object in a region. If the region matches no shape, it is split, and each piece is an object."""
        whole = self._classify(*region)
        if whole.shape != UNKNOWN:
            return [whole]
        for pieces in (self._split_by_color(region), *(self._split_by_chroma(region, share) for share in splits)):
            # A split is used only if it keeps most of the area.
            if len(pieces) > 1 and sum(map(_area, pieces)) > 0.5 * _area(region):
                return [found for piece in pieces for found in self.detect(piece, splits[1:])]
        return [whole]

    def _classify(self, window: tuple[slice, slice], mask: _Mask) -> Detection:
        chroma = self._chroma[window]
        full = _object_chroma(chroma[mask])
        cover = np.clip((chroma - _GREY_CHROMA) / (full - _GREY_CHROMA), 0, 1) * _dilate(mask)
        shape, score = _match_shape(cover, self._vocabulary)
        core = mask & (chroma >= 0.9 * full)
        color = self._vocabulary.colors[int(_nearest_color(self._hue[window][core].mean(0), self._vocabulary))]
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        height, width = self._chroma.shape
        box = (
            (window[1].start + columns[0]) / width,
            (window[0].start + rows[0]) / height,
            (window[1].start + columns[-1] + 1) / width,
            (window[0].start + rows[-1] + 1) / height,
        )
        if max(box[2] - box[0], box[3] - box[1]) > _MAX_EXTENT:
            shape = UNKNOWN
        return Detection(shape, color, box, score)

    def _split_by_color(self, region: _Region) -> list[_Region]:
        window, mask = region
        colors = np.where(mask, _nearest_color(self._hue[window], self._vocabulary), -1)
        return [piece for color in np.unique(colors[mask]) for piece in self._pieces(window, colors == color)]

    def _split_by_chroma(self, region: _Region, share: float) -> list[_Region]:
        window, mask = region
        chroma = self._chroma[window]
        return self._pieces(window, mask & (chroma > share * _object_chroma(chroma[mask])))

    def _pieces(self, window: tuple[slice, slice], mask: _Mask) -> list[_Region]:
        top, left = window[0].start, window[1].start
        return [
            (
                (
                    slice(top + rows.start, top + rows.start + piece.shape[0]),
                    slice(left + columns.start, left + columns.start + piece.shape[1]),
                ),
                piece,
            )
            for (rows, columns), piece in self.regions(mask)
        ]


def _area(region: _Region) -> int:
    return int(np.count_nonzero(region[1]))


def _dilate(mask: _Mask) -> _Mask:
    """Adds the direct neighbours of a mask, which contain partially covered pixels."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _object_chroma(chroma: Float[np.ndarray, " P"]) -> float:
    """Returns the 70th percentile of the chroma in a region: edges are paler, and a few pixels are brighter."""
    index = int(0.7 * len(chroma))
    return float(np.partition(chroma, index)[index])


def _nearest_color(hue: Float[np.ndarray, "*B 2"], vocabulary: Vocabulary) -> np.ndarray:
    """Returns the index of the color with the nearest hue."""
    return (hue @ _hues(vocabulary.colors)).argmax(-1)


@functools.lru_cache(maxsize=64)
def _hues(colors: tuple[str, ...]) -> Float[np.ndarray, "2 C"]:
    red, green, blue = np.array([PALETTE[color] for color in colors], np.float32).T
    hues = np.stack([red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(3) / 2)])
    return hues / np.hypot(*hues)


def _match_shape(cover: _Plane, vocabulary: Vocabulary) -> tuple[str, float]:
    """Returns the shape with the largest overlap (intersection over union), and the overlap."""
    templates, areas = _templates(vocabulary.shapes)
    normalized = _normalize(cover)
    intersection = np.minimum(templates, normalized).sum(-1)
    overlap = intersection / (areas + normalized.sum() - intersection)
    best = int(overlap.argmax())
    score = float(overlap[best])
    return (vocabulary.shapes[best % len(vocabulary.shapes)] if score >= _MIN_OVERLAP else UNKNOWN), score


def _normalize(cover: _Plane) -> Float[np.ndarray, " P"]:
    """Returns a coverage map, centered and scaled to a fixed area."""
    area = float(cover.sum())
    rows, columns = (_resampling(cover.sum(1 - axis), area) for axis in (0, 1))
    return (rows @ cover @ columns.T).ravel()


def _resampling(profile: Float[np.ndarray, " H"], area: float) -> Float[np.ndarray, "R H"]:
    """Returns the weights of linear interpolation along one axis, at positions around the centroid."""
    pixels = np.arange(len(profile), dtype=np.float32)
    positions = _GRID * np.float32(np.sqrt(area)) + np.float32(profile @ pixels / area)
    return np.maximum(1 - np.abs(positions[:, None] - pixels), 0)


@functools.lru_cache(maxsize=64)
def _templates(shapes: tuple[str, ...]) -> tuple[Float[np.ndarray, "T P"], Float[np.ndarray, " T"]]:
    """Returns templates of all shapes, sharp and blurred, at several resolutions, and the areas of the templates."""
    variants = []
    for pixels in (SIZES["small"] * 48, SIZES["large"] * 48, SIZES["large"] * _MAX_SIDE):
        at = (np.arange(-np.ceil(pixels * 0.75), np.ceil(pixels * 0.75) + 1) / (pixels / 2)).astype(np.float32)
        cover = [np.clip(0.5 - outline(shape, at[None], at[:, None]) * pixels / 2, 0, 1) for shape in shapes]
        variants += [_normalize(plane.astype(np.float32)) for plane in cover]
        variants += [_normalize(ndimage.gaussian_filter(plane, 0.9).astype(np.float32)) for plane in cover]
    templates = np.array(variants)
    return templates, templates.sum(-1)
