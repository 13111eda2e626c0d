"""Synthetic landscape, a stand-in for a photograph."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def landscape(width: int = 768, height: int = 512, seed: int = 0) -> Image.Image:
    """Renders mountains behind a lake at sunset."""
    rng = np.random.default_rng(seed)
    shore = int(height * 0.7)
    y, x = np.mgrid[0:shore, 0:width].astype(np.float32)
    above = _sky(x / width, y / shore)
    for depth in range(5):
        ridge = shore * (0.66 + 0.09 * depth - (0.44 - 0.07 * depth) * _ridge(width, rng))
        # Distant mountains fade into the color of the sky.
        colour = _mix(np.array([196, 132, 138]), np.array([20, 26, 44]), depth / 4)
        light = 1 + 0.12 * np.clip((y - ridge) / (0.3 * shore), 0, 1)[..., None]
        cover = np.clip(y - ridge, 0, 1)[..., None]
        above = above * (1 - cover) + colour * light * cover
    return Image.fromarray(np.concatenate([_to_bytes(above), _lake(above, height - shore, rng)]))


def _sky(x: Float[np.ndarray, "H W"], y: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    top, middle, low = (np.array(c) for c in ([38, 44, 92], [214, 104, 110], [255, 206, 140]))
    sky = np.where(
        (y < 0.35)[..., None], _mix(top, middle, y[..., None] / 0.35), _mix(middle, low, (y[..., None] - 0.35) / 0.3)
    )
    distance = np.hypot((x - 0.64) * 1.9, y - 0.4)[..., None]
    sky = sky + np.array([255, 190, 120]) * 0.5 * np.exp(-((distance / 0.16) ** 1.2))
    return _mix(sky, np.array([255, 246, 214]), np.clip((0.062 - distance) * 160, 0, 1))


def _ridge(width: int, rng: np.random.Generator) -> Float[np.ndarray, " W"]:
    """Heights in about [0, 1]: noise at all scales, weaker at finer ones."""
    x, height, weight = np.arange(width) / width, np.zeros(width), 0.0
    for octave in range(8):
        knots = 2 ** (octave + 1) + 2
        height += 0.52**octave * np.interp(x * (knots - 1), np.arange(knots), rng.random(knots))
        weight += 0.52**octave
    return height / weight


def _lake(above: Float[np.ndarray, "H W 3"], height: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H2 W 3"]:
    """Mirrors the scene, darker and distorted by waves that grow towards the front."""
    depth = np.arange(1, height + 1)
    columns = np.arange(above.shape[1])
    waves = rng.normal(size=(height, 1)) * depth[:, None] * 0.02 + 3 * np.sin(columns / 37 + depth[:, None] ** 0.8)
    shift = np.clip(columns + waves, 0, above.shape[1] - 1).astype(int)
    rows = np.clip(len(above) - (depth * 2.2).astype(int), 0, len(above) - 1)
    glitter = 1 + 0.07 * rng.normal(size=(height, 1, 1))
    return _to_bytes(_mix(above[rows[:, None], shift] * 0.82 * glitter, np.array([30, 40, 70]), 0.18))


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    return first * (1 - share) + second * share


def _to_bytes(colours: Float[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)
