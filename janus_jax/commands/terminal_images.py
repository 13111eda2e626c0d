"""Images in the terminal, by the graphics protocol of kitty or as sixels."""

import base64
import contextlib
import io
import os
import re
import select
import time
from collections.abc import Mapping
from typing import Literal, TextIO

import numpy as np
from PIL import Image

Protocol = Literal["kitty", "sixel", "none"]
"""How a terminal shows images. "none": not at all."""

_MIN_SIDE = 256  # pixels; smaller images are enlarged
_MAX_COLORS = 256
_CHUNK = 4096  # most bytes of a command's data in kitty's protocol

_KITTY_TERMINALS = ("xterm-kitty", "xterm-ghostty")
_NO_QUERY_TERMINALS = ("", "dumb", "linux")  # They answer no query, or print its text.
# kitty's query for an image of one pixel, then the request for the attributes of the terminal. Terminals answer the
# latter even if they ignore the former.
_QUERY = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL_ATTRIBUTE = b"4"


def detect_protocol(stdin: TextIO, stdout: TextIO, environ: Mapping[str, str], timeout: float = 1.0) -> Protocol:
    """Returns the protocol of the terminal to which `stdout` writes.

    The terminal is asked, unless the environment names it. The answer comes from `stdin`.

    Args:
      environ: Environment variables.
      timeout: Seconds to wait for the terminal's answer.
    """
    if not stdout.isatty():
        return "none"
    if environ.get("TERM") in _KITTY_TERMINALS:
        return "kitty"
    silent = environ.get("TERM", "") in _NO_QUERY_TERMINALS or environ.get("TERM_PROGRAM") == "Apple_Terminal"
    if silent or not stdin.isatty() or not _in_foreground(stdin.fileno()):
        return "none"
    reply = _ask(stdin.fileno(), stdout, timeout)
    if b"\x1b_Gi=31;OK" in reply:
        return "kitty"
    attributes = _ATTRIBUTES.search(reply)
    return "sixel" if attributes and _SIXEL_ATTRIBUTE in attributes[1].split(b";") else "none"


def image_sequence(image: Image.Image, protocol: Protocol) -> str:
    """Returns the characters that make a terminal show an image, or an empty string for "none"."""
    if protocol == "none":
        return ""
    image = image.convert("RGB")
    factor = max(1, _MIN_SIDE // max(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return (_kitty(image) if protocol == "kitty" else _sixel(image)) + "\n"


def _kitty(image: Image.Image) -> str:
    """Returns the commands that send an image as PNG.

    Source: https://sw.kovidgoyal.net/kitty/graphics-protocol
    """
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    # q=2: the terminal sends no answer, which the next prompt would read as input.
    controls = ["a=T,f=100,q=2,"] + [""] * (len(chunks) - 1)
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(
        f"\x1b_G{control}m={flag};{chunk}\x1b\\" for control, flag, chunk in zip(controls, more, chunks, strict=True)
    )


def _sixel(image: Image.Image) -> str:
    """Returns an image of at most 256 colors as sixels: bands of six rows, one line of a band per color.

    Source: VT330/VT340 Programmer Reference Manual, volume 2, chapter 14.
    """
    reduced = image.quantize(_MAX_COLORS, Image.Quantize.MEDIANCUT)
    palette = np.array(reduced.getpalette()).reshape(-1, 3)
    # A sixel has the intensities of the channels in percent.
    colors = "".join(f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(np.rint(palette / 2.55).astype(int).tolist()))
    indices = np.asarray(reduced)
    rows = 1 << np.arange(6)
    bands = []
    for top in range(0, len(indices), 6):
        band = indices[top : top + 6]
        lines = []
        for color in np.unique(band).tolist():
            bits = rows[: len(band)] @ (band == color)
            lines.append(f"#{color}" + _run_lengths((bits + 63).astype(np.uint8).tobytes().decode()))
        bands.append("$".join(lines))
    return f'\x1bP0;1;0q"1;1;{image.width};{image.height}{colors}' + "-".join(bands) + "\x1b\\"


def _run_lengths(sixels: str) -> str:
    return re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", sixels)


def _in_foreground(terminal: int) -> bool:
    """Returns whether the process may read from its terminal. The system stops background processes that do."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # Not the controlling terminal, which has no background processes.
        return True


def _ask(terminal: int, stdout: TextIO, timeout: float) -> bytes:
    """Returns the terminal's answer to `_QUERY`, as far as it comes in time."""
    import termios
    import tty

    reply, deadline = b"", time.monotonic() + timeout
    with contextlib.suppress(termios.error):
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal, termios.TCSANOW)  # Without echo, and without waiting for a line feed.
            stdout.write(_QUERY)
            stdout.flush()
            # Byte by byte, so that what the user types next is left.
            while not _ATTRIBUTES.search(reply):
                if not select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
                    break
                if not (byte := os.read(terminal, 1)):
                    break
                reply += byte
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
    return reply
