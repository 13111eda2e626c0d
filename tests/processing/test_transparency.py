"""Every form of alpha in image files is detected, and blended over a background or, by default, dropped."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing import decode_image, open_image

HIDDEN, SHOWN = (200, 40, 80), (10, 20, 30)


def png(depth, color_type, row, *chunks, width=2):
    """Returns a PNG file of one row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*one) for one in chunks) + pixels + chunk(b"IEND", b"")


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rgba(alpha=0):
    image = Image.new("RGBA", (2, 1), (*SHOWN, 255))
    image.putpixel((0, 0), (*HIDDEN, alpha))
    return image


def with_info(image, **info):
    image.info.update(info)
    return image


def palette(mode="RGB", **info):
    alphas = [[100], [255]] if mode == "RGBA" else [[], []]
    image = Image.new("P", (2, 1))
    image.putpalette([*HIDDEN, *alphas[0], *SHOWN, *alphas[1]], mode)
    image.putpixel((1, 0), 1)
    return with_info(image, **info)


def gray(hidden, shown):
    return (hidden,) * 3, (shown,) * 3


GRAY, RED, ALPHA, PALETTE = 0, 2, 4, 3  # PNG's color types: RED is RGB without alpha.
COLORS = (HIDDEN, SHOWN)
PLTE = (b"PLTE", bytes([*HIDDEN, *SHOWN]))

# Name: (image, colors of its two pixels without alpha, alpha of the first pixel).
KINDS = {
    "RGBA, 8 bits": (png(8, 6, bytes([*HIDDEN, 0, *SHOWN, 255])), COLORS, 0),
    "RGBA, half transparent": (png(8, 6, bytes([*HIDDEN, 128, *SHOWN, 255])), COLORS, 128),
    "RGBA, 16 bits": (
        png(16, 6, struct.pack(">8H", *(257 * value for value in (*HIDDEN, 64, *SHOWN, 255)))),
        COLORS,
        64,
    ),
    "gray and alpha, 8 bits": (png(8, ALPHA, bytes([90, 3, 70, 255])), gray(90, 70), 3),
    "gray and alpha, 16 bits": (png(16, ALPHA, struct.pack(">4H", 90 * 257, 0, 70 * 257, 65535)), gray(90, 70), 0),
    "palette, alpha of every color": (png(8, PALETTE, b"\0\1", PLTE, (b"tRNS", b"\x64\xff")), COLORS, 100),
    "palette, alpha of the first colors": (png(2, PALETTE, b"\x10", PLTE, (b"tRNS", b"\x64")), COLORS, 100),
    "palette, one transparent color": (png(8, PALETTE, b"\0\1", PLTE, (b"tRNS", b"\0")), COLORS, 0),
    "gray, key, 1 bit": (png(1, GRAY, b"\x80", (b"tRNS", b"\0\1")), gray(255, 0), 0),
    "gray, key, 2 bits": (png(2, GRAY, b"\x90", (b"tRNS", b"\0\2")), gray(170, 85), 0),
    "gray, key, 4 bits": (png(4, GRAY, b"\x5a", (b"tRNS", b"\0\5")), gray(85, 170), 0),
    "gray, key, 8 bits": (png(8, GRAY, b"\x05\x06", (b"tRNS", b"\0\5")), gray(5, 6), 0),
    "gray, key, 16 bits": (png(16, GRAY, b"\x80\x10\x80\x11", (b"tRNS", b"\x80\x10")), gray(128, 128), 0),
    "RGB, key, 8 bits": (png(8, RED, bytes([*HIDDEN, *SHOWN]), (b"tRNS", struct.pack(">3H", *HIDDEN))), COLORS, 0),
    "RGB, key, 16 bits": (
        png(16, RED, struct.pack(">6H", 200, 51240, 300, 10, 20, 30), (b"tRNS", struct.pack(">3H", 200, 51240, 300))),
        ((0, 200, 1), (0, 0, 0)),
        0,
    ),
    "GIF": (saved(palette(), "GIF", transparency=0), COLORS, 0),
    "WebP": (saved(rgba(50), "WEBP", lossless=True, exact=True), COLORS, 50),
    "TIFF": (saved(rgba(50), "TIFF"), COLORS, 50),
    "TIFF with palette and alpha": (saved(rgba().convert("PA"), "TIFF"), COLORS, 0),
    "TGA": (saved(rgba(50), "TGA"), COLORS, 50),
    "JPEG 2000": (saved(rgba(50), "JPEG2000"), COLORS, 50),
    "ICO": (saved(rgba(50).resize((4, 2), Image.Resampling.NEAREST), "ICO", sizes=[(4, 2)]), COLORS, 50),
    "PIL RGBA": (rgba(50), COLORS, 50),
    "PIL LA": (Image.fromarray(np.array([[[90, 3], [70, 255]]], np.uint8), "LA"), gray(90, 70), 3),
    "PIL PA": (rgba().convert("PA"), COLORS, 0),
    "PIL P with an RGBA palette": (palette("RGBA"), COLORS, 100),
    "PIL P with bytes": (palette(transparency=b"\x64\xff"), COLORS, 100),
    "PIL P with a color": (palette(transparency=0), COLORS, 0),
}


def pixels(image):
    """Returns the first and the last pixel."""
    found = np.asarray(image)
    return np.stack([found[0, 0], found[-1, -1]]).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_is_dropped_or_blended(kind):
    source, colors, alpha = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default, is_transparent = decode_image(source)
        assert is_transparent
        np.testing.assert_array_equal(pixels(default), colors)
        for background, level in (("white", 255), ("grey", 127)):
            blended = np.array([np.array(colors[0]) * alpha / 255 + level * (255 - alpha) / 255, colors[1]])
            opened = open_image(source, background=background)
            np.testing.assert_allclose(pixels(opened), blended, atol=0 if alpha == 0 else 0.5)


OPAQUE = {
    "RGBA with full alpha": saved(rgba(255), "PNG"),
    "palette with full alpha": saved(palette(), "PNG", transparency=b"\xff\xff"),
    "a key that no pixel has": png(8, RED, bytes([*HIDDEN, *SHOWN]), (b"tRNS", b"\0\1\0\2\0\3")),
    "no alpha": saved(rgba().convert("RGB"), "PNG"),
    "JPEG": saved(Image.new("RGB", (2, 1), SHOWN), "JPEG"),
    "a key of another mode": with_info(Image.new("RGB", (2, 1)), transparency=0),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_opaque_images_are_not_changed(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default, is_transparent = decode_image(OPAQUE[kind])
    assert not is_transparent
    np.testing.assert_array_equal(open_image(OPAQUE[kind], background="white"), default)


def test_alpha_is_turned_with_the_image():
    exif = Image.Exif()
    exif[0x0112] = 3  # Turned by 180 degrees.
    image = open_image(saved(rgba(), "PNG", exif=exif), background="white")
    assert [image.getpixel((x, 0)) for x in range(2)] == [SHOWN, (255, 255, 255)]


def test_unknown_background_is_reported():
    with pytest.raises(JanusError, match="background is 'black'; it must be one of none, white, grey"):
        open_image(rgba(), background="black")
