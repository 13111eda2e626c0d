"""Pictures and names of emoji, and a split that holds out variants and whole emoji.

The pictures are those of the npm package emoji-datasource-google, fetched by `npm pack`. The split depends on the names
only.
"""

import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error

PACKAGE, VERSION = "emoji-datasource-google", "16.0.0"

_TABLE = "package/emoji.json"
_PICTURES = "package/img/google/64/"
_DAMAGE: tuple[type[Exception], ...] = (*PARSE_ERRORS, tarfile.TarError, zlib.error)
_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
_HAIR = re.compile(r": (red|curly|white|blond) hair$|: bald$")
_DIRECTION = re.compile(r" facing right$")
_PEOPLE = re.compile(r"\b(man|woman|person|men|women|people|male|female|boy|girl)\b")


class Split(StrEnum):
    """Split of a picture.

    TRAIN: Used in training.
    VARIANT: A skin tone, hair or direction that training shows for other emoji only. Training shows the emoji itself.
    EMOJI: An emoji or a flag of which training shows no variant.
    """

    TRAIN = "train"
    VARIANT = "variant"
    EMOJI = "emoji"


@dataclass(frozen=True)
class Emoji:
    """One picture with its names.

    Attributes:
      file: Name of the picture's file.
      name: Full name, for example "waving hand sign, dark skin tone". No two pictures have the same.
      base: Name without the skin tone.
      category: One of the package's categories, for example "food & drink".
      keywords: Other short names, with the skin tone.
      split: Split of the picture.
    """

    file: str
    name: str
    base: str
    category: str
    keywords: tuple[str, ...]
    split: Split


def read_package(package: Path, folder: Path) -> list[Emoji]:
    """Reads the emoji of a package, and writes their pictures to a folder.

    Args:
      package: The .tgz that `npm pack` writes.
      folder: Folder for the pictures.

    Raises:
      JanusError: The file is not this package, or it is damaged.
    """
    try:
        with tarfile.open(package) as tar:
            # In one pass, because a compressed archive is slow to search.
            files = {member.name: _content(tar, member) for member in tar if _is_used(member.name)}
        found = list(_read_table(json.loads(files[_TABLE])))
        pictures = {emoji.file: files[_PICTURES + emoji.file] for emoji in found}
    except _DAMAGE as error:
        raise JanusError(
            f"{package} is not a readable package of emoji ({describe_error(error)}); fetch it with npm pack "
            f"{PACKAGE}@{VERSION}."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)
    return found


def _is_used(name: str) -> bool:
    return name == _TABLE or name.startswith(_PICTURES)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _read_table(table: list[Mapping[str, Any]]) -> Iterator[Emoji]:
    counts = Counter(entry["name"] for entry in table)
    for entry in sorted(table, key=lambda entry: int(entry["sort_order"])):
        words = [name.replace("_", " ").replace("-", " ") for name in entry["short_names"]]
        # Two entries have the same name, but different short names.
        base = entry["name"].lower() if counts[entry["name"]] == 1 else words[0]
        category = entry["category"].lower()
        keywords = [word for word in words if word != base and category != "flags"]
        family = _family(base)
        variants = {"": entry, **entry.get("skin_variations", {})}
        for tones, variant in variants.items():
            if variant["has_img_google"]:
                suffix = _tone_words(tones)
                yield Emoji(
                    file=variant["image"],
                    name=base + suffix,
                    base=base,
                    category=category,
                    keywords=tuple(word + suffix for word in keywords),
                    split=_split(base, family, tones, len(variants) - 1),
                )


def _tone_words(tones: str) -> str:
    words = list(dict.fromkeys(_TONES[tone] for tone in tones.split("-"))) if tones else []
    return f", {' and '.join(words)} skin tone" if words else ""


def _family(base: str) -> str:
    """Returns the part of the name that is the same for all genders, hair and directions."""
    return " ".join(_PEOPLE.sub("", _DIRECTION.sub("", _HAIR.sub("", base))).split())


def _split(base: str, family: str, tones: str, num_tones: int) -> Split:
    if _one_in(20, family) and family:
        return Split.EMOJI
    if (_HAIR.search(base) and _one_in(4, base)) or (_DIRECTION.search(base) and _one_in(3, base)):
        return Split.VARIANT
    if num_tones == len(_TONES) and tones:
        # Every second emoji lacks one skin tone in training.
        hidden = list(_TONES)[zlib.crc32(base.encode()) % len(_TONES)]
        return Split.VARIANT if tones == hidden and _one_in(2, f"{base} tone") else Split.TRAIN
    return Split.VARIANT if tones and _one_in(5, f"{base} {tones}") else Split.TRAIN


def _one_in(count: int, text: str) -> bool:
    return zlib.crc32(text.encode()) // 7 % count == 0
