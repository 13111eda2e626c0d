"""Reads the transparency of images in every form that image files use, and blends images over a background."""

from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from janus_jax.errors import JanusError

Background = Literal["none", "white", "grey"]
"""Background of the transparent pixels of an image.

none: Alpha is dropped, as in the authors' implementation, so that transparent pixels show the colors stored in them.
white, grey: The image is blended over white, or over the gray value 127, which also pads input images.
"""

GRAY = 127
"""The mean that the models subtract, rounded down."""

_LEVELS = {"white": 255, "grey": GRAY}

_ALPHA_MODES = ("P", "PA", "LA", "RGBA", "RGBa")

# Factor from a gray value with fewer than 8 bits, as a color key states it, to the 8-bit value that Pillow decodes.
_KEY_SCALES = {"L;2": 85, "L;4": 17}


def check_background(background: str) -> None:
    """Checks the name of a background.

    Raises:
      JanusError: The name is unknown.
    """
    if background not in get_args(Background):
        raise JanusError(f"background is {background!r}; it must be one of {', '.join(get_args(Background))}.")


def raw_mode(image: Image.Image) -> str:
    """Returns the encoding of the pixels in an image file, such as "RGB;16B"; "" if the pixels have been decoded."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0].args) if tiles else ""


def read_alpha(image: Image.Image, raw_mode: str = "") -> Image.Image | None:
    """Returns alpha as an 8-bit gray image, or None if all pixels are opaque.

    An image file stores alpha as a channel, as a value of each palette color, or as one color that is transparent.

    Args:
      image: A decoded image of any mode.
      raw_mode: Result of `raw_mode` before the image was decoded.
    """
    if not image.has_transparency_data:
        return None
    if image.mode in ("1", "L", "RGB") or image.mode.startswith("I"):
        alpha = _color_key_alpha(image, image.info["transparency"], raw_mode)
    elif image.mode in _ALPHA_MODES:
        alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    else:
        alpha = None
    return None if alpha is None or alpha.getextrema()[0] == 255 else alpha


def blend(image: Image.Image, alpha: Image.Image, background: Background) -> Image.Image:
    """Returns an RGB image blended over a background. The background "none" returns the image unchanged."""
    if background == "none":
        return image
    return Image.composite(image, Image.new("RGB", image.size, (_LEVELS[background],) * 3), alpha)


def _color_key_alpha(image: Image.Image, key: Any, raw_mode: str) -> Image.Image | None:
    is_rgb = image.mode == "RGB"
    if not (isinstance(key, tuple) and len(key) == 3 if is_rgb else isinstance(key, int)):
        return None  # Not a color: a remainder of an image in another mode.
    values = np.array(key, np.int64) * _KEY_SCALES.get(raw_mode, 1)
    if is_rgb and (";16" in raw_mode or values.max() > 255):
        values >>= 8  # Pillow keeps only the high bytes of 16-bit colors.
    equal = np.asarray(image.convert("L") if image.mode == "1" else image) == values
    return Image.fromarray(np.where(equal.all(-1) if is_rgb else equal, 0, 255).astype(np.uint8))
