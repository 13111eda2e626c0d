"""Pictures into a folder: PNGs that say how they were drawn, each there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tqdm
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from janus_jax.errors import JanusError

if TYPE_CHECKING:
    from janus_jax import Pretrained
    from janus_jax.generation.image_sampler import ImageSampler


@contextlib.contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """A folder that can be written, made if need be; what it made goes again if nothing came into it.

    Raises:
      JanusError: it cannot be made or written.
    """
    made: list[Path] = []
    try:
        with _told_of(path):
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        yield path
    finally:
        for folder in made:
            # Refused where something lies in it.
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JanusError(f"{path} cannot be written ({error.strerror or error}); give another folder.") from error


def save_png(image: Image.Image, path: Path, notes: Mapping[str, Any]) -> None:
    """Writes a PNG with `notes` in its text chunks. A killed process leaves no half picture of that name.

    Raises:
      JanusError: it cannot be written.
    """
    info = PngInfo()
    for name, value in notes.items():
        info.add_text(name, str(value))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _told_of(path):
            image.save(temporary, "PNG", pnginfo=info)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def drawing_bar(model: "Pretrained", drawing: "ImageSampler", num_images: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over the steps of all images; gives `Pretrained.generate`'s `report`."""
    total = drawing.num_steps(model.config) * num_images
    with tqdm.tqdm(total=total, unit=drawing.unit, desc="drawing", smoothing=0.1) as bar:

        def report(count: int) -> None:
            bar.update(count)

        yield report
