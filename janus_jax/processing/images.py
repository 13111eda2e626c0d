"""Image files to the squares of pixels that the encoders take."""

import base64
import binascii
import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from janus_jax.errors import JanusError

ImageSource = str | os.PathLike[str] | bytes | Image.Image
"""A path, a `data:image/...;base64,` address, the bytes of a file, or an image."""

MAX_PIXELS = 2**28
"""An image with more pixels (one of 16384 x 16384) is refused: it would fill more than 1 GiB."""

# A closed list: Pillow knows formats that start other programs (EPS) or that nobody means to show to a model.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_pillow_limit_lock = threading.Lock()


class TooManyPixels(JanusError):
    """An image has more pixels than are read: a decompression bomb, or an honest giant."""


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads an image, upright, as 8-bit RGB. Of an animation, the first frame.

    Transparency is dropped, not blended. The EXIF orientation is applied. Grey values of more than 8 bits are
    scaled from their full range: 16-bit ones from 0..65535, floats from the smallest of 0..1, 0..255 and 0..65535
    that holds them, and anything larger from 0 to its own maximum.

    Raises:
      JanusError: the file is missing, no image, truncated, corrupt or has more than `max_pixels` pixels (then a
        `TooManyPixels`). The message names it.
    """
    name = _name(source)
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source, name, max_pixels)
        with _stream(source, name) as stream, _decode_header(stream, max_pixels) as image:
            return _upright_rgb(image, name, max_pixels)
    except JanusError:
        raise
    except UnidentifiedImageError:
        raise JanusError(f"{name} is no image, or in none of the formats {', '.join(_FORMATS)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixels(
            f"{name} has more than {max_pixels} pixels, the most that are read; make it smaller."
        ) from None
    # A corrupt file can make a decoder raise nearly anything: OSError, SyntaxError, struct.error, zlib.error ...
    except Exception as error:
        raise JanusError(f"{name} cannot be read as an image: it is truncated or corrupt ({error}).") from error


def prepare_understanding(
    image: Image.Image, size: int = 384, min_size: int = 14, background: int = 127
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The whole image, its long side scaled to `size`, in the middle of a square of colour `background`.

    The short side has at least `min_size` pixels. Values are 0..255; normalising them is the model's part.

    Args:
      image: as `open_image` returns it.
      size: the understanding encoder's image size.
      min_size: least length of a side, so that a line one pixel wide is still seen.
      background: grey value, 0..255, of the padding.
    """
    longest = max(image.size)
    # The models were trained with sides cut down to whole pixels; rounding moves the picture by one.
    width, height = (max(int(side / longest * size), min_size) for side in image.size)
    left, top = (size - width) // 2, (size - height) // 2
    square = np.full((size, size, 3), background, np.uint8)
    square[top : top + height, left : left + width] = np.asarray(_resize(image, width, height))
    return square


def prepare_generation(
    image: Image.Image, size: int = 384, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """A square of the image whose short side is scaled to `size`: the middle, or one that `rng` draws.

    Values are 0..255; normalising them is the model's part.

    Args:
      image: as `open_image` returns it.
      size: the image tokenizer's image size.
      rng: draws the place along the long side; None for the middle.
    """
    shortest = min(image.size)
    scaled = [int(side / shortest * size) for side in image.size]
    room = [side - size for side in scaled]
    left, top = (side // 2 if rng is None else int(rng.integers(side + 1)) for side in room)
    # Resampling the crop alone is cropping the scaled image, but for the rounding between Pillow's two passes; of an
    # image 1 pixel high and 100,000 wide the scaled one would not fit into memory.
    x, y = (side / side_scaled for side, side_scaled in zip(image.size, scaled, strict=True))
    box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
    return np.asarray(_resize(image, size, size, box))


def _resize(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    # Pillow scales one axis after the other and rounds in between, so that the order shows in the pixels; its
    # versions before 13 always began with the width. Two calls give every version the pixels of the 13th.
    left, top, right, bottom = box or (0, 0, *image.size)
    passes = [
        lambda image: image.resize((width, image.height), Image.Resampling.BICUBIC, (left, 0, right, image.height)),
        lambda image: image.resize((image.width, height), Image.Resampling.BICUBIC, (0, top, image.width, bottom)),
    ]
    height_first = (bottom - top) - height > max(0, 2 * ((right - left) - width))
    for scale in reversed(passes) if height_first else passes:
        image = scale(image)
    return image


def _name(source: ImageSource) -> str:
    if isinstance(source, bytes):
        return f"The image given as {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"The image {getattr(source, 'filename', '') or 'given as a PIL image'}"
    if isinstance(source, str) and source.startswith("data:"):
        return f"The image given as a data address of {len(source)} characters"
    if not isinstance(source, str | os.PathLike):
        raise JanusError(f"An image is given as {type(source).__name__}; give a path, bytes or a PIL image.")
    return f"The image {os.fspath(source)}"


def _stream(source: str | os.PathLike[str] | bytes, name: str) -> BinaryIO:
    if isinstance(source, str) and source.startswith("data:"):
        try:
            source = base64.b64decode(source.partition(",")[2], validate=True)
        except binascii.Error:
            raise JanusError(f"{name} is not encoded in base64.") from None
    if isinstance(source, bytes):
        if not source:
            raise JanusError(f"{name} is empty.")
        return io.BytesIO(source)
    path = Path(source)
    try:
        if not path.exists():
            raise JanusError(f"{name} does not exist; check the path.")
        # Neither folders nor pipes and devices, which may never end.
        if not path.is_file():
            raise JanusError(f"{name} is not a file; give the path of an image file.")
        if not path.stat().st_size:
            raise JanusError(f"{name} is empty.")
        return path.open("rb")
    except OSError as error:
        raise JanusError(f"{name} cannot be opened ({error.strerror}).") from error


def _decode_header(stream: BinaryIO, max_pixels: int) -> Image.Image:
    Image.init()
    with _pillow_limit(max_pixels), warnings.catch_warnings():
        # Up to twice its limit Pillow only warns.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    # Pillow's own limit is a global that refuses honest panoramas; it stays as it is for all other code.
    with _pillow_limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _upright_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if not width * height:
        raise JanusError(f"{name} has no pixels: its size is {width} x {height}.")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"{name} has {width} x {height} pixels, more than the {max_pixels} that are read; make it smaller."
        )
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the pixels of an image with broken EXIF data are as good as any
        return None


def _to_8_bits(grey: Shaped[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    if grey.dtype.kind == "f":
        grey = np.nan_to_num(grey.astype(np.float32), posinf=0.0, neginf=0.0)
        ranges: tuple[float, ...] = (1.0, 255.0, 65535.0)
    else:
        ranges = (65535.0,)
    largest = float(grey.max())
    full = next((limit for limit in ranges if largest <= limit), largest)
    return np.clip(np.rint(grey * np.float32(255 / full)), 0, 255).astype(np.uint8)
