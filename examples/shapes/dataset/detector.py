"""What a picture of the world shows, read without learning: things are what is coloured, shapes are compared.

Backgrounds and shadows are nearly grey, so connected places of high chroma are things. Each is brought to one size
and middle and laid over all shapes; its colour is the palette's nearest in hue. Nothing here knows how the picture
came about: it reads drawn scenes, a tokenizer's reconstructions and a model's own pictures alike.
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
from examples.shapes.dataset.vocabulary import EVERYTHING, Vocabulary
from janus_jax.errors import JanusError

UNKNOWN = "unknown"
"""The shape of what is coloured like a thing and has none of the vocabulary's shapes."""

_LARGEST = 96  # Pictures are read at this side at most: there is no more to see in them.
_GREY = 0.10  # chroma that backgrounds may have
_COLOURED = 0.30  # chroma of more than half a pixel of any colour of the palette
_LEAST_AREA = 0.006  # of the picture; a small moon, the least thing, has twice that
_GREATEST = 0.6  # in picture sides: beyond lies a coloured ground, not a thing
_LEAST_OVERLAP = 0.66
_SPLITS = (0.62, 0.78)  # shares of a thing's chroma at which things that touch may come apart
_STEPS = np.linspace(-1.25, 1.25, 24, dtype=np.float32)  # about a thing's middle, in square roots of its area

_Mask = Bool[np.ndarray, "H W"]
_Plane = Float[np.ndarray, "H W"]
_Part = tuple[tuple[slice, slice], _Mask]  # where it lies in the picture, and which pixels of that are its own


@dataclass(frozen=True)
class Detection:
    """One thing that was found.

    Attributes:
      shape: of the vocabulary, or UNKNOWN.
      colour: of the vocabulary.
      box: left, top, right, bottom in picture sides.
      score: how well the shape fits, 0..1.
    """

    shape: str
    colour: str
    box: tuple[float, float, float, float]
    score: float

    @property
    def middle(self) -> tuple[float, float]:
        """Of the box: x, y in picture sides."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def detect(image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary = EVERYTHING) -> list[Detection]:
    """The things in a picture, RGB, 0..255, in no particular order; specks are passed over.

    Args:
      image: of any size.
      vocabulary: what shapes and colours a thing can have; all of the world's, so that a model that draws one of
        the kept-out ones is told so.

    Raises:
      JanusError: the image is none of 8 bits and three colours.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise JanusError(f"A picture to read has shape {image.shape} and dtype {image.dtype}; give [H, W, 3] in uint8.")
    longest = max(image.shape[:2])
    if longest > _LARGEST:
        height, width = (round(side * _LARGEST / longest) for side in image.shape[:2])
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    red, green, blue = np.moveaxis(image.astype(np.float32) / 255, -1, 0)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    hue = np.stack([red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(3) / 2)], -1)
    reading = _Reading(chroma, hue, vocabulary)
    return [found for part in reading.parts(chroma > _COLOURED) for found in reading.read(part)]


class _Reading:
    """One picture under the glass."""

    def __init__(self, chroma: _Plane, hue: Float[np.ndarray, "H W 2"], vocabulary: Vocabulary):
        self._chroma, self._hue, self._vocabulary = chroma, hue, vocabulary
        self._least = _LEAST_AREA * chroma.size

    def parts(self, mask: _Mask) -> Iterator[_Part]:
        """Connected parts that are no specks: their windows, one pixel wider than they are, and their masks in it."""
        labels, _ = ndimage.label(mask)
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in window)
            part = labels[wide] == label
            if np.count_nonzero(part) >= self._least:
                yield (wide[0], wide[1]), part

    def read(self, part: _Part, splits: tuple[float, ...] = _SPLITS) -> list[Detection]:
        """The thing that a part is, or the things, where it takes several to make sense of it."""
        whole = self._thing(*part)
        if whole.shape != UNKNOWN:
            return [whole]
        for pieces in (self._by_colour(part), *(self._by_chroma(part, share) for share in splits)):
            # Crumbs do not make sense of a whole.
            if len(pieces) > 1 and sum(map(_area, pieces)) > 0.5 * _area(part):
                return [found for piece in pieces for found in self.read(piece, splits[1:])]
        return [whole]

    def _thing(self, window: tuple[slice, slice], part: _Mask) -> Detection:
        chroma = self._chroma[window]
        full = _full(chroma[part])
        shape, score = _shape(np.clip((chroma - _GREY) / (full - _GREY), 0, 1) * _grown(part), self._vocabulary)
        core = part & (chroma >= 0.9 * full)
        colour = self._vocabulary.colours[int(_alike(self._hue[window][core].mean(0), self._vocabulary))]
        rows, columns = (np.flatnonzero(part.any(axis)) for axis in (1, 0))
        height, width = self._chroma.shape
        box = (
            (window[1].start + columns[0]) / width,
            (window[0].start + rows[0]) / height,
            (window[1].start + columns[-1] + 1) / width,
            (window[0].start + rows[-1] + 1) / height,
        )
        if max(box[2] - box[0], box[3] - box[1]) > _GREATEST:
            shape = UNKNOWN
        return Detection(shape, colour, box, score)

    def _by_colour(self, part: _Part) -> list[_Part]:
        window, mask = part
        colours = np.where(mask, _alike(self._hue[window], self._vocabulary), -1)
        return [piece for colour in np.unique(colours[mask]) for piece in self._pieces(window, colours == colour)]

    def _by_chroma(self, part: _Part, share: float) -> list[_Part]:
        window, mask = part
        chroma = self._chroma[window]
        return self._pieces(window, mask & (chroma > share * _full(chroma[mask])))

    def _pieces(self, window: tuple[slice, slice], mask: _Mask) -> list[_Part]:
        top, left = window[0].start, window[1].start
        return [
            (
                (
                    slice(top + rows.start, top + rows.start + piece.shape[0]),
                    slice(left + columns.start, left + columns.start + piece.shape[1]),
                ),
                piece,
            )
            for (rows, columns), piece in self.parts(mask)
        ]


def _area(part: _Part) -> int:
    return int(np.count_nonzero(part[1]))


def _grown(mask: _Mask) -> _Mask:
    """A mask and its neighbours, where half-covered pixels lie."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _full(chroma: Float[np.ndarray, " P"]) -> float:
    """The chroma of a thing's own colour: of most of its pixels, a few brighter ones set aside."""
    middle = int(0.7 * len(chroma))
    return float(np.partition(chroma, middle)[middle])


def _alike(hue: Float[np.ndarray, "*B 2"], vocabulary: Vocabulary) -> np.ndarray:
    """The index of the colour of the nearest hue."""
    return (hue @ _hues(vocabulary.colours)).argmax(-1)


@functools.lru_cache(maxsize=64)
def _hues(colours: tuple[str, ...]) -> Float[np.ndarray, "2 C"]:
    red, green, blue = np.array([PALETTE[colour] for colour in colours], np.float32).T
    hues = np.stack([red - (green + blue) / 2, (green - blue) * np.float32(np.sqrt(3) / 2)])
    return hues / np.hypot(*hues)


def _shape(cover: _Plane, vocabulary: Vocabulary) -> tuple[str, float]:
    """The shape that a thing's pixels overlap with most, and by how much."""
    templates, areas = _templates(vocabulary.shapes)
    normal = _normalised(cover)
    shared = np.minimum(templates, normal).sum(-1)
    overlap = shared / (areas + normal.sum() - shared)
    best = int(overlap.argmax())
    score = float(overlap[best])
    return (vocabulary.shapes[best % len(vocabulary.shapes)] if score >= _LEAST_OVERLAP else UNKNOWN), score


def _normalised(cover: _Plane) -> Float[np.ndarray, " P"]:
    """What is covered, moved to the middle and scaled to one area."""
    area = float(cover.sum())
    rows, columns = (_between(cover.sum(1 - axis), area) for axis in (0, 1))
    return (rows @ cover @ columns.T).ravel()


def _between(profile: Float[np.ndarray, " H"], area: float) -> Float[np.ndarray, "R H"]:
    """Weights that read, along one side, the pixels between which the steps about a thing's middle fall."""
    at = np.arange(len(profile), dtype=np.float32)
    places = _STEPS * np.float32(np.sqrt(area)) + np.float32(profile @ at / area)
    return np.maximum(1 - np.abs(places[:, None] - at), 0)


@functools.lru_cache(maxsize=64)
def _templates(shapes: tuple[str, ...]) -> tuple[Float[np.ndarray, "T P"], Float[np.ndarray, " T"]]:
    """All shapes in turn, as crisp and as coarse as pictures show them, and their areas."""
    looks = []
    for pixels in (SIZES["small"] * 48, SIZES["large"] * 48, SIZES["large"] * _LARGEST):
        at = (np.arange(-np.ceil(pixels * 0.75), np.ceil(pixels * 0.75) + 1) / (pixels / 2)).astype(np.float32)
        cover = [np.clip(0.5 - outline(shape, at[None], at[:, None]) * pixels / 2, 0, 1) for shape in shapes]
        looks += [_normalised(plane.astype(np.float32)) for plane in cover]
        looks += [_normalised(ndimage.gaussian_filter(plane, 0.9).astype(np.float32)) for plane in cover]
    templates = np.array(looks)
    return templates, templates.sum(-1)
