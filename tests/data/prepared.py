"""Records for tests of the data pipeline, and functions that write prepared datasets."""

import numpy as np

from janus_jax.data.records import Record, features
from janus_jax.processing import Task
from tests.data.samples import image

QUESTION = "<image_placeholder>\nWhat is in the picture?"


def text(number, words=8):
    return Record(f"text{number}", Task.TEXT, text=f"{number} " + "word " * words)


def understanding(number, answer="A boat."):
    messages = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": f"{answer} {number}"})
    return Record(f"und{number}", Task.UNDERSTANDING, messages=messages, images=(image(number),))


def generation(number, caption="A red boat. It lies on a lake.", tokens=()):
    return Record(
        f"gen{number}",
        Task.GENERATION,
        text=f"{number} {caption}",
        images=(image(number, size=(28, 44)),),
        image_tokens=np.array(tokens, np.int32),
    )


def edit(number, sources=1, tokens=()):
    images = tuple(image(1000 * number + i) for i in range(sources + 1))
    return Record(f"e{number}", Task.EDITING, "Add a boat.", images=images, image_tokens=np.array(tokens, np.int32))


def write(folder, examples):
    """Writes a prepared dataset of records. An example given as a dict is written with only the fields of the dict."""
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
