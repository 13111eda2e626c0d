"""Reads tars in which neighboring members with the same base name are a sample."""

import contextlib
import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import SourceOptions, reject_damaged_file
from janus_jax.data.sources.fields import check_size
from janus_jax.data.sources.input_files import InputFile, is_skipped

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "img", "bmp", "gif", "tif", "tiff")
TEXT_ENDINGS = ("txt", "caption", "cap", "text", "json", "cls")


def is_tar(file: InputFile) -> bool:
    """Returns whether a file is a tar, by its name or its content."""
    return file.path.name.lower().endswith(TAR_ENDINGS) or tarfile.is_tarfile(file.path)


@dataclass
class Sample:
    """Members with one base name.

    Attributes:
      key: Base name.
      members: Content by ending in lower case, such as `jpg` or `input.jpg`. None: the ending is not read.
      error: Error that rejects the sample, or None.
    """

    key: str
    members: dict[str, bytes | None] = field(default_factory=dict)
    error: RejectedRecord | None = None

    @property
    def contents(self) -> dict[str, bytes]:
        """The members that were read, by ending.

        Raises:
          RejectedRecord: The sample is rejected.
        """
        if self.error:
            raise self.error
        return {ending: content for ending, content in self.members.items() if content is not None}


def tar_samples(file: InputFile, options: SourceOptions) -> Iterator[Sample]:
    """Yields the samples of a tar. Reads images, texts and the members that the options name.

    Raises:
      RejectedRecord: The rest of the tar is damaged.
    """
    seen: set[str] = set()
    # Samples before damaged content are complete. The sample at the damage and those after it are lost.
    with reject_damaged_file(file.path), tarfile.open(file.path, "r|*", tarinfo=_StrictHeader) as tar:
        members = (member for member in tar if member.isfile() and not is_skipped(member.name.removeprefix("./")))
        for key, group in itertools.groupby(members, lambda member: _split_name(member)[0]):
            sample = Sample(key)
            if key in seen:
                message = f"{key} occurs twice in the tar; the members of a sample must be neighbors."
                sample.error = RejectedRecord(RejectReason.MALFORMED, message)
            seen.add(key)
            for member in group:
                _add_member(sample, tar, member, options)
            yield sample


def _split_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Returns the base name with its folder, and the suffix."""
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


class _StrictHeader(tarfile.TarInfo):
    """Header that raises if it is damaged or missing. `TarInfo` would treat it as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"missing header: {error}") from error


def _add_member(sample: Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, options: SourceOptions) -> None:
    ending = _split_name(member)[1]
    sample.members[ending] = None
    wanted = {options.image_field, options.text_field}
    if sample.error or not (ending in wanted or last_part(ending) in (*IMAGE_ENDINGS, *TEXT_ENDINGS)):
        return
    try:
        check_size(member.size, member.name)
    except RejectedRecord as error:
        sample.error = error
        return
    with contextlib.closing(tar.extractfile(member)) as content:  # type: ignore[type-var]  # Not None for a file.
        sample.members[ending] = content.read()  # type: ignore[union-attr]


def last_part(ending: str) -> str:
    """Returns the last part of an ending such as `input.jpg`."""
    return ending.rpartition(".")[2]
