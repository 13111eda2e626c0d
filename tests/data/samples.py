"""Writes small input files of every kind, prepares them, and reads the results."""

import csv
import io
import json
import struct
import tarfile
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from janus_jax.data.prepare.parallel import write_shards
from janus_jax.data.prepare.shard_writer import DatasetSpec, open_shard_writer
from janus_jax.data.records import Record
from janus_jax.data.sources import SourceOptions, get_source
from janus_jax.processing import Task


def image(seed=0, kind="JPEG", size=(12, 8)):
    """Returns the bytes of an image file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def png(width, height, data=b""):
    """Returns a PNG file with this size in its header."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def images(folder, count):
    """Writes 0.jpg, 1.jpg ... to a folder."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(image(number))
    return folder


def json_lines(path, values):
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def parquet(path, columns, **more):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path, **more)
    return path


def tar(path, members, mode="w"):
    """Writes an archive of (name, bytes)."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def turns(*values):
    """Returns LLaVA turns that alternate between user and model."""
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


class Rejection(NamedTuple):
    key: str
    reason: str
    message: str


class Prepared(NamedTuple):
    """Records and rejections of a prepared source."""

    records: list[Record]
    rejections: list[Rejection]
    summary: str

    @property
    def keys(self):
        return [record.key for record in self.records]

    @property
    def reasons(self):
        return {rejection.key: rejection.reason for rejection in self.rejections}


def options(kind, *inputs, task=None, **more):
    return SourceOptions(tuple(map(str, inputs)), task or get_source(kind).tasks[0], **more)


def spec(output, kind, *inputs, **more):
    return DatasetSpec(kind, options(kind, *inputs, **more), output)


def read_back(folder):
    """Reads the records of a prepared folder with TFDS."""
    import tensorflow_datasets as tfds

    data = tfds.builder_from_directory(folder).as_data_source("train")
    return [Record.from_example(data[i]) for i in range(len(data))]


def prepare(output, kind, *inputs, **more):
    """Prepares a source in this process, without a limit on rejections. Returns the records and rejections."""
    writer = open_shard_writer(spec(output, kind, *inputs, **more))
    write_shards(writer, writer.unfinished(), workers=1, max_rejected=1.0)
    summary = writer.finish(1.0)
    lines = (output / "quarantine.jsonl").read_text().splitlines()
    return Prepared(read_back(output), [Rejection(**json.loads(line)) for line in lines], str(summary))


GENERATION, UNDERSTANDING, TEXT = Task.GENERATION, Task.UNDERSTANDING, Task.TEXT
