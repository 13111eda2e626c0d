"""Hashes that identify models and questions, package versions, and the table of scores."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from janus_jax.evaluation.benchmark import Benchmark, Item, Scores
from janus_jax.files import reading

_PACKAGES = ("janus_jax", "jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers")
_SAMPLES = 64
_SAMPLE_BYTES = 4096
_HASH_DIGITS = 16
_IGNORED_SUFFIXES = (".md", ".txt", ".png", ".jpg", ".jpeg", ".pdf")


def model_fingerprint(model: Path) -> str:
    """Returns a hash of a model's file or folder, independent of its location.

    Only samples of large files are hashed, because training changes every part of a weight file.

    Raises:
      JanusError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for file in _model_files(model):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(model) if model.is_dir() else file.name}\0{size}\0".encode())
        with reading(file), file.open("rb") as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            for number in range(_SAMPLES):
                stream.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:_HASH_DIGITS]


def _model_files(model: Path) -> list[Path]:
    if not model.is_dir():
        return [model]
    files = []
    for root, folders, names in os.walk(model):
        # Download tools leave hidden files in the folder.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (Path(root, name) for name in sorted(names) if not name.startswith("."))
        files += [file for file in visible if file.suffix.lower() not in _IGNORED_SUFFIXES and file.is_file()]
    return files


def items_digest(items: Iterable[Item]) -> str:
    """Returns a hash of all items' ids and inputs."""
    digest = hashlib.sha256()
    for item in items:
        for part in (item.id, *item.inputs):
            content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            # With the lengths, different parts never give the same bytes.
            digest.update(len(content).to_bytes(8) + content)
    return digest.hexdigest()[:_HASH_DIGITS]


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that answers depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def format_table(benchmark: Benchmark[Any], scores: Scores, model: str, *, compare: bool = True) -> str:
    """Formats scores as a table. Scores that the papers report come first.

    Args:
      model: `ModelConfig.name` of the model, which selects the published scores.
      compare: Whether to show published scores. They are not comparable to scores of a subset of the questions.
    """
    published = benchmark.published_scores(model) if compare else {}
    names = sorted(scores, key=lambda name: name not in published)
    width = max(map(len, names), default=0)
    lines = [benchmark.title]
    if published:
        lines.append(f"{'':{width}}  {'here':>8}  {'paper':>8}  ({model})")
    for name in names:
        paper = f"  {_format_published(published[name]):>8}" if name in published else ""
        lines.append(f"{name:{width}}  {scores[name]:8.2f}{paper}")
    for name, value in published.items():
        if name not in scores:
            lines.append(
                f"{name}: {_format_published(value)} in the paper; an external scorer computes it from predictions/"
            )
    return "\n".join(lines)


def _format_published(value: float) -> str:
    """Formats a score with one decimal, or with two where the paper prints two."""
    return f"{value:.1f}" if value == round(value, 1) else f"{value:.2f}"
