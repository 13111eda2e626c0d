"""Images in a folder and its subfolders, with captions from file names, folder names or text files.

cats/a_cat_on_a_mat.jpg    caption: "a cat on a mat" (name) or "cats" (folder)
cats/a_cat_on_a_mat.txt    caption: the text of the file (text)
"""

import functools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import CaptionFrom, Entry, Part, SourceOptions, register_source
from janus_jax.data.sources.class_names import class_caption
from janus_jax.data.sources.fields import ImageFolder, caption_record, get_text
from janus_jax.data.sources.input_files import InputFile, wrong_ending
from janus_jax.processing import Task

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTION_ENDINGS = (".txt", ".caption", ".cap")


@register_source("folder", Task.GENERATION, Task.UNDERSTANDING, endings=IMAGE_ENDINGS)
def folder(options: SourceOptions) -> Iterator[Part]:
    """Reads the images of folders."""
    files = options.files(*IMAGE_ENDINGS)
    for file in files:
        if file.path.suffix.lower() not in IMAGE_ENDINGS:
            raise wrong_ending(file.path, "folder", IMAGE_ENDINGS)
    caption_from = options.caption_from or ("text" if any(_caption_file(file.path) for file in files) else "name")
    for first in range(0, len(files), options.shard_records):
        some = files[first : first + options.shard_records]
        stamp = zlib.crc32("".join(f"{file.label}\0{file.bytes}\n" for file in some).encode("utf-8", "surrogateescape"))
        yield Part(f"images:{first}", functools.partial(_entries, some, caption_from, options), len(some), stamp)


def _caption_file(image: Path) -> Path | None:
    return next((path for ending in CAPTION_ENDINGS if (path := image.with_suffix(ending)).is_file()), None)


def _entries(files: Sequence[InputFile], caption_from: CaptionFrom, options: SourceOptions) -> Iterator[Entry]:
    for file in files:
        yield Entry(file.label, functools.partial(_record, file, caption_from, options))


def _record(file: InputFile, caption_from: CaptionFrom, options: SourceOptions) -> Record:
    image = ImageFolder(str(file.path.parent)).read(file.path.name)
    return caption_record(file.label, (_caption(file.path, caption_from, options),), image, options)


def _caption(image: Path, caption_from: CaptionFrom, options: SourceOptions) -> str:
    if caption_from == "folder":
        return get_text(class_caption(image.parent.name, options.class_names))
    if caption_from == "name":
        return get_text(image.stem.replace("_", " "))
    path = _caption_file(image)
    if path is None:
        message = f"it has no text file with its name ({', '.join(CAPTION_ENDINGS)}); see --caption_from."
        raise RejectedRecord(RejectReason.MISSING_FIELD, message)
    return get_text(ImageFolder(str(path.parent)).read(path.name))
