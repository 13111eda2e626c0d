"""What a run was, so that another can be held against it, and what came of it."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Benchmark, Item, Question, Scores
from janus_jax.files import reading

_PACKAGES = ("janus_jax", "jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers")
_SAMPLES = 64
_SAMPLE = 4096
_DIGITS = 16
_NO_WEIGHTS = (".md", ".txt", ".png", ".jpg", ".jpeg", ".pdf")


def fingerprint(model: Path) -> str:
    """A few digits that tell models apart by their files, wherever those lie.

    Of a large file some places are read: training leaves none of them as they were.

    Raises:
      JanusError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in _files(model):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(model) if model.is_dir() else file.name}\0{size}\0".encode())
        with reading(file), file.open("rb") as stream:
            if size <= _SAMPLES * _SAMPLE:
                digest.update(stream.read())
                continue
            for number in range(_SAMPLES):
                stream.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:_DIGITS]


def _files(model: Path) -> list[Path]:
    if not model.is_dir():
        return [model]
    files = []
    for root, folders, names in os.walk(model):
        # What downloads leave behind is hidden.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        named = (Path(root, name) for name in sorted(names) if not name.startswith("."))
        files += [file for file in named if file.suffix.lower() not in _NO_WEIGHTS and file.is_file()]
    return files


def digest(items: Iterable[Item]) -> str:
    """A few digits that tell sets of questions apart."""
    found = hashlib.sha256()
    for item in items:
        for part in (item.id, *item.asked):
            content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            # Its length says where it ends.
            found.update(len(content).to_bytes(8) + content)
    return found.hexdigest()[:_DIGITS]


def check_pictures(questions: Iterable[Question]) -> None:
    """Checks that the files of all pictures are there, before a model is loaded for them.

    Raises:
      JanusError: one is not.
    """
    known: dict[Path, set[str]] = {}
    for question in questions:
        for source in (image for message in question.messages for image in message.get("images", ())):
            if not isinstance(source, os.PathLike):
                continue
            path = Path(source)
            # One listing a folder: asking for each file of a network's disk takes minutes.
            if path.parent not in known:
                known[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name not in known[path.parent]:
                raise JanusError(f"{path}, the picture of question {question.id}, is missing; --list shows the layout.")


def versions() -> dict[str, str]:
    """Of Python and the packages that answers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(benchmark: Benchmark[Any], scores: Scores, model: str, paper: bool = True) -> str:
    """Figures by name, those that the papers print first and with the published row of that model.

    Args:
      model: its config's name.
      paper: whether the scores are comparable with the papers': not where only some questions were asked.
    """
    row = benchmark.published.get(model, {}) if paper else {}
    names = sorted(scores, key=lambda name: name not in row)
    return "\n".join(_lines(benchmark, names, scores, row, model))


def _lines(
    benchmark: Benchmark[Any], names: Sequence[str], scores: Scores, row: Mapping[str, float], model: str
) -> Iterator[str]:
    width = max(map(len, names), default=0)
    yield benchmark.title
    if row:
        yield f"{'':{width}}  {'here':>8}  {'paper':>8}  ({model})"
    for name in names:
        published = f"  {_printed(row[name]):>8}" if name in row else ""
        yield f"{name:{width}}  {scores[name]:8.2f}{published}"
    absent = {name: value for name, value in row.items() if name not in scores}
    for name, value in absent.items():
        yield f"{name}: {_printed(value)} in the paper; it is graded outside, from predictions/"


def _printed(value: float) -> str:
    """As the papers print it: with one digit, or two where they give them."""
    return f"{value:.1f}" if value == round(value, 1) else f"{value:.2f}"
