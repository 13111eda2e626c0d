"""Shards: ArrayRecord files of records in TFDS' layout, which TFDS and grain open."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from janus_jax.data.records import Record, features
from janus_jax.errors import JanusError
from janus_jax.storage import atomic_file, is_disk_full, writing

_NAME = "records"
_FORMAT = "array_record"


class ShardSize(NamedTuple):
    """What a shard holds."""

    records: int
    bytes: int


NOTHING = ShardSize(0, 0)


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """Where shard `index` of `count` lies."""
    return Path(_template(folder, split).sharded_filepath(shard_index=index, num_shards=count))


def write_shard(path: Path, records: Iterable[Record], scratch: Path) -> ShardSize:
    """Writes a shard, which appears when it is complete. The same records give the same bytes.

    Args:
      path: where.
      records: what.
      scratch: folder of the file while it is incomplete, on the same disk.

    Raises:
      JanusError: it cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    count = size = 0
    with atomic_file(path, scratch) as temporary:
        with _writing(path):
            # One record a group: random access then decompresses nothing else.
            writer = ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for record in records:
                content = _serialize(record)
                with _writing(path):
                    writer.write(content)
                count, size = count + 1, size + len(content)
            with _writing(path):
                writer.close()
        finally:
            if writer.is_open():
                writer.close()
    return ShardSize(count, size)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    with writing(path):
        try:
            yield
        except RuntimeError as error:  # The writer raises nothing narrower.
            if is_disk_full(error):
                raise
            raise JanusError(f"{path} cannot be written ({error}).") from error


def read_shard(path: Path) -> Iterator[Record]:
    """The records of a shard, in their order."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        for index in range(reader.num_records()):
            yield Record.from_example(features().deserialize_example_np(reader.read([index])[0]))
    finally:
        reader.close()


def write_metadata(folder: Path, split: str, sizes: Iterable[ShardSize]) -> None:
    """Makes the shards of a folder a data set that TFDS opens."""
    import tensorflow_datasets as tfds

    sizes = list(sizes)
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[size.records for size in sizes],
        num_bytes=sum(size.bytes for size in sizes),
        filename_template=_template(folder, split),
    )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features(), split_infos=[info], check_data=False)


def _serialize(record: Record) -> bytes:
    example = _serializer().get_tf_example(features().encode_example(record.to_example()))
    # A map's order is a matter of chance unless asked for.
    return example.SerializeToString(deterministic=True)


@functools.cache
def _serializer() -> Any:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features().get_serialized_info())


def _template(folder: Path, split: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=_NAME, split=split, filetype_suffix=_FORMAT)
