"""Stores the answers of a run on disk, so that an interrupted run can continue."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from janus_jax.buckets import is_remote
from janus_jax.errors import JanusError
from janus_jax.files import read_json, reading
from janus_jax.storage import exclusive_lock, write_bytes, write_json, writing

_JOURNALS = re.compile(r"answers(\.\d+)?\.jsonl")
_SETTINGS = "run.json"


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Records the settings of a new run in its folder, or checks that a started run has the same settings.

    Args:
      folder: The run's folder; it is created if missing.
      settings: Everything that the answers depend on, as JSON values.

    Raises:
      JanusError: The folder belongs to a run with other settings, has answers without settings, or is not writable.
      StorageFull: The disk is full.
    """
    file = folder / _SETTINGS
    if not is_remote(folder):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    with reading(file):
        exists = file.exists()
    if exists:
        recorded = read_json(file, f"remove {folder} to start again")
        for name in (*recorded, *settings):
            if recorded.get(name) != settings.get(name):
                old, new = (_shorten(values.get(name)) for values in (recorded, settings))
                raise JanusError(
                    f"{folder} belongs to a run with {name} {old}, not {new}; give another --out, or the same {name}."
                )
        return
    if _journal_files(folder):
        raise JanusError(f"{folder} contains answers but no {_SETTINGS} with their settings; give another --out.")
    write_json(file, settings)


def read_answers(folder: Path) -> dict[str, str | None]:
    """Returns the answers of all processes by item id; None for skipped items. An incomplete last line is ignored.

    Raises:
      JanusError: A complete line is damaged.
    """
    answers: dict[str, str | None] = {}
    for file in _journal_files(folder):
        with reading(file):
            lines = file.read_bytes().split(b"\n")
        # The part after the last line feed is empty or an incomplete line.
        for number, line in enumerate(lines[:-1], 1):
            with reading(f"{file}, line {number},", "remove the line to have its question asked again"):
                entry = json.loads(line)
                id, answer = str(entry["id"]), entry["answer"]
                if answers.get(id) is None:
                    answers[id] = None if answer is None else str(answer)
    return answers


class Journal:
    """File of the answers of one process, one JSON object per line; see `open_journal`.

    Args:
      write: Appends bytes to the file. Returns after they are on the disk or bucket.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def append(self, answers: Mapping[str, str | None]) -> None:
        """Appends answers, or None for skipped items. Returns after they are on the disk or bucket.

        Raises:
          StorageFull: The disk is full.
          StorageUnavailable: The bucket does not answer.
        """
        lines = (json.dumps({"id": id, "answer": answer}, ensure_ascii=False) for id, answer in answers.items())
        # A byte-level tokenizer may produce lone surrogates, which UTF-8 cannot encode.
        self._write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


@contextlib.contextmanager
def open_journal(folder: Path, process: int | None = None) -> Iterator[Journal]:
    """Opens and locks the journal of one process for appending. Removes an incomplete last line from it.

    Args:
      folder: The run's folder.
      process: Index of the process, or None for a run of a single process.

    Raises:
      JanusError: Another run is writing the file, or the file cannot be written.
    """
    path = folder / ("answers.jsonl" if process is None else f"answers.{process}.jsonl")
    if is_remote(path):
        yield Journal(_object_writer(path))
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # On file systems without locks, two runs may write at once. `read_answers` uses the first answer to a question.
    with exclusive_lock(path, folder), path.open("a+b") as file:
        with writing(folder):
            file.seek(0)
            file.truncate(_complete_length(file))

        def write(content: bytes) -> None:
            with writing(path):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        yield Journal(write)


def _object_writer(path: Path) -> Callable[[bytes], None]:
    """Returns a function that appends to an object. It writes the whole object, because a bucket cannot append."""
    with reading(path):
        content = bytearray(path.read_bytes() if path.exists() else b"")

    def write(added: bytes) -> None:
        content.extend(added)
        write_bytes(path, bytes(content))

    return write


def _journal_files(folder: Path) -> list[Path]:
    with reading(folder):
        # A network disk may not show a folder that another process has just created.
        if not folder.exists():
            return []
        return sorted(file for file in folder.iterdir() if _JOURNALS.fullmatch(file.name))


def _complete_length(file: BinaryIO) -> int:
    """Returns the number of bytes up to the end of the last complete line."""
    length = end = 0
    for line in file:
        length += len(line)
        if line.endswith(b"\n"):
            end = length
    return end


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 100 else f"{text[:100]}…"
