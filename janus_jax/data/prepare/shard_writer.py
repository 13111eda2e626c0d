"""Writes a prepared dataset: one shard per part of the source. An interrupted run can be resumed.

    OUTPUT/
      records-train.array_record-00000-of-00012 ...   the shards
      dataset_info.json, features.json                TFDS metadata; written last
      preparation.json                                arguments, counts and sizes
      quarantine.jsonl                                rejected records with their reasons
      .prepare/                                       scratch folder with the counts of each finished shard

The bytes of a shard depend only on the source and its options. They are therefore the same after a killed run, with
another number of processes, and with Apache Beam (`beam.py`).
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from janus_jax.data.prepare.validation import ValidRecord, validate
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.shards import read_shard, shard_path, write_metadata, write_shard
from janus_jax.data.sources import Entry, Part, SourceOptions, get_source
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error, read_json, read_json_if_exists, reading
from janus_jax.processing import Background, EditingFormat, Task, editing_style
from janus_jax.storage import write_bytes

SUMMARY = "preparation.json"
QUARANTINE = "quarantine.jsonl"
_SCRATCH = ".prepare"

WITH_IMAGE_TOKENS = (Task.GENERATION, Task.EDITING, Task.INTERLEAVED)
"""Tasks whose records can have precomputed image tokens."""

MIN_ENTRIES = 1000
"""Number of entries after which a run stops if too many of them are rejected."""

_MAX_UNUSED = 1000
"""Number of unused fields that are counted by name in a shard."""

_MAX_UNUSED_SHOWN = 20
"""Number of unused fields in the printed summary. `SUMMARY` has all."""

OnEntry = Callable[[bool], None]
"""Function called after each entry, with True if the entry was accepted."""


@dataclass(frozen=True)
class DatasetSpec:
    """Describes a dataset to prepare.

    Attributes:
      source: Name of the source, see `get_source`.
      options: Options of the source.
      output: Folder of the dataset.
      split: Name of the split to write.
      tokenizer: Name of the checkpoint that precomputes image tokens or latents, or None.
      image_tokenizer: Fingerprint of that image tokenizer or VAE (`encode_images.OpenedEncoder.fingerprint`). Set by
        `prepare`.
      background: Background of transparent pixels, see `Background`.
      editing: Editing style whose training reads the image tokens of edits. Styles differ in how they make images
        square.
    """

    source: str
    options: SourceOptions
    output: Path
    split: str = "train"
    tokenizer: str | None = None
    image_tokenizer: Mapping[str, Any] | None = None
    background: Background = "none"
    editing: EditingFormat = "janus_4o"

    def __post_init__(self) -> None:
        task = self.options.task
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.split):
            raise JanusError(f"--split {self.split!r:.80} is not valid; use letters, digits and _.")
        if task not in (tasks := get_source(self.source).tasks):
            raise JanusError(
                f"--task {task.value} is not supported by --source {self.source}; "
                f"use {' or '.join(task.value for task in tasks)}."
            )
        if self.tokenizer is not None and task not in WITH_IMAGE_TOKENS:
            raise JanusError(
                f"--tokenizer needs --task {' or '.join(one.value for one in WITH_IMAGE_TOKENS)}, not {task.value}; "
                f"leave it out."
            )
        editing_style(self.editing)

    @property
    def scratch(self) -> Path:
        """Folder of unfinished work."""
        return self.output / _SCRATCH


class StoredTokens(NamedTuple):
    """Origin of the image tokens or latents of a prepared dataset.

    Attributes:
      fingerprint: Fingerprint of the image tokenizer or VAE that encoded it; None if it is unknown.
      editing: Editing style of the image tokens of edits; None for other tasks.
    """

    fingerprint: dict[str, Any] | None
    editing: str | None


def stored_tokens(dataset: Path) -> StoredTokens:
    """Returns the origin of the image tokens or latents of a prepared dataset."""
    job = read_json_if_exists(dataset / SUMMARY).get("job")
    if not isinstance(job, dict):
        return StoredTokens(None, None)
    return StoredTokens(job.get("image_tokenizer"), job.get("editing_style"))


@dataclass(frozen=True)
class ShardStats:
    """Counts of one or more shards.

    Attributes:
      records: Number of records.
      bytes: Size of the shards in bytes.
      tasks: Number of records by task.
      rejected: Number of rejected entries by reason.
      transparent_images: Number of images with transparent pixels in the input.
      unused: Number of records with an unused input field, by field.
    """

    records: int = 0
    bytes: int = 0
    tasks: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    transparent_images: int = 0
    unused: Mapping[str, int] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return self.records + self.num_rejected

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    def __add__(self, other: "ShardStats") -> "ShardStats":
        return ShardStats(
            self.records + other.records,
            self.bytes + other.bytes,
            dict(Counter(self.tasks) + Counter(other.tasks)),
            dict(Counter(self.rejected) + Counter(other.rejected)),
            self.transparent_images + other.transparent_images,
            dict(Counter(self.unused) + Counter(other.unused)),
        )


@dataclass(frozen=True)
class Summary:
    """Counts of a finished dataset. `str` formats them as a table."""

    output: Path
    split: str
    shards: int
    total: ShardStats
    background: Background = "none"

    def __str__(self) -> str:
        total = self.total
        transparent: list[tuple[str, object]] = [
            ("transparent images", total.transparent_images),
            ("  background", self.background),
        ]
        rows: list[tuple[str, object]] = [
            ("split", self.split),
            ("shards", self.shards),
            ("records", total.records),
            *((f"  {task}", count) for task, count in sorted(total.tasks.items())),
            *(transparent if total.transparent_images else ()),
            ("size", tqdm.format_sizeof(total.bytes, "B")),
            ("rejected", f"{total.num_rejected} ({total.num_rejected / max(1, total.entries):.2%})"),
            *((f"  {reason}", count) for reason, count in sorted(total.rejected.items())),
        ]
        if total.unused:
            names = sorted(total.unused, key=lambda name: (-total.unused[name], name))
            rows.append(("unused fields", len(names)))
            rows += [(f"  {name}", total.unused[name]) for name in names[:_MAX_UNUSED_SHOWN]]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join([str(self.output), *(f"  {name:<{width}}{value!s:>12}" for name, value in rows)])


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a dataset and records which are finished. Made by `open_shard_writer`.

    Attributes:
      spec: The dataset.
      parts: Parts of the source, one per shard.
      summary: Summary if the dataset is already finished, else None.
    """

    spec: DatasetSpec
    parts: tuple[Part, ...]
    summary: Summary | None = None

    def unfinished(self) -> list[int]:
        """Returns the indices of the shards that are not finished."""
        return [index for index in range(len(self.parts)) if not self._stats_file(index).exists()]

    def finished(self) -> list[int]:
        """Returns the indices of the finished shards."""
        return [index for index in range(len(self.parts)) if self._stats_file(index).exists()]

    def finished_stats(self) -> ShardStats:
        """Returns the total counts of the finished shards."""
        return sum(map(self.stats, self.finished()), ShardStats())

    def stats(self, index: int) -> ShardStats:
        """Returns the counts of a finished shard."""
        return ShardStats(**read_json(self._stats_file(index)))

    def shard(self, index: int) -> Path:
        """Returns the path of a shard."""
        return shard_path(self.spec.output, self.spec.split, index, len(self.parts))

    def write(self, index: int, on_entry: OnEntry = lambda accepted: None) -> None:
        """Writes one shard. Concurrent calls for the same shard are safe.

        Raises:
          JanusError, StorageFull: The input cannot be read, or the output cannot be written.
        """
        part = self.parts[index]
        rejected: Counter[str] = Counter()
        tasks: Counter[str] = Counter()
        transparent_images = 0
        unused: Counter[str] = Counter()
        quarantine: list[str] = []

        def reject(key: str, error: RejectedRecord) -> None:
            rejected[error.reason.value] += 1
            quarantine.append(json.dumps({"key": key, "reason": error.reason.value, "message": str(error)}))
            on_entry(False)

        def records() -> Iterator[Record]:
            nonlocal transparent_images
            key = part.name
            try:
                for entry in part.entries():
                    key = entry.key
                    try:
                        record, transparent = _make_record(entry, self.spec.background)
                    except RejectedRecord as error:
                        reject(key, error)
                    else:
                        yield record
                        tasks[record.task.value] += 1
                        transparent_images += transparent
                        unused.update(name if len(unused) < _MAX_UNUSED else "others" for name in record.unused)
                        on_entry(True)
            except RejectedRecord as error:
                reject(f"{key} and the rest of the part", error)

        try:
            count, size = write_shard(self.shard(index), records(), self.spec.scratch)
        finally:
            # Also if writing fails, because the rejections may explain why.
            _write_lines(self._quarantine_file(index), quarantine)
        self._write_stats(index, ShardStats(count, size, tasks, rejected, transparent_images, unused))

    def without_image_tokens(self) -> list[int]:
        """Returns the indices of the finished shards to which `add_image_tokens` has not added image tokens."""
        return [index for index in self.finished() if not self._tokens_file(index).exists()]

    def add_image_tokens(self, index: int, add: Callable[[Iterator[Record]], Iterator[Record]]) -> None:
        """Rewrites a finished shard with the records that `add` returns: the same ones with image tokens or latents."""
        count, size = write_shard(self.shard(index), add(read_shard(self.shard(index))), self.spec.scratch)
        self._write_stats(index, dataclasses.replace(self.stats(index), records=count, bytes=size))
        _write_lines(self._tokens_file(index), [])

    def check_rejected(self, entries: int, rejected: int, max_rejected: float) -> None:
        """Checks the share of rejected entries.

        Raises:
          JanusError: The share of rejected entries is larger than `max_rejected`.
        """
        if rejected <= max_rejected * entries:
            return
        state = "Finished shards are kept." if self.finished_stats().records else self._quarantine_note()
        raise JanusError(
            f"{self._describe_rejections(entries, rejected)}, and --max_rejected is {max_rejected:g}; fix the input or "
            f"the flags, or raise the limit. {state}"
        )

    def release_output(self) -> None:
        """Removes all shards and the scratch folder, so that the output folder can be used with other options.

        Keeps the list of rejected records.
        """
        if lines := list(map(json.dumps, self._quarantine_lines())):
            _write_lines(self.spec.output / QUARANTINE, lines)
        for index in range(len(self.parts)):
            self.shard(index).unlink(missing_ok=True)
        _remove_scratch(self.spec)

    def finish(self, max_rejected: float) -> Summary:
        """Writes the metadata, which completes the dataset, and removes the scratch folder. Returns the counts.

        Raises:
          JanusError: Too many entries are rejected, no record is accepted, or image tokens are missing.
        """
        spec, shards = self.spec, len(self.parts)
        stats = list(map(self.stats, range(shards)))
        total = sum(stats, ShardStats())
        if spec.tokenizer is not None and self.without_image_tokens():
            raise JanusError(f"{spec.output} has shards without image tokens; run the same command again.")
        self.check_rejected(total.entries, total.num_rejected, max_rejected)
        if not total.records and total.num_rejected:
            raise JanusError(
                f"--input {' '.join(spec.options.inputs)} has no records that can be used: "
                f"{self._describe_rejections(total.entries, total.num_rejected)}; fix the input or the flags. "
                f"{self._quarantine_note()}"
            )
        if not total.records:
            raise _no_records(spec)
        _write_lines(spec.output / QUARANTINE, map(json.dumps, self._quarantine_lines()))
        write_metadata(spec.output, spec.split, [(one.records, one.bytes) for one in stats])
        content = {"job": _fingerprint(spec, self.parts), "shards": shards, "total": vars(total)}
        _write_lines(spec.output / SUMMARY, [json.dumps(content, indent=2, sort_keys=True)])
        _remove_scratch(spec)
        return Summary(spec.output, spec.split, shards, total, spec.background)

    def _describe_rejections(self, entries: int, rejected: int) -> str:
        lines = list(self._quarantine_lines())
        reasons = Counter(line["reason"] for line in lines).most_common(3)
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons) or "reasons unknown"
        example = f" (such as {lines[0]['key']}: {lines[0]['message'].rstrip('.')})" if lines else ""
        return f"{rejected} of {entries} records were rejected, {counts}{example}"

    def _quarantine_note(self) -> str:
        return f"{self.spec.output / QUARANTINE} lists them, and the folder can be used again."

    def _stats_file(self, index: int) -> Path:
        return self.spec.scratch / f"{index:05}.json"

    def _tokens_file(self, index: int) -> Path:
        return self.spec.scratch / f"{index:05}.tokens"

    def _quarantine_file(self, index: int) -> Path:
        return self.spec.scratch / f"{index:05}.rejected.jsonl"

    def _write_stats(self, index: int, stats: ShardStats) -> None:
        _write_lines(self._stats_file(index), [json.dumps(vars(stats))])

    def _quarantine_lines(self) -> Iterator[dict[str, Any]]:
        for path in map(self._quarantine_file, range(len(self.parts))):
            if path.exists():
                yield from map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])


def open_shard_writer(spec: DatasetSpec, on_part: Callable[[int], object] = lambda count: None) -> ShardWriter:
    """Splits the source into parts and opens the output folder, or creates it.

    Args:
      spec: The dataset. Its output folder must be new, empty, or from the same spec. It may contain the list of
        rejected records that a run without any valid record left.
      on_part: Called with the number of parts so far, because splitting large tables takes a while.

    Raises:
      JanusError: The input has an error, or the output folder contains other files or a dataset of another spec.
    """
    output = spec.output
    with reading(output, "give another --output"):
        if output.exists():
            if not output.is_dir():
                raise JanusError(f"--output {output} is not a folder; give another.")
            names = {path.name for path in output.iterdir()}
            if (others := names - {QUARANTINE}) and not names & {SUMMARY, _SCRATCH}:
                raise JanusError(
                    f"--output {output} contains other files ({min(others)}); give an empty or new folder."
                )
    found: list[Part] = []
    for part in get_source(spec.source).parts(spec.options):
        found.append(part)
        on_part(len(found))
    parts = tuple(found)
    if not parts:
        raise _no_records(spec)
    fingerprint = _fingerprint(spec, parts)
    summary_file, spec_file = spec.output / SUMMARY, spec.scratch / "job.json"
    if summary_file.exists():
        content = read_json(summary_file)
        _check_fingerprint(spec.output, content["job"], fingerprint)
        _remove_scratch(spec)
        total = ShardStats(**content["total"])
        summary = Summary(spec.output, spec.split, content["shards"], total, spec.background)
        return ShardWriter(spec, parts, summary)
    with reading(spec.output, "give another --output"):
        spec.scratch.mkdir(parents=True, exist_ok=True)
    if spec_file.exists():
        _check_fingerprint(spec.output, read_json(spec_file), fingerprint)
    else:
        (spec.output / QUARANTINE).unlink(missing_ok=True)  # Of an earlier run that accepted no record.
        _write_lines(spec_file, [json.dumps(fingerprint)])
    return ShardWriter(spec, parts)


def _remove_scratch(spec: DatasetSpec) -> None:
    # NFS does not remove a folder with open files, such as the lock. The next run removes it.
    shutil.rmtree(spec.scratch, ignore_errors=True)


def _no_records(spec: DatasetSpec) -> JanusError:
    return JanusError(f"--input {' '.join(spec.options.inputs)} has no records; check the files.")


def _check_fingerprint(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise JanusError(
                f"--output {output} was prepared with {name} = {before.get(name)!r:.100}, not {value!r:.100}; give "
                f"another folder, or remove that one."
            )


def _fingerprint(spec: DatasetSpec, parts: tuple[Part, ...]) -> Mapping[str, Any]:
    """Returns everything that determines the bytes of the output, as JSON values."""
    content = hashlib.sha256()
    for part in parts:
        content.update(f"{part.name}\0{part.size}\0{part.stamp}\n".encode("utf-8", "surrogateescape"))
    values = dataclasses.asdict(spec.options) | {
        "source": spec.source,
        "task": spec.options.task.value,
        "split": spec.split,
        "tokenizer": spec.tokenizer,
        "image_tokenizer": spec.image_tokenizer,
        "background": spec.background,
        "editing_style": spec.editing if spec.tokenizer and spec.options.task is Task.EDITING else None,
        "content": content.hexdigest(),
    }
    return json.loads(json.dumps(values))


def _make_record(entry: Entry, background: Background) -> ValidRecord:
    try:
        return validate(entry.make(), background)
    # Any error that a value of the input can cause rejects only this record.
    except PARSE_ERRORS as error:
        message = str(error) if isinstance(error, JanusError) else describe_error(error)
        raise RejectedRecord(RejectReason.MALFORMED, message) from None


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
