"""What a run has done so far, on disk: a killed run goes on from it and asks nothing twice."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from janus_jax.errors import JanusError
from janus_jax.files import read_json, reading
from janus_jax.storage import exclusive_lock, write_json, writing

_JOURNALS = re.compile(r"answers(\.\d+)?\.jsonl")
_BEGAN = "run.json"


def claim(folder: Path, began: Mapping[str, Any]) -> None:
    """Makes the folder that of a run begun with these settings, or finds that it is.

    Args:
      began: the settings that answers depend on, as json holds them.

    Raises:
      JanusError: the folder cannot be written, or its run was begun with others.
      StorageFull: the disk is full.
    """
    file = folder / _BEGAN
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        before = read_json(file, f"remove {folder} to begin anew")
        for name in (*before, *began):
            if before.get(name) != began.get(name):
                old, new = (_short(settings.get(name)) for settings in (before, began))
                raise JanusError(f"{folder} was begun with {name} {old}, not {new}; give another --out, or the same.")
        return
    if journals(folder):
        raise JanusError(f"{folder} holds answers but no {_BEGAN} that tells whose; give another --out.")
    write_json(file, began)


def journals(folder: Path) -> list[Path]:
    """The files of answers in a folder, whichever processes wrote them."""
    with reading(folder):
        # Another process has just made it, and a network's disk may not show it yet.
        if not folder.exists():
            return []
        return sorted(file for file in folder.iterdir() if _JOURNALS.fullmatch(file.name))


def read_answers(folder: Path) -> dict[str, str]:
    """All answers of a folder, by id. A last line that was broken off is not there.

    Raises:
      JanusError: a file is damaged elsewhere.
    """
    answers: dict[str, str] = {}
    for file in journals(folder):
        with reading(file):
            lines = file.read_bytes().split(b"\n")
        # What follows the last end of a line was broken off, or is nothing.
        for number, line in enumerate(lines[:-1], 1):
            with reading(f"{file}, line {number},", "remove the line, and its question is asked again"):
                entry = json.loads(line)
                answers.setdefault(str(entry["id"]), str(entry["answer"]))
    return answers


class Journal:
    """The answers of one process, appended to a file; made by `appending`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def append(self, answers: Mapping[str, str]) -> None:
        """Writes answers down; when it returns, they outlive a power cut.

        Raises:
          StorageFull: the disk is full.
        """
        lines = (json.dumps({"id": id, "answer": answer}, ensure_ascii=False) for id, answer in answers.items())
        with writing(self._file.name):
            # A lone surrogate is no UTF-8, and a model that writes bytes may write one.
            self._file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
            self._file.flush()
            os.fsync(self._file.fileno())


@contextlib.contextmanager
def appending(folder: Path, process: int | None = None) -> Iterator[Journal]:
    """A process's file of answers, to be added to; a line that was broken off is cut.

    Args:
      process: its number, where there are several; None for one alone.

    Raises:
      JanusError: another run is writing the same file, or it cannot be written.
    """
    path = folder / ("answers.jsonl" if process is None else f"answers.{process}.jsonl")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # On a file system without locks two runs may both write; an answer that is there twice counts once.
    with exclusive_lock(path, folder), path.open("a+b") as file:
        with writing(folder):
            file.seek(0)
            file.truncate(_whole_lines(file))
        yield Journal(file)


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    length = end = 0
    for line in file:
        length += len(line)
        if line.endswith(b"\n"):
            end = length
    return end


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 100 else f"{text[:100]}…"
