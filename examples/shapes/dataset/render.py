"""Renders scenes with signed distance functions: antialiased edges at any size, soft shadows and shading."""

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from examples.shapes.dataset.scene import Background, Scene, SceneObject, sample_scene
from examples.shapes.dataset.vocabulary import FULL_VOCABULARY, Split, Vocabulary
from janus_jax.errors import JanusError

MIN_IMAGE_SIZE = 24
"""Smallest image side, in pixels, at which the shapes are distinguishable."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 46, 52),
    "blue": (42, 98, 224),
    "green": (40, 166, 76),
    "yellow": (250, 208, 30),
    "purple": (138, 58, 196),
    "orange": (248, 130, 26),
    "pink": (246, 100, 178),
    "cyan": (30, 190, 206),
}
TINT_PALETTE: dict[str, tuple[int, int, int]] = {
    "paper": (250, 247, 241),
    "mist": (224, 232, 240),
    "sand": (238, 227, 209),
    "sage": (219, 230, 217),
    "lilac": (231, 224, 238),
    "stone": (204, 209, 216),
}

_MAX_CACHED_SIZE = 128
_SHADOW_SHIFT = (0.012, 0.024)  # right and down, as fractions of the image side
_SHADOW_BLUR = 0.03
_SHADOW_DEPTH = 0.3

Plane = Float[np.ndarray, "H W"]


def render(scene: Scene, size: int = 48) -> UInt8[np.ndarray, "S S 3"]:
    """Returns the RGB image of a scene. The image depends on the scene and the size only.

    Args:
      size: Side of the image in pixels.

    Raises:
      JanusError: `size` is too small.
    """
    if size < MIN_IMAGE_SIZE:
        raise JanusError(f"image_size is {size}; shapes need {MIN_IMAGE_SIZE} pixels or more to be distinguishable.")
    # Many small images have the same backgrounds and object masks, so these are cached. Large ones need too much
    # memory.
    is_cached = size <= _MAX_CACHED_SIZE
    background, stencil = (_background, _stencil) if is_cached else (_background.__wrapped__, _stencil.__wrapped__)
    canvas = background(scene.background, size).copy()
    stencils = [stencil(obj.shape, obj.diameter, obj.x, obj.y, size) for obj in scene.objects]
    for top, left, _, shadow in stencils:  # No shadow covers an object.
        height, width = shadow.shape
        canvas[top : top + height, left : left + width] *= shadow[..., None]
    for obj, (top, left, cover, _) in zip(scene.objects, stencils, strict=True):
        height, width = cover.shape
        patch = canvas[top : top + height, left : left + width]
        patch += cover[..., None] * (_shaded_color(obj, top, height, size) - patch)
    return (canvas + 0.5).astype(np.uint8)


def sample_images(
    seed: int,
    count: int,
    size: int = 48,
    vocabulary: Vocabulary = FULL_VOCABULARY,
    split: Split = Split.TRAIN,
) -> UInt8[np.ndarray, "count S S 3"]:
    """Returns images of random scenes of one to four objects, for example to train an image tokenizer.

    Image i depends on i and the arguments other than `count`. The default vocabulary includes the words for
    fine-tuning, because the image tokenizer is not fine-tuned. TRAIN excludes held-out combinations.

    Raises:
      JanusError: `size` is too small.
    """
    images = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        images[index] = render(sample_scene(np.random.default_rng((seed, index)), vocabulary, split), size)
    return images


def outline(shape: str, x: Plane, y: Plane) -> Plane:
    """Returns the signed distance of the points (x, y) to the outline of a shape, negative inside.

    The shape is upright and centered at the origin, with a diameter of 2; y points down.
    """
    return _OUTLINES[shape](x, y)


def _polygon(corners: list[tuple[float, float]], rounding: float) -> Callable[[Plane, Plane], Plane]:
    def distance(x: Plane, y: Plane) -> Plane:
        nearest = np.full(np.broadcast(x, y).shape, np.inf, np.float32)
        inside = np.zeros(nearest.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
            if ey:  # A horizontal ray crosses no horizontal edge.
                inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
        return np.where(inside, -nearest, nearest) - rounding

    return distance


def _spokes(count: int, outer: float, inner: float) -> list[tuple[float, float]]:
    """Returns the corners of a star that points up."""
    radii = (outer, inner) * count
    angles = (math.pi * (step / count - 0.5) for step in range(2 * count))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    x, y = np.maximum(x, y), np.minimum(x, y)
    arm, half = 0.86, 0.24
    dx, dy = x - arm, y - half
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    return outside - 0.06


def _heart() -> Callable[[Plane, Plane], Plane]:
    """Returns the distance to a heart: two discs and the area between their lower tangents, which meet at the tip."""
    radius, across, up, tip = 0.5, 0.45, -0.38, 0.9
    reach = math.sqrt(across**2 + (up - tip) ** 2 - radius**2)
    angle = math.atan2(up - tip, across) + math.atan2(radius, reach)
    tangent_x, tangent_y = reach * math.cos(angle), tip + reach * math.sin(angle)
    notch = up - math.sqrt(radius**2 - across**2)
    right = [(0.0, tip), (tangent_x, tangent_y), (across, up), (0.0, notch)]
    middle = _polygon([*right, (-across, up), (-tangent_x, tangent_y)], 0.0)
    return lambda x, y: np.minimum(np.hypot(np.abs(x) - across, y - up) - radius, middle(x, y))


def _moon(x: Plane, y: Plane) -> Plane:
    """Returns the distance to a disc without a smaller disc. For points beyond a corner, the corner is nearest."""
    outer, inner, offset = 0.98, 0.84, 0.52
    x, y = x - 0.14, np.abs(y)
    point_x = (outer**2 - inner**2 + offset**2) / (2 * offset)
    point_y = math.sqrt(outer**2 - point_x**2)
    # A point is beyond a corner if it lies between the outward normals of the two edges that meet there.
    dx, dy = x - point_x, y - point_y
    beyond = (point_x * dy < point_y * dx) & (dx * point_y > dy * (point_x - offset))
    sides = np.maximum(np.hypot(x, y) - outer, inner - np.hypot(x - offset, y))
    return np.where(beyond, np.hypot(dx, dy), sides)


_SQUARE = 0.72
_OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.94,
    "square": _polygon([(-_SQUARE, -_SQUARE), (_SQUARE, -_SQUARE), (_SQUARE, _SQUARE), (-_SQUARE, _SQUARE)], 0.06),
    "triangle": _polygon([(0.0, -0.82), (0.9, 0.74), (-0.9, 0.74)], 0.06),
    "star": _polygon([(px, py + 0.06) for px, py in _spokes(5, 1.02, 0.42)], 0.05),
    "cross": _cross,
    "heart": _heart(),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.26,
    "moon": _moon,
}


@functools.lru_cache(maxsize=512)
def _stencil(shape: str, diameter: float, x: float, y: float, size: int) -> tuple[int, int, Plane, Plane]:
    """Returns top and left of an object's window, its coverage of each pixel, and the brightness of its shadow."""
    reach = diameter * 0.6 + _SHADOW_BLUR + max(_SHADOW_SHIFT)
    left, right = (min(max(edge, 0), size) for edge in (int((x - reach) * size), math.ceil((x + reach) * size)))
    top, bottom = (min(max(edge, 0), size) for edge in (int((y - reach) * size), math.ceil((y + reach) * size)))
    px = (np.arange(left, right, dtype=np.float32) + 0.5)[None] / size - x
    py = (np.arange(top, bottom, dtype=np.float32) + 0.5)[:, None] / size - y
    radius = diameter / 2

    def distance(shift_x: float, shift_y: float) -> Plane:
        return outline(shape, (px - shift_x) / radius, (py - shift_y) / radius) * radius

    cover = np.clip(0.5 - distance(0, 0) * size, 0, 1)
    fade = np.clip(0.5 - distance(*_SHADOW_SHIFT) / (2 * _SHADOW_BLUR), 0, 1)
    shadow = 1 - _SHADOW_DEPTH * fade * fade * (3 - 2 * fade)
    return top, left, cover.astype(np.float32), shadow.astype(np.float32)


def _shaded_color(obj: SceneObject, top: int, height: int, size: int) -> Float[np.ndarray, "H 1 3"]:
    """Returns the color of an object in each image row. It is lighter at the top."""
    down = ((np.arange(top, top + height, dtype=np.float32) + 0.5) / size - obj.y) / obj.diameter
    light = np.clip(1 - 0.16 * down, 0.9, 1.08)
    return np.minimum(light[:, None, None] * np.array(PALETTE[obj.color], np.float32), 255)


@functools.lru_cache(maxsize=64)
def _background(background: Background, size: int) -> Float[np.ndarray, "S S 3"]:
    tint = np.array(TINT_PALETTE[background.tint], np.float32)
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = at[None], at[:, None]
    match background.texture:
        case "shaded":
            light = 1.03 - 0.14 * (0.35 * x + 0.65 * y)
        case "striped":
            light = 1 - 0.05 * _band((x + y) * 3 % 1, size / 3)
        case "dotted":
            frequency = 6
            light = 1 - 0.07 * np.clip(
                0.5 - (np.hypot((x * frequency) % 1 - 0.5, (y * frequency) % 1 - 0.5) - 0.2) * size / frequency, 0, 1
            )
        case _:
            light = np.ones((size, size), np.float32)
    return np.clip(light[..., None] * tint, 0, 255).astype(np.float32)


def _band(phase: Plane, period: float) -> Plane:
    """Returns a wave of 0 and 1 with smooth edges; `phase` is in periods and `period` in pixels."""
    return np.clip(0.5 + (0.25 - np.abs(phase - 0.5)) * period / 2, 0, 1)
