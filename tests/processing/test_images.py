"""Pixels equal the reference for all sizes and modes. Bad files raise a JanusError that names the file."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing import open_image, prepare_generation, prepare_understanding

GOLDEN = Path(__file__).parents[1] / "golden/data/images"


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def file_bytes(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width, height):
    """Returns a PNG file with this size in its header and without pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", json.loads((GOLDEN / "names.json").read_text()))
def test_understanding_pixels_equal_the_reference(name):
    expected = np.load(GOLDEN / "expected.npz")
    pixels = prepare_understanding(open_image(GOLDEN / name)).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels[:, ::3, ::3], expected[name])
    np.testing.assert_array_equal(pixels.sum(axis=(1, 2)), expected[f"sum:{name}"])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (384, 384), (100, 99), (383, 769)])
def test_prepared_images_are_squares_of_bytes(width, height):
    image = Image.fromarray(noise(height, width))
    for prepare in (prepare_understanding, prepare_generation):
        pixels = prepare(image)
        assert pixels.shape == (384, 384, 3)
        assert pixels.dtype == np.uint8


def test_image_of_the_right_size_is_unchanged():
    pixels = noise(384, 384)
    for prepare in (prepare_understanding, prepare_generation):
        np.testing.assert_array_equal(prepare(Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize(("width", "height"), [(500, 300), (300, 500), (1000, 383), (64, 200), (401, 400)])
def test_generation_pixels_are_those_of_the_scaled_image_cropped(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(x / 9 + k) + 60 * np.cos(y / 7 - k) for k in range(3)]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    scaled = [int(side / min(width, height) * 384) for side in (width, height)]
    left, top = ((side - 384) // 2 for side in scaled)
    plain = image.resize(scaled, Image.Resampling.BICUBIC).crop((left, top, left + 384, top + 384))
    # Within one gray level: Pillow rounds between its two passes, and their order depends on the sizes.
    np.testing.assert_allclose(prepare_generation(image).astype(int), np.array(plain).astype(int), atol=1)


def test_random_crop_reaches_both_ends_and_repeats_with_its_seed():
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (128, 1, 3))
    image = Image.fromarray(ramp)
    firsts = [int(prepare_generation(image, 128, np.random.default_rng(seed))[0, 0, 0]) for seed in range(300)]
    assert min(firsts) < 5
    assert max(firsts) > 122
    again = prepare_generation(image, 128, np.random.default_rng(7))
    np.testing.assert_array_equal(prepare_generation(image, 128, np.random.default_rng(7)), again)


def test_very_long_image_can_be_cropped():
    assert prepare_generation(Image.new("RGB", (200_000, 1))).shape == (384, 384, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = noise(3, 5)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_bytes(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    np.testing.assert_array_equal(np.array(open_image(data)), upright)


def test_broken_exif_data_is_ignored():
    data = file_bytes(Image.fromarray(noise(8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_image(data).size == (8, 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65407, 65535]], np.uint16)
    image = open_image(file_bytes(Image.fromarray(values), kind))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.array(image)[..., 0], np.rint(values / 257))


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0, 1e7])
def test_float_gray_is_scaled_from_the_smallest_range(full):
    values = np.array([[0, 0.25, 0.5, 1]], np.float32) * np.float32(full)
    values = np.concatenate([values, np.array([[-1, np.nan, -np.inf, 0]], np.float32)])
    image = open_image(file_bytes(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(np.array(image)[..., 1], [[0, 64, 128, 255], [0, 0, 0, 0]])


def test_32_bit_gray_beyond_16_bits_is_scaled_to_its_maximum():
    values = np.array([[0, 400_000, 2_000_000]], np.int32)
    image = open_image(file_bytes(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(np.array(image)[0, :, 2], [0, 51, 255])


def test_all_source_types_give_the_same_image(tmp_path):
    pixels = noise(5, 7)
    image = Image.fromarray(pixels)
    data = file_bytes(image, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (str(path), path, data, address, image, Image.open(path)):
        np.testing.assert_array_equal(np.array(open_image(source)), pixels)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = file_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_images_beyond_pillows_limit_are_read_and_the_limit_is_kept(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_image(file_bytes(Image.new("L", (50, 50)), "PNG")).size == (50, 50)
    assert Image.MAX_IMAGE_PIXELS == 100


WHOLE = Image.fromarray(noise(64, 64))
BAD_FILES = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"not an image at all, just a few words", "is not an image"),
    "cut.png": (file_bytes(WHOLE, "PNG")[:2000], "truncated or corrupt"),
    "cut.jpg": (file_bytes(WHOLE, "JPEG")[:1500], "truncated or corrupt"),
    "cut.gif": (file_bytes(WHOLE, "GIF")[:1500], "truncated or corrupt"),
    "header_only.jpg": (file_bytes(WHOLE, "JPEG")[:20], "not an image|truncated or corrupt"),
    "cut.webp": (file_bytes(WHOLE, "WEBP")[:500], "not an image|truncated or corrupt"),
    "cut.tif": (file_bytes(WHOLE, "TIFF")[:500], "not an image|truncated or corrupt"),
    "flipped.png": (file_bytes(WHOLE, "PNG").replace(b"IDAT", b"IDAT\xff\x00", 1), "not an image|truncated or corrupt"),
    "bomb.png": (png_header(60_000, 60_000), "pixels, .* make it smaller"),
    "wide_bomb.png": (png_header(2**31 - 1, 2**31 - 1), "pixels, .* make it smaller"),
    "over.png": (png_header(20_000, 15_000), "pixels, .* make it smaller"),
    "no_width.png": (png_header(0, 10), "not an image|no pixels|truncated or corrupt"),
    "hollow.png": (png_header(10, 10), "truncated or corrupt"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "is not an image"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named(tmp_path, name):
    data, complaint = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(JanusError, match=rf"The image .*{name} .*({complaint})"):
        open_image(tmp_path / name)


def test_truncated_files_are_read_or_reported():
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA"):
        data = file_bytes(Image.fromarray(noise(16, 16)), kind)
        for length in range(1, len(data), 1 + len(data) // 40):
            try:
                assert open_image(data[:length]).mode == "RGB"
            except JanusError as error:
                assert "The image given as" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere.png", r"nowhere\.png does not exist"),
        (".", "is not a file"),
        ("x" * 5000, "cannot be opened"),
        ("data:image/png;base64,???", "base64"),
        (Image.new("RGB", (0, 5)), "no pixels: its size is 0 x 5"),
        (3, "given as int"),
    ],
    ids=["missing", "folder", "long name", "not base64", "no pixels", "wrong type"],
)
def test_invalid_source_is_reported(source, complaint):
    with pytest.raises(JanusError, match=complaint):
        open_image(source)
