"""Where samples come from: a prepared data set, the share of it that one process reads, and in which order."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.files import describe_error, reading
from janus_jax.processing import Task

# `records.features`, as TFDS lays them into a tf.train.Example.
_KINDS = {
    "key": "bytes_list",
    "task": "bytes_list",
    "text": "bytes_list",
    "messages": "bytes_list",
    "images": "bytes_list",
    "image_tokens": "int64_list",
    "image_latents": "float_list",
}


@dataclass(frozen=True)
class Component:
    """One part of a mixture.

    Attributes:
      name: in phases, sample ids and messages.
      source: the folder of a prepared data set, or records themselves.
      weight: samples of it in proportion to the other components', where `StreamConfig.phases` says nothing else.
      task: what all its records must teach; None for whatever they do.
      split: which of the data set's splits is read, also as TFDS's "train[:1000]".
    """

    name: str
    source: str | os.PathLike[str] | Sequence[Record]
    weight: float = 1.0
    task: Task | None = None
    split: str = "train"


@dataclass(frozen=True)
class RecordReader:
    """The records of a component: how many, and the one of a number."""

    length: int
    read: Callable[[int], Record]


def open_records(component: Component) -> RecordReader:
    """Opens a component's source.

    Raises:
      JanusError: there is no prepared data set, or none of that split; the message names the folder.
    """
    source = component.source
    if not isinstance(source, str | os.PathLike):
        return RecordReader(len(source), source.__getitem__)
    # Here: it takes a second, and tests need none of it.
    from tensorflow_datasets import builder_from_directory, decode
    from tensorflow_datasets.proto import tf_example_generated_pb2

    folder, remedy = Path(source), "make it with janus-prepare"
    with reading(folder):
        if not folder.is_dir():
            raise JanusError(f"{folder}, of the component {component.name!r}, is no folder; {remedy}.")
        if not (folder / "dataset_info.json").exists():
            raise JanusError(f"{folder}, of the component {component.name!r}, holds no prepared data set; {remedy}.")
    with reading(folder, remedy):
        builder = builder_from_directory(str(folder))
        if missing := set(_KINDS) - set(builder.info.features):
            raise JanusError(
                f"{folder}, of the component {component.name!r}, is a data set without {', '.join(sorted(missing))}, "
                f"and so not one of records; make one of it with janus-prepare --source tfds."
            )
        # TFDS takes as long over an example's fields as over reading it.
        data = builder.as_data_source(component.split, deserialize_method=decode.DeserializeMethod.RAW_BYTES)
        length = len(data)

    def read(index: int) -> Record:
        try:
            fields = tf_example_generated_pb2.Example.FromString(data[index]).features.feature
            example = {name: list(getattr(fields[name], kind).value) for name, kind in _KINDS.items() if name in fields}
        # The readers beneath raise errors of their own making.
        except Exception as error:
            raise JanusError(f"Example {index} of {folder} cannot be read ({describe_error(error)}).") from error
        if missing := [name for name in _KINDS if name not in example]:
            raise JanusError(f"Example {index} of {folder} has no {', '.join(missing)}.")
        texts = {name: example[name][0] for name in ("key", "task", "text", "messages")}
        return Record.from_example(example | texts)

    return RecordReader(length, read)


@dataclass(frozen=True)
class ComponentShard:
    """The records of one component that one process reads, without end and shuffled anew in every epoch.

    Process p of P reads the records p, p + P, p + 2 P and so on.

    Attributes:
      length: records of the component.
      process_index, process_count: whose share.
      seed: of the order.
      name: of the component.
    """

    length: int
    process_index: int
    process_count: int
    seed: int
    name: str

    def __post_init__(self) -> None:
        if self.length < self.process_count:
            raise JanusError(
                f"The component {self.name!r} has {self.length} records, fewer than the {self.process_count} processes "
                f"that share them; add records or leave it out."
            )

    def __len__(self) -> int:
        return len(range(self.process_index, self.length, self.process_count))

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, number of the record) of the position-th record that is read."""
        epoch, place = divmod(position, len(self))
        return epoch, self.process_index + self.process_count * shuffled(place, len(self), self._key(epoch))

    def _key(self, epoch: int) -> bytes:
        return f"{self.seed}/{self.name}/{epoch}".encode()


def shuffled(place: int, length: int, key: bytes) -> int:
    """Where a place of range(length) goes under the permutation that `key` names.

    A Feistel network over the smallest square of a power of two that holds the range, walked until it is back inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): any place is found without the others, whose
    list of a billion records no process would hold.
    """
    bits = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = place >> bits, place & mask
        for turn in range(4):
            digest = hashlib.blake2b(b"%d/%d" % (turn, right), digest_size=8, key=key[:64]).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        place = left << bits | right
        if place < length:
            return place
