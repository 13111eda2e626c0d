"""TFDS datasets of images such as ImageNet, with class names or texts as captions.

`tfds.data_source` reads them without TensorFlow; the files must be in ArrayRecord format. Images keep their encoding.
"""

import functools
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, Part, SourceOptions, register_source
from janus_jax.data.sources.class_names import read_class_names
from janus_jax.data.sources.fields import caption_record, find_field, get_text
from janus_jax.data.splits import check_split
from janus_jax.errors import JanusError
from janus_jax.files import describe_error
from janus_jax.processing import Task

GetCaption = Callable[[Mapping[str, Any]], str]


@register_source("tfds", Task.GENERATION, Task.UNDERSTANDING)
def tfds(options: SourceOptions) -> Iterator[Part]:
    """Reads TFDS datasets. An input is NAME or NAME/CONFIG:VERSION in TFDS's syntax, or the folder of a dataset."""
    for name in options.inputs:
        dataset = _open(name, options)
        for first in range(0, len(dataset.examples), options.shard_records):
            span = range(first, min(first + options.shard_records, len(dataset.examples)))
            yield Part(f"{dataset.name}:{first}", functools.partial(_entries, name, span, options), len(span))


class _Dataset(NamedTuple):
    """An opened split of a TFDS dataset."""

    name: str
    examples: Any
    image_field: str
    get_caption: GetCaption


def _entries(name: str, span: range, options: SourceOptions) -> Iterator[Entry]:
    dataset = _open(name, options)

    def record(key: str, number: int) -> Record:
        example = dataset.examples[number]
        image = _encoded(example[dataset.image_field])
        return caption_record(key, (get_text(dataset.get_caption(example)),), image, options)

    for number in span:
        key = f"{dataset.name}:{number}"
        yield Entry(key, functools.partial(record, key, number))


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        message = f"its image is an array of {pixels.dtype} and shape {pixels.shape}."
        raise RejectedRecord(RejectReason.BAD_IMAGE, message)
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) else pixels).save(stream, "png")
    return stream.getvalue()


@functools.cache
def _open(name: str, options: SourceOptions) -> _Dataset:
    import tensorflow_datasets

    try:
        if Path(name).is_dir():
            builder = tensorflow_datasets.builder_from_directory(name)
        else:
            builder = tensorflow_datasets.builder(name, data_dir=options.data_dir, try_gcs=False)
    # TFDS raises errors of many types for an unknown name.
    except Exception as error:
        raise JanusError(f"--input {name} is not a TFDS dataset ({describe_error(error)}); check its name.") from error
    full_name, features = builder.info.full_name, builder.info.features
    if not builder.info.splits:
        raise JanusError(
            f"TFDS dataset {full_name} is not in {builder.data_dir}; prepare it there with "
            f'tfds.builder("{full_name}", file_format="array_record").download_and_prepare(), or give --data_dir.'
        )
    check_split(options.input_split, builder.info.splits, f"TFDS dataset {full_name} (--input_split)")
    where = f"{full_name} has no feature"
    image_field = find_field(where, features, "--image_field", options.image_field, ("image",))
    text_field = find_field(where, features, "--text_field", options.text_field, ("label", "caption", "text"))
    encoded = isinstance(features[image_field], tensorflow_datasets.features.Image)
    decoders = {image_field: tensorflow_datasets.decode.SkipDecoding()} if encoded else None
    try:
        folder = tensorflow_datasets.builder_from_directory(str(builder.data_dir))
        examples = folder.as_data_source(options.input_split, decoders=decoders)
    except Exception as error:
        raise JanusError(
            f'{full_name} cannot be read ({describe_error(error)}); prepare its files with file_format="array_record".'
        ) from error
    get_caption = _get_caption(text_field, features[text_field], options.class_names)
    return _Dataset(f"{full_name}/{options.input_split}", examples, image_field, get_caption)


def _get_caption(name: str, feature: Any, class_names: str | None) -> GetCaption:
    """Returns the function from an example to its caption: the text or the class name in field `name`."""
    import tensorflow_datasets

    if not isinstance(feature, tensorflow_datasets.features.ClassLabel):
        return lambda example: example[name]
    captions = [class_name.replace("_", " ") for class_name in feature.names]
    if class_names is not None:
        given = read_class_names(class_names).by_name
        if missing := [class_name for class_name in feature.names if class_name not in given]:
            raise JanusError(
                f"{class_names} lacks {len(missing)} of {len(feature.names)} classes, the first is "
                f"{missing[0]}; add them."
            )
        captions = [given[class_name] for class_name in feature.names]

    def get_caption(example: Mapping[str, Any]) -> str:
        label = int(example[name])
        if not 0 <= label < len(captions):
            message = f"its class is {label}; the dataset has {len(captions)} classes."
            raise RejectedRecord(RejectReason.MISSING_FIELD, message)
        return captions[label]

    return get_caption
