"""Writes PNG files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from janus_jax.storage import write_bytes


def save_png(
    image: Image.Image, path: Path, metadata: Mapping[str, Any] | None = None, compress_level: int = 6
) -> None:
    """Writes a PNG file atomically. Creates its folder.

    Args:
      image: The image.
      path: The file to write.
      metadata: Names and values of the PNG's text chunks.
      compress_level: From 0 (fastest) to 9 (smallest).

    Raises:
      JanusError, StorageFull: See `storage.writing`.
    """
    info = PngInfo()
    for name, value in (metadata or {}).items():
        info.add_text(name, str(value))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=compress_level)
    write_bytes(path, buffer.getvalue())
