"""Components of a mixture: their records, and the order in which one data shard reads them."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain

from janus_jax.buckets import require_local
from janus_jax.data.records import Record
from janus_jax.data.splits import check_split
from janus_jax.errors import JanusError
from janus_jax.files import describe_error, reading
from janus_jax.processing import Task
from janus_jax.registries import find_attribute

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
      source: Folder of a prepared dataset; or `MODULE:NAME`, a function that returns a grain `RandomAccessDataSource`
        of records; or such a data source, for example a list.
      weight: Relative number of examples, used if `StreamConfig.phases` is empty.
      task: Task that all records must have; None allows any.
      split: Split of a prepared dataset, in TFDS syntax such as "train[:1000]".
      transforms: Transforms of the records, each as `MODULE:NAME`: a `grain.transforms.Map` or `RandomMap`, or a
        function from record to record. They run in the data workers, in this order.
    """

    name: str
    source: str | os.PathLike[str] | Sequence[Record]
    weight: float = 1.0
    task: Task | None = None
    split: str = "train"
    transforms: tuple[str, ...] = ()


class RecordSource:
    """Records of a component, as a grain `RandomAccessDataSource`. A data worker that receives it opens its own files.

    Raises:
      JanusError: The folder is not a prepared dataset, it does not have the records of the split, or a module cannot be
        imported.
    """

    def __init__(self, component: Component) -> None:
        self._component = component
        self._length, self._read = _open(component)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        """Returns a record.

        Raises:
          JanusError: The record cannot be read.
        """
        return self._read(index)

    def __repr__(self) -> str:
        return f"RecordSource({self._component.name!r}, {self._component.split!r})"

    def __reduce__(self) -> Any:
        return RecordSource, (self._component,)


def shard_records(
    components: Sequence[Component], seed: int, shard_index: int = 0, shard_count: int = 1
) -> grain.MapDataset[Record]:
    """Returns the records that a data shard reads, by position. The positions continue without end.

    The records of all components are shuffled together, anew in each epoch. Every record is in one shard per epoch.

    Raises:
      JanusError: A component cannot be opened, or there are fewer records than shards.
    """
    names = ", ".join(component.name for component in components)
    parts = [_transformed(grain.MapDataset.source(RecordSource(one)), one, seed) for one in components]
    records = parts[0] if len(parts) == 1 else grain.MapDataset.concatenate(parts)
    if len(records) < shard_count:
        raise JanusError(
            f"The component {names!r} has {len(records)} records, fewer than the {shard_count} data shards; add "
            f"records or leave it out."
        )
    return records.shuffle(seed=derive_seed(seed, names))[shard_index::shard_count]


def derive_seed(*values: object) -> int:
    """Returns a seed of 32 bits that depends on all values."""
    text = "/".join(map(str, values)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def _transformed(records: grain.MapDataset[Any], component: Component, seed: int) -> grain.MapDataset[Any]:
    for number, name in enumerate(component.transforms):
        transform = find_attribute(name, f"The transform of component {component.name!r}")
        if isinstance(transform, type):
            transform = transform()
        if isinstance(transform, grain.transforms.RandomMap):
            records = records.random_map(transform, seed=derive_seed(seed, component.name, number, name))
        elif isinstance(transform, grain.transforms.Map) or callable(transform):
            records = records.map(transform)
        else:
            raise JanusError(
                f"{name}, a transform of component {component.name!r}, is a {type(transform).__name__}; it must be a "
                f"grain.transforms.Map or RandomMap, or a function from record to record."
            )
    return records


def _open(component: Component) -> tuple[int, Callable[[int], Record]]:
    """Returns the number of records of a component and a function that reads one."""
    source = component.source
    if isinstance(source, str):
        require_local(source, f"the source of component {component.name!r}")
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        source = find_attribute(source, f"The source of component {component.name!r}")()
    if not isinstance(source, str | os.PathLike):
        if component.split != "train":
            raise JanusError(
                f"Component {component.name!r} has the split {component.split!r}, which only a prepared dataset can "
                f"have; set it to train."
            )
        return len(source), source.__getitem__
    return _open_folder(component.name, Path(source), component.split)


def _open_folder(name: str, folder: Path, split: str) -> tuple[int, Callable[[int], Record]]:
    # Imported here because the import takes a second and records in memory do not need it.
    from tensorflow_datasets import builder_from_directory, decode

    remedy = "make it with janus-prepare"
    with reading(folder):
        if not folder.is_dir():
            raise JanusError(f"{folder}, the source of component {name!r}, is not a folder; {remedy}.")
        if not (folder / "dataset_info.json").exists():
            raise JanusError(f"{folder}, the source of component {name!r}, is not a prepared dataset; {remedy}.")
    with reading(folder, remedy):
        builder = builder_from_directory(str(folder))
        if missing := set(_KINDS) - set(builder.info.features):
            raise JanusError(
                f"{folder}, the source of component {name!r}, lacks the features {', '.join(sorted(missing))} of a "
                f"record; if an older version prepared it, prepare it again, else convert it with janus-prepare "
                f"--source tfds."
            )
        check_split(split, builder.info.splits, f"{folder}, the source of component {name!r},")
        # Raw bytes, because decoding an example with TFDS takes as long as reading it.
        data = builder.as_data_source(split, deserialize_method=decode.DeserializeMethod.RAW_BYTES)
        return len(data), functools.partial(_read, folder, data)


def _read(folder: Path, data: Any, index: int) -> Record:
    from tensorflow_datasets.proto import tf_example_generated_pb2

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
