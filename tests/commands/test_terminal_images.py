"""Sequences that show images in terminals, decoded again, and the detection of the terminal's protocol."""

import base64
import contextlib
import io
import os
import pty
import re
import threading

import numpy as np
import pytest
from PIL import Image

from janus_jax.commands.terminal_images import detect_protocol, image_sequence

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [51, 102, 204]], np.uint8)


def picture(width, height):
    """Returns an image of few colors, whose channels are multiples of 51, so that sixels represent them exactly."""
    return Image.fromarray(COLORS[np.random.default_rng(0).integers(len(COLORS), size=(height, width))])


def decode_kitty(text):
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{control};{data}\x1b\\" for control, data in commands) + "\n" == text
    assert all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in commands)
    controls = [dict(pair.split("=") for pair in control.split(",")) for control, _ in commands]
    assert [control.pop("m") for control in controls] == ["1"] * (len(commands) - 1) + ["0"]
    assert controls[0] == {"a": "T", "f": "100", "q": "2"}
    assert not any(controls[1:])
    return Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in commands), validate=True)))


def decode_sixel(text):
    """Returns the image of a sixel sequence, by the rules of the VT340's manual. Pixels that are not set are -1."""
    width, height, data = re.fullmatch(r'\x1bP0;1;0q"1;1;(\d+);(\d+)([^\x1b]*)\x1b\\\n', text).groups()
    pixels, colors = np.full((int(height), int(width), 3), -1), {}
    x, top, color = 0, 0, None
    for number, percent, count, sixel, control in re.findall(
        r"#(\d+)(?:;2;(\d+;\d+;\d+))?|(?:!(\d+))?([?-~])|([$-])", data
    ):
        if percent:
            colors[number] = np.rint(np.array(percent.split(";"), int) * 2.55)
        elif number:
            color = colors[number]
        elif sixel:
            end = x + int(count or 1)
            assert end <= int(width)
            for row in range(6):
                if (ord(sixel) - 63) >> row & 1:
                    pixels[top + row, x:end] = color
            x = end
        else:
            x, top = 0, top + 6 * (control == "-")
    return pixels


@pytest.mark.parametrize("size", [(300, 280), (384, 384)])
def test_kitty_receives_the_image_in_chunks(size):
    image = picture(*size)
    text = image_sequence(image, "kitty")
    assert text.count("\x1b_G") > 1
    np.testing.assert_array_equal(np.asarray(decode_kitty(text)), np.asarray(image))


@pytest.mark.parametrize("size", [(300, 276), (257, 40), (1, 260)])
def test_sixels_have_the_pixels_of_the_image(size):
    image = picture(*size)
    np.testing.assert_array_equal(decode_sixel(image_sequence(image, "sixel")), np.asarray(image))


def test_sixels_of_many_colors_are_close():
    axis = np.linspace(0, 255, 256)
    image = np.stack(np.broadcast_arrays(axis, axis[:, None], 128), -1).astype(np.uint8)
    error = decode_sixel(image_sequence(Image.fromarray(image), "sixel")) - image
    assert np.abs(error).mean() < 6
    assert np.abs(error).max() < 40


def test_small_images_are_enlarged():
    image = picture(48, 32)
    expected = np.asarray(image).repeat(5, 0).repeat(5, 1)
    np.testing.assert_array_equal(np.asarray(decode_kitty(image_sequence(image, "kitty"))), expected)
    np.testing.assert_array_equal(decode_sixel(image_sequence(image, "sixel")), expected)
    assert image_sequence(image, "none") == ""


class Terminal:
    """A terminal that answers the query of `detect_protocol` with `answer`, and then sends a line of the user."""

    def __init__(self, answer):
        self.master, slave = pty.openpty()
        self.stdin, self.stdout = os.fdopen(slave), os.fdopen(os.dup(slave), "w")
        self.query = b""
        self.thread = threading.Thread(target=self._answer, args=(answer,), daemon=True)
        self.thread.start()

    def _answer(self, answer):
        with contextlib.suppress(OSError):  # Closed without a query.
            while not self.query.endswith(b"\x1b[c"):
                self.query += os.read(self.master, 1)
            os.write(self.master, answer)

    def close(self):
        self.stdin.close()
        self.stdout.close()
        self.thread.join()
        os.close(self.master)


ANSWERS = {
    "kitty": (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", "kitty"),
    "kitty and sixel": (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;4c", "kitty"),
    "sixel": (b"\x1b[?62;4;22c", "sixel"),
    "neither": (b"\x1b[?64;22;42c", "none"),
    "an error": (b"\x1b_Gi=31;EINVAL:no\x1b\\\x1b[?62;c", "none"),
    "silence": (b"", "none"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_the_terminal_is_asked(case):
    answer, expected = ANSWERS[case]
    terminal = Terminal(answer + b"hello\n" if answer else b"")
    timeout = 20 if answer else 0.1
    assert detect_protocol(terminal.stdin, terminal.stdout, {"TERM": "xterm-256color"}, timeout) == expected
    if answer:
        # The user's line is left, and the terminal again reads whole lines.
        assert terminal.stdin.readline() == "hello\n"
    terminal.close()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "dumb"}, "none"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, "none"),
        ({}, "none"),
    ],
)
def test_some_terminals_are_known_by_the_environment(environ, expected):
    terminal = Terminal(b"")
    assert detect_protocol(terminal.stdin, terminal.stdout, environ) == expected
    assert terminal.query == b""
    terminal.close()


def test_nothing_is_asked_without_a_terminal(tmp_path):
    terminal = Terminal(b"")
    with (tmp_path / "file").open("w+") as file:
        assert detect_protocol(terminal.stdin, file, {"TERM": "xterm-kitty"}) == "none"
        assert detect_protocol(file, terminal.stdout, {"TERM": "xterm"}) == "none"
    assert terminal.query == b""
    assert (tmp_path / "file").read_text() == ""
    terminal.close()
