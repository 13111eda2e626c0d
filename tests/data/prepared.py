"""Records for the data pipeline's tests, and prepared datasets of them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from janus_jax.data.records import Record, features
from janus_jax.processing import Task

QUESTION = "<image_placeholder>\nWhat is in the picture?"


def encoded(seed, size=(40, 28), image_format="JPEG"):
    """Returns an image file with smooth colors."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, image_format)
    return file.getvalue()


def bomb():
    """Returns a PNG of a few bytes that claims to have a billion pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 32000, 32000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def text(number, words=8):
    return Record(f"text{number}", Task.TEXT, text=f"{number} " + "word " * words)


def understanding(number, answer="A boat."):
    messages = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": f"{answer} {number}"})
    return Record(f"und{number}", Task.UNDERSTANDING, messages=messages, images=(encoded(number),))


def generation(number, caption="A red boat. It lies on a lake.", tokens=()):
    return Record(
        f"gen{number}",
        Task.GENERATION,
        text=f"{number} {caption}",
        images=(encoded(number, (28, 44)),),
        image_tokens=np.array(tokens, np.int32),
    )


def write(folder, examples):
    """Writes a prepared dataset. A dict among the examples is written with only its own fields."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    contents = []
    for example in examples:
        fields = example if isinstance(example, dict) else example.to_example()
        some = tfds.features.FeaturesDict({key: features()[key] for key in fields})
        contents.append(ExampleSerializer(some.get_serialized_info()).serialize_example(some.encode_example(fields)))
    write_tfds(folder, "janus", features(), contents)
    return folder


def write_tfds(folder, name, features, contents, **metadata):
    """Writes serialized examples as the train split of a TFDS dataset."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split="train", filetype_suffix="array_record"
    )
    writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()
    split = tfds.core.SplitInfo(name="train", shard_lengths=[len(contents)], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[split], check_data=False, **metadata
    )
