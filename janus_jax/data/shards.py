"""Reads and writes shards: ArrayRecord files of records that TFDS and grain can open."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from janus_jax.data.records import Record, features
from janus_jax.errors import JanusError
from janus_jax.storage import atomic_file, is_disk_full, writing


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """Returns the path of shard `index` of `count`."""
    return Path(_template(folder, split).sharded_filepath(shard_index=index, num_shards=count))


def write_shard(path: Path, records: Iterable[Record], scratch: Path) -> tuple[int, int]:
    """Writes a shard atomically. Equal records give equal bytes.

    Args:
      path: Path of the shard.
      records: Records of the shard.
      scratch: Folder of the unfinished file, on the same disk.

    Returns:
      Number of records and total bytes.

    Raises:
      JanusError, StorageFull: The shard cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    count = size = 0
    with atomic_file(path, scratch) as temporary:
        with _writing(path):
            # One record per group, so that random access decompresses no other record.
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
    return count, size


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    with writing(path):
        try:
            yield
        except RuntimeError as error:  # ArrayRecordWriter raises no other type.
            if is_disk_full(error):
                raise
            raise JanusError(f"{path} cannot be written ({error}).") from error


def read_shard(path: Path) -> Iterator[Record]:
    """Yields the records of a shard in order."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        for index in range(reader.num_records()):
            yield Record.from_example(features().deserialize_example_np(reader.read([index])[0]))
    finally:
        reader.close()


def write_metadata(folder: Path, split: str, sizes: Iterable[tuple[int, int]]) -> None:
    """Writes the TFDS metadata of a folder of shards. `sizes` has the result of `write_shard` for each shard."""
    import tensorflow_datasets as tfds

    lengths, num_bytes = zip(*sizes, strict=True)
    template = _template(folder, split)
    info = tfds.core.SplitInfo(
        name=split, shard_lengths=list(lengths), num_bytes=sum(num_bytes), filename_template=template
    )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features(), split_infos=[info], check_data=False)


def _serialize(record: Record) -> bytes:
    example = _serializer().get_tf_example(features().encode_example(record.to_example()))
    # Deterministic, because the order of a protobuf map is random by default.
    return example.SerializeToString(deterministic=True)


@functools.cache
def _serializer() -> Any:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features().get_serialized_info())


def _template(folder: Path, split: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="records", split=split, filetype_suffix="array_record"
    )
