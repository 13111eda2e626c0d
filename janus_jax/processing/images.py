"""Reads image files and makes the square images that the encoders read."""

import base64
import binascii
import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from janus_jax.errors import JanusError
from janus_jax.processing.transparency import GRAY, Background, blend, check_background, raw_mode, read_alpha


@dataclass(frozen=True, eq=False)
class ImageWithTokens:
    """An image that the model generated in a conversation.

    In a message of the assistant, it keeps the image tokens, which encoding the image again would change.

    Attributes:
      image: The image.
      tokens: Its N image tokens.
    """

    image: Image.Image
    tokens: Int[np.ndarray, "N"]


ImageSource = str | os.PathLike[str] | bytes | Image.Image | ImageWithTokens
"""A path, a `data:image/...;base64,` URL, the bytes of a file, a PIL image, or a generated image."""

MAX_PIXELS = 2**28
"""Default maximum number of pixels of an image (16384 x 16384). A larger image needs more than 1 GiB of memory."""

# The formats that may be read. For some others (EPS), Pillow starts another program.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")

# Transposition for each EXIF orientation.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow returns the memory of every image to the system, and the system clears it again for the next image, which takes
# as long as decoding it. With this setting Pillow keeps the memory of some images.
REUSED_IMAGES = 8
if "PILLOW_BLOCKS_MAX" not in os.environ:
    Image.core.set_blocks_max(REUSED_IMAGES)

_pillow_limit_lock = threading.Lock()


class DamagedImage(JanusError):
    """Raised for a file whose content is not a readable image."""


class TooManyPixels(JanusError):
    """Raised for an image with more than the maximum number of pixels."""


class DecodedImage(NamedTuple):
    """An image as 8-bit RGB, and whether any of its pixels is transparent in the file."""

    image: Image.Image
    is_transparent: bool


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS, background: Background = "none") -> Image.Image:
    """Reads an image as 8-bit RGB and applies its EXIF orientation. Of an animation, the first frame is read.

    Gray values of more than 8 bits are scaled to 0..255. The input range of 16-bit values is 0..65535. The input range
    of floats is the smallest of 0..1, 0..255 and 0..65535 that contains all values; its upper end is the maximum of the
    image if a value exceeds 65535.

    Args:
      source: The image.
      max_pixels: Maximum number of pixels.
      background: Background of transparent pixels, see `Background`.

    Raises:
      TooManyPixels: The image has more than `max_pixels` pixels.
      DamagedImage: The file is empty, truncated, corrupt or not an image.
      JanusError: The file is missing or cannot be opened, or the background is unknown.
    """
    return decode_image(source, max_pixels, background).image


def decode_image(source: ImageSource, max_pixels: int = MAX_PIXELS, background: Background = "none") -> DecodedImage:
    """Reads an image as `open_image` does, and reports whether it has transparent pixels."""
    check_background(background)
    source = source.image if isinstance(source, ImageWithTokens) else source
    name = _name(source)
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source, name, max_pixels, background)
        with _stream(source, name) as stream, _decode_header(stream, max_pixels) as image:
            return _upright_rgb(image, name, max_pixels, background)
    except JanusError:
        raise
    except UnidentifiedImageError:
        raise DamagedImage(f"{name} is not an image in one of the formats {', '.join(_FORMATS)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixels(f"{name} has more than {max_pixels} pixels, the maximum; make it smaller.") from None
    # Decoders raise OSError, SyntaxError, struct.error, zlib.error and more for corrupt files.
    except Exception as error:
        raise DamagedImage(f"{name} cannot be read as an image: it is truncated or corrupt ({error}).") from error


def prepare_understanding(
    image: Image.Image, size: int = 384, min_size: int = 14
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scales an image so that its long side is `size`, and centers it in a square. The model normalizes the pixels.

    Args:
      image: An image from `open_image`.
      size: Image size of the understanding encoder.
      min_size: Minimum length of the short side after scaling, so that a very thin image stays visible.
    """
    left, top, right, bottom = padded_box(image.size, size, min_size)
    square = np.full((size, size, 3), GRAY, np.uint8)
    square[top:bottom, left:right] = np.asarray(_resize(image, right - left, bottom - top))
    return square


def padded_box(image_size: tuple[int, int], size: int = 384, min_size: int = 14) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of an image in the square of `prepare_understanding`.

    Args:
      image_size: Width and height of the image.
      size: See `prepare_understanding`.
      min_size: See `prepare_understanding`.
    """
    longest = max(image_size)
    # Rounds down, as in the training of the released models.
    width, height = (max(int(side / longest * size), min_size) for side in image_size)
    left, top = (size - width) // 2, (size - height) // 2
    return left, top, left + width, top + height


def prepare_generation(
    image: Image.Image,
    size: int = 384,
    rng: np.random.Generator | None = None,
    rounding: Callable[[float], int] = int,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scales an image so that its short side is `size`, and crops a square. The model normalizes the pixels.

    Args:
      image: An image from `open_image`.
      size: Image size of the image tokenizer.
      rng: Samples the position of the crop. None: the center.
      rounding: Rounds the length of the long side after scaling. Default: down, as in the released models.
    """
    shortest = min(image.size)
    scaled = [rounding(side / shortest * size) for side in image.size]
    room = [side - size for side in scaled]
    left, top = (side // 2 if rng is None else int(rng.integers(side + 1)) for side in room)
    # Scales only the cropped part: an image of 1 x 100,000 pixels would not fit into memory after scaling. The pixels
    # differ from those of a crop after scaling by the rounding between Pillow's two passes.
    x, y = (side / side_scaled for side, side_scaled in zip(image.size, scaled, strict=True))
    box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
    return np.asarray(_resize(image, size, size, box))


def _resize(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    # Pillow scales one axis after the other and rounds in between. Versions before 13 always start with the width;
    # version 13 chooses. Two calls in the order of version 13 give the same pixels with every version.
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
        return f"The image given as a data URL of {len(source)} characters"
    if not isinstance(source, str | os.PathLike):
        raise JanusError(f"An image is given as {type(source).__name__}; give a path, bytes or a PIL image.")
    return f"The image {os.fspath(source)}"


def _stream(source: str | os.PathLike[str] | bytes, name: str) -> BinaryIO:
    if isinstance(source, str) and source.startswith("data:"):
        try:
            source = base64.b64decode(source.partition(",")[2], validate=True)
        except binascii.Error:
            raise DamagedImage(f"{name} is not encoded in base64.") from None
    if isinstance(source, bytes):
        if not source:
            raise DamagedImage(f"{name} is empty.")
        return io.BytesIO(source)
    path = Path(source)
    try:
        if not path.exists():
            raise JanusError(f"{name} does not exist; check the path.")
        # A folder, or a pipe or device, which may never end.
        if not path.is_file():
            raise JanusError(f"{name} is not a file; give the path of an image file.")
        if not path.stat().st_size:
            raise DamagedImage(f"{name} is empty.")
        return path.open("rb")
    except OSError as error:
        raise JanusError(f"{name} cannot be opened ({error.strerror}).") from error


def _decode_header(stream: BinaryIO, max_pixels: int) -> Image.Image:
    Image.init()
    with _pillow_limit(max_pixels), warnings.catch_warnings():
        # Pillow only warns for up to twice its limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    # Pillow's limit is a global variable. Its value is restored for other code.
    with _pillow_limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _upright_rgb(image: Image.Image, name: str, max_pixels: int, background: Background) -> DecodedImage:
    width, height = image.size
    if not width * height:
        raise DamagedImage(f"{name} has no pixels: its size is {width} x {height}.")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"{name} has {width} x {height} pixels, more than the maximum of {max_pixels}; make it smaller."
        )
    encoding = raw_mode(image)  # Unknown after load().
    image.load()
    orientation = _orientation(image)
    alpha = read_alpha(image, encoding)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow prints a warning if such a palette is converted to RGB directly.
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        image = blend(image, alpha, background)
    if orientation in _TRANSPOSITIONS:
        image = image.transpose(_TRANSPOSITIONS[orientation])
    return DecodedImage(image, alpha is not None)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Broken EXIF data does not affect the pixels.
        return None


def _to_8_bits(gray: Shaped[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    if gray.dtype.kind == "f":
        gray = np.nan_to_num(gray.astype(np.float32), posinf=0.0, neginf=0.0)
        ranges: tuple[float, ...] = (1.0, 255.0, 65535.0)
    else:
        ranges = (65535.0,)
    largest = float(gray.max())
    full = next((limit for limit in ranges if largest <= limit), largest)
    return np.clip(np.rint(gray * np.float32(255 / full)), 0, 255).astype(np.uint8)
