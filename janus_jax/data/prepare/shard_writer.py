"""From a source to a prepared data set: one shard a part, in as many processes as wanted, taken up where it stopped.

    OUTPUT/
      records-train.array_record-00000-of-00012 ...   the shards
      dataset_info.json, features.json                what TFDS opens them by; written last
      preparation.json                                how they came about: arguments, counts, sizes
      quarantine.jsonl                                rejected records, each with its reason
      .prepare/                                       while it goes on: a note for every finished shard

What a shard holds follows from the source and the options alone. So a run that was killed goes on to the same bytes,
and so does one with another number of processes, or under Apache Beam (`beam.py`).
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
from typing import Any

from janus_jax.data.records import Record
from janus_jax.data.shards import NOTHING, ShardSize, read_shard, shard_path, write_metadata, write_shard
from janus_jax.data.sources import Entry, Part, RejectedRecord, RejectReason, SourceOptions, get_source
from janus_jax.data.validation import check
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error, read_json, reading
from janus_jax.processing import Task
from janus_jax.storage import write_bytes

SUMMARY = "preparation.json"
QUARANTINE = "quarantine.jsonl"
_WORK = ".prepare"
_JOB = "job.json"

LEAST_ENTRIES = 1000
"""Entries before whose end a run is not stopped for its share of rejections."""

OnEntry = Callable[[bool], None]
"""Told of every entry, whether it was accepted."""


@dataclass(frozen=True)
class DatasetSpec:
    """What is prepared, and where to.

    Attributes:
      kind: of the source, see `get_source`.
      options: of the source.
      output: the folder.
      split: name of the one split that the data set will have.
      tokenizer: what computes image ids afterwards, by name; None where that is left to training.
    """

    kind: str
    options: SourceOptions
    output: Path
    split: str = "train"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.split):
            raise JanusError(f"--split {self.split!r:.80} is no name for a split; take letters, digits and _.")
        tasks = get_source(self.kind).tasks
        if self.options.task not in tasks:
            raise JanusError(
                f"--task {self.options.task.value} is nothing that --source {self.kind} can teach; "
                f"take {' or '.join(task.value for task in tasks)}."
            )
        if self.tokenizer is not None and self.options.task is not Task.GENERATION:
            raise JanusError(
                f"--tokenizer computes ids of images to generate; with --task {self.options.task.value} leave it out."
            )

    @property
    def work(self) -> Path:
        """The folder of what is unfinished."""
        return self.output / _WORK


@dataclass(frozen=True)
class ShardStats:
    """What became of a part, or of all of them."""

    size: ShardSize = NOTHING
    tasks: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return self.size.records + self.num_rejected

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    def __add__(self, other: "ShardStats") -> "ShardStats":
        return ShardStats(
            ShardSize(self.size.records + other.size.records, self.size.bytes + other.size.bytes),
            dict(Counter(self.tasks) + Counter(other.tasks)),
            dict(Counter(self.rejected) + Counter(other.rejected)),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "records": self.size.records,
            "bytes": self.size.bytes,
            "tasks": dict(sorted(self.tasks.items())),
            "rejected": dict(sorted(self.rejected.items())),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ShardStats":
        return cls(ShardSize(values["records"], values["bytes"]), values["tasks"], values["rejected"])


@dataclass(frozen=True)
class Summary:
    """A finished preparation; as text, a table."""

    output: Path
    split: str
    shards: int
    total: ShardStats

    def __str__(self) -> str:
        total = self.total
        rows = [
            ("split", self.split),
            ("shards", f"{self.shards}"),
            ("records", f"{total.size.records}"),
            *((f"  {task}", f"{count}") for task, count in sorted(total.tasks.items())),
            ("size", _readable(total.size.bytes)),
            ("rejected", f"{total.num_rejected} ({total.num_rejected / max(1, total.entries):.2%})"),
            *((f"  {reason}", f"{count}") for reason, count in sorted(total.rejected.items())),
        ]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join([str(self.output), *(f"  {name:<{width}}{value:>12}" for name, value in rows)])


@dataclass(frozen=True)
class ShardWriter:
    """A job cut into parts, its folder claimed."""

    job: DatasetSpec
    parts: tuple[Part, ...]
    summary: Summary | None = None

    def unfinished(self) -> list[int]:
        """Numbers of the parts that are still to do."""
        return [index for index in range(len(self.parts)) if not self._note(index).exists()]

    def finished(self) -> ShardStats:
        """What has been done so far."""
        done = set(range(len(self.parts))) - set(self.unfinished())
        return sum((self.outcome(index) for index in sorted(done)), ShardStats())

    def outcome(self, index: int) -> ShardStats:
        """What became of a finished part."""
        return ShardStats.from_dict(read_json(self._note(index)))

    def shard(self, index: int) -> Path:
        """Where a part's records go."""
        return shard_path(self.job.output, self.job.split, index, len(self.parts))

    def run_part(self, index: int, on_entry: OnEntry = lambda accepted: None) -> ShardStats:
        """Makes one shard. Whoever calls it twice, even at the same time, does no harm.

        Raises:
          JanusError: the input cannot be read, or the output not written.
        """
        rejected: Counter[str] = Counter()
        tasks: Counter[str] = Counter()
        lines: list[str] = []

        def reject(key: str, refused: RejectedRecord) -> None:
            rejected[refused.reason.value] += 1
            lines.append(json.dumps({"key": key, "reason": refused.reason.value, "message": str(refused)}))
            on_entry(False)

        def accept(record: Record) -> None:
            tasks[record.task.value] += 1
            on_entry(True)

        try:
            size = write_shard(self.shard(index), _records(self.parts[index], accept, reject), self.job.work)
        finally:
            # Also of a part that is given up: they may tell why.
            _write(self._quarantine(index), lines)
        outcome = ShardStats(size, tasks, rejected)
        _write(self._note(index), [json.dumps(outcome.to_dict())])
        return outcome

    def without_ids(self) -> list[int]:
        """Numbers of the finished parts whose shards `add_ids` has not replaced."""
        done = set(range(len(self.parts))) - set(self.unfinished())
        return sorted(index for index in done if not self._ids_note(index).exists())

    def add_ids(self, index: int, change: Callable[[Iterator[Record]], Iterator[Record]]) -> None:
        """Replaces a finished shard by one of the same records with image ids."""
        size = write_shard(self.shard(index), change(read_shard(self.shard(index))), self.job.work)
        _write(self._note(index), [json.dumps(dataclasses.replace(self.outcome(index), size=size).to_dict())])
        _write(self._ids_note(index), [])

    def check_share(self, entries: int, rejected: int, limit: float) -> None:
        """Stops a run in which too much is wrong.

        Raises:
          JanusError: more than the share `limit` of the entries was rejected.
        """
        if rejected <= limit * entries:
            return
        lines = list(self._rejected_lines())
        reasons = Counter(line["reason"] for line in lines).most_common(3)
        shown = ", ".join(f"{reason} {count}" for reason, count in reasons)
        example = f" (such as {lines[0]['key']}: {lines[0]['message'].rstrip('.')})" if lines else ""
        raise JanusError(
            f"{rejected} of {entries} records were rejected, {shown or 'reasons untold'}{example}, and --max_rejected "
            f"is {limit:g}; mend the input or the flags, or raise it: finished shards stay."
        )

    def finish(self, max_rejected: float) -> Summary:
        """Makes the finished shards a data set.

        Raises:
          JanusError: too much was rejected, or nothing accepted.
        """
        outcomes = [self.outcome(index) for index in range(len(self.parts))]
        total = sum(outcomes, ShardStats())
        if self.job.tokenizer is not None and self.without_ids():
            raise JanusError(f"{self.job.output} has shards without image ids; give the same command again.")
        self.check_share(total.entries, total.num_rejected, max_rejected)
        if not total.size.records:
            raise JanusError(f"--input {' '.join(self.job.options.inputs)} holds no records; look into it.")
        output = self.job.output
        _write(output / QUARANTINE, map(json.dumps, self._rejected_lines()))
        write_metadata(output, self.job.split, [outcome.size for outcome in outcomes])
        content = {"job": _fingerprint(self.job, self.parts), "shards": len(self.parts), **total.to_dict()}
        _write(output / SUMMARY, [json.dumps(content, indent=2)])
        _clear(self.job)
        return Summary(output, self.job.split, len(self.parts), total)

    def _note(self, index: int) -> Path:
        return self.job.work / f"{index:05}.json"

    def _ids_note(self, index: int) -> Path:
        return self.job.work / f"{index:05}.ids"

    def _quarantine(self, index: int) -> Path:
        return self.job.work / f"{index:05}.rejected.jsonl"

    def _rejected_lines(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self.parts)):
            path = self._quarantine(index)
            if path.exists():
                with path.open(encoding="utf-8") as stream:
                    yield from map(json.loads, stream)


def begin(job: DatasetSpec, on_part: Callable[[], object] = lambda: None) -> ShardWriter:
    """Cuts the source up, and claims the output: an empty folder, or one where the same job was begun or finished.

    Args:
      job: what is to be prepared.
      on_part: called for every part that is found; of large tables that takes a while.

    Raises:
      JanusError: the input will not do, or the folder holds something else.
    """
    _check_free(job.output)
    found = []
    for part in get_source(job.kind).parts(job.options):
        found.append(part)
        on_part()
    parts = tuple(found)
    if not parts:
        raise JanusError(f"--input {' '.join(job.options.inputs)} holds no records; look into it.")
    fingerprint = _fingerprint(job, parts)
    done = job.output / SUMMARY
    if done.exists():
        content = read_json(done)
        _check_same(job.output, content["job"], fingerprint)
        _clear(job)
        summary = Summary(job.output, job.split, content["shards"], ShardStats.from_dict(content))
        return ShardWriter(job, parts, summary)
    noted = job.work / _JOB
    with reading(job.output, "give another --output"):
        job.work.mkdir(parents=True, exist_ok=True)
    if noted.exists():
        _check_same(job.output, read_json(noted), fingerprint)
    else:
        _write(noted, [json.dumps(fingerprint)])
    return ShardWriter(job, parts)


def _clear(job: DatasetSpec) -> None:
    # Where a file that is open cannot vanish (NFS), the folder stays until the next run.
    shutil.rmtree(job.work, ignore_errors=True)


def _check_free(output: Path) -> None:
    with reading(output, "give another --output"):
        if not output.exists():
            return
        if not output.is_dir():
            raise JanusError(f"--output {output} is no folder; give another.")
        names = {path.name for path in output.iterdir()}
    if names and not names & {SUMMARY, _WORK}:
        raise JanusError(f"--output {output} holds other files ({min(names)}); give an empty folder, or a new one.")


def _check_same(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise JanusError(
                f"--output {output} holds what was prepared from {name} = {before.get(name)!r:.100}, "
                f"not {value!r:.100}; give another folder, or remove that one."
            )


def _fingerprint(job: DatasetSpec, parts: tuple[Part, ...]) -> dict[str, Any]:
    """All that the output's bytes depend on, as json gives it back."""
    cut = hashlib.sha256()
    for part in parts:
        cut.update(f"{part.name}\0{part.size}\0{part.stamp}\n".encode("utf-8", "surrogateescape"))
    options = dataclasses.asdict(job.options) | {"task": job.options.task.value}
    named = {"source": job.kind, **options, "split": job.split, "tokenizer": job.tokenizer}
    return json.loads(json.dumps({**named, "content": cut.hexdigest()}))


def _records(
    part: Part, accept: Callable[[Record], None], reject: Callable[[str, RejectedRecord], None]
) -> Iterator[Record]:
    key = part.name
    try:
        for entry in part.entries():
            key = entry.key
            try:
                record = _make(entry)
            except RejectedRecord as refused:
                reject(key, refused)
            else:
                yield record
                accept(record)
    except RejectedRecord as refused:
        reject(f"{key} and what follows", refused)


def _make(entry: Entry) -> Record:
    try:
        record = entry.make()
        check(record)
    except JanusError as error:
        raise RejectedRecord(RejectReason.MALFORMED, str(error)) from None
    except PARSE_ERRORS as error:
        # A source that takes a value at its word: one record's loss, and part of the share that stops the run.
        raise RejectedRecord(RejectReason.MALFORMED, describe_error(error)) from None
    return record


def _write(path: Path, lines: Iterable[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def _readable(size: int) -> str:
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
