"""Components of a mixture, and the order in which one data shard reads their records."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.data.records import Record
from janus_jax.data.splits import check_split
from janus_jax.errors import JanusError
from janus_jax.files import describe_error, reading
from janus_jax.processing import Task

# How TFDS stores `records.features` in a tf.train.Example.
_KINDS = {
    "key": "bytes_list",
    "task": "bytes_list",
    "text": "bytes_list",
    "messages": "bytes_list",
    "images": "bytes_list",
    "alternatives": "bytes_list",
    "image_tokens": "int64_list",
    "image_latents": "float_list",
}


@dataclass(frozen=True)
class Component:
    """A dataset of a mixture.

    Attributes:
      name: Name of the component in phases, example ids and messages.
      source: Folder of a prepared dataset, or a sequence of records.
      weight: Relative number of examples, used if `StreamConfig.phases` is empty.
      task: Task that all records must have; None allows any.
      split: Split to read, in TFDS syntax such as "train[:1000]".
    """

    name: str
    source: str | os.PathLike[str] | Sequence[Record]
    weight: float = 1.0
    task: Task | None = None
    split: str = "train"


@dataclass(frozen=True)
class RecordReader:
    """Random access to the records of a component.

    Attributes:
      length: Number of records.
      read: Function from index to record.
    """

    length: int
    read: Callable[[int], Record]


def open_records(component: Component) -> RecordReader:
    """Opens the dataset of a component.

    Raises:
      JanusError: The folder is not a prepared dataset, or does not have the records of the split.
    """
    source = component.source
    if not isinstance(source, str | os.PathLike):
        return RecordReader(len(source), source.__getitem__)
    # Imported here because the import takes a second and records in memory do not need it.
    from tensorflow_datasets import builder_from_directory, decode
    from tensorflow_datasets.proto import tf_example_generated_pb2

    folder, remedy = Path(source), "make it with janus-prepare"
    with reading(folder):
        if not folder.is_dir():
            raise JanusError(f"{folder}, the source of component {component.name!r}, is not a folder; {remedy}.")
        if not (folder / "dataset_info.json").exists():
            raise JanusError(
                f"{folder}, the source of component {component.name!r}, is not a prepared dataset; {remedy}."
            )
    with reading(folder, remedy):
        builder = builder_from_directory(str(folder))
        if missing := set(_KINDS) - set(builder.info.features):
            raise JanusError(
                f"{folder}, the source of component {component.name!r}, lacks the features "
                f"{', '.join(sorted(missing))} of a record; if an older version prepared it, prepare it again, else "
                f"convert it with janus-prepare --source tfds."
            )
        check_split(component.split, builder.info.splits, f"{folder}, the source of component {component.name!r},")
        # Raw bytes, because decoding an example with TFDS takes as long as reading it.
        data = builder.as_data_source(component.split, deserialize_method=decode.DeserializeMethod.RAW_BYTES)
        length = len(data)

    def read(index: int) -> Record:
        try:
            fields = tf_example_generated_pb2.Example.FromString(data[index]).features.feature
            example = {name: list(getattr(fields[name], kind).value) for name, kind in _KINDS.items() if name in fields}
        # ArrayRecord and protobuf raise their own error types.
        except Exception as error:
            raise JanusError(f"Example {index} of {folder} cannot be read ({describe_error(error)}).") from error
        if missing := [name for name in _KINDS if name not in example]:
            raise JanusError(f"Example {index} of {folder} has no {', '.join(missing)}.")
        texts = {name: example[name][0] for name in ("key", "task", "text", "messages")}
        return Record.from_example(example | texts)

    return RecordReader(length, read)


@dataclass(frozen=True)
class ComponentShard:
    """The records of a component that one data shard reads, in an endless order that is shuffled anew in each epoch.

    Shard s of S has the records s, s + S, s + 2 S and so on. `len` is their number.

    Attributes:
      length: Number of records of the component.
      index: Index of the shard.
      count: Number of shards.
      seed: Seed of the order.
      name: Name of the component.
    """

    length: int
    index: int
    count: int
    seed: int
    name: str

    def __post_init__(self) -> None:
        if self.length < self.count:
            raise JanusError(
                f"The component {self.name!r} has {self.length} records, fewer than the {self.count} data shards; "
                f"add records or leave it out."
            )

    def __len__(self) -> int:
        return len(range(self.index, self.length, self.count))

    def locate(self, position: int) -> tuple[int, int]:
        """Returns the epoch, and the index within the component, of the record at a position of the order."""
        epoch, step = divmod(position, len(self))
        key = f"{self.seed}/{self.name}/{epoch}".encode()
        return epoch, self.index + self.count * permute(step, len(self), key)


def permute(index: int, length: int, key: bytes) -> int:
    """Returns the value at an index of a pseudorandom permutation of range(length). The key selects the permutation.

    Each value is computed on its own, so that no process has to hold the order of a billion records. The permutation is
    a Feistel network over the smallest 4^b >= length, applied until the result is less than `length` (Black and Rogaway
    2002, "Ciphers with arbitrary finite domains").
    """
    bits = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & mask
        for turn in range(4):
            digest = hashlib.blake2b(b"%d/%d" % (turn, right), digest_size=8, key=key[:64]).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = left << bits | right
        if index < length:
            return index
