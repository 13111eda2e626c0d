"""TFDS data sets of images, with the class's name or a text as caption: ImageNet, and any other.

Read through `tfds.data_source`, which needs no TensorFlow but files in ArrayRecord format. Images stay encoded where
the data set holds them so.
"""

import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.data.records import Record
from janus_jax.data.sources.base import Entry, Part, RejectedRecord, RejectReason, SourceOptions, register_source
from janus_jax.data.sources.fields import caption_record, text_of
from janus_jax.errors import JanusError
from janus_jax.files import describe_error, read_text
from janus_jax.processing import Task

_TEXTS = ("label", "caption", "text")
_IMAGES = ("image",)


@register_source("tfds", Task.GENERATION, Task.UNDERSTANDING)
def tfds(options: SourceOptions) -> Iterator[Part]:
    """NAME, NAME/CONFIG:VERSION as TFDS writes them, or the folder of a prepared data set."""
    for name in options.inputs:
        builder = _builder(name, options.data_dir)
        size, label = len(_data(builder, options)), builder.info.full_name
        _caption(builder, options)
        for first in range(0, size, options.shard_records):
            span = range(first, min(first + options.shard_records, size))
            title = f"{label}/{options.input_split}:{first}"
            yield Part(title, functools.partial(_entries, name, span, options), len(span))


def _entries(name: str, span: range, options: SourceOptions) -> Iterator[Entry]:
    builder = _builder(name, options.data_dir)
    data, caption = _data(builder, options), _caption(builder, options)
    image = _field("--image_field", builder, options.image_field, _IMAGES)
    for number in span:
        key = f"{builder.info.full_name}/{options.input_split}:{number}"
        yield Entry(key, functools.partial(_record, key, data, number, caption, image, options))


def _record(
    key: str, data: Any, number: int, caption: Callable[[Mapping[str, Any]], str], image: str, options: SourceOptions
) -> Record:
    example = data[number]
    return caption_record(key, text_of(caption(example)), _encoded(example[image]), options)


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise RejectedRecord(
            RejectReason.BAD_IMAGE, f"its image is an array of {pixels.dtype} and shape {pixels.shape}."
        )
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) else pixels).save(stream, "png")
    return stream.getvalue()


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets

    try:
        if Path(name).is_dir():
            return tensorflow_datasets.builder_from_directory(name)
        return tensorflow_datasets.builder(name, data_dir=data_dir, try_gcs=False)
    # What TFDS raises over a name that it does not know is of many kinds.
    except Exception as error:
        raise JanusError(f"--input {name} is no TFDS data set that can be opened ({describe_error(error)}).") from error


@functools.cache
def _opened(directory: str, split: str, image: str) -> Any:
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(directory)
    feature = builder.info.features[image]
    encoded = isinstance(feature, tensorflow_datasets.features.Image)
    decoders = {image: tensorflow_datasets.decode.SkipDecoding()} if encoded else None
    return builder.as_data_source(split, decoders=decoders)


def _data(builder: Any, options: SourceOptions) -> Any:
    name = builder.info.full_name
    if not builder.info.splits:
        raise JanusError(
            f"TFDS data set {name} is not in {builder.data_dir}; prepare it there with "
            f'tfds.builder("{name}", file_format="array_record").download_and_prepare(), or give --data_dir.'
        )
    image = _field("--image_field", builder, options.image_field, _IMAGES)
    try:
        return _opened(str(builder.data_dir), options.input_split, image)
    except Exception as error:
        raise JanusError(
            f"{name} cannot be read ({describe_error(error)}); its splits are {', '.join(builder.info.splits)}, and "
            f'its files must have been prepared with file_format="array_record".'
        ) from error


def _field(flag: str, builder: Any, name: str | None, usual: tuple[str, ...]) -> str:
    there = list(builder.info.features)
    for candidate in usual if name is None else (name,):
        if candidate in there:
            return candidate
    raise JanusError(
        f"{builder.info.full_name} has no feature {name or ' or '.join(usual)}, only {', '.join(there)}; "
        f"name the right one with {flag}."
    )


def _caption(builder: Any, options: SourceOptions) -> Callable[[Mapping[str, Any]], str]:
    """How a caption is read off an example."""
    import tensorflow_datasets

    name = _field("--text_field", builder, options.text_field, _TEXTS)
    feature = builder.info.features[name]
    if not isinstance(feature, tensorflow_datasets.features.ClassLabel):
        return lambda example: example[name]
    words = [class_name.replace("_", " ") for class_name in feature.names]
    if options.class_names is not None:
        given = _class_names(options.class_names)
        if missing := [class_name for class_name in feature.names if class_name not in given]:
            raise JanusError(
                f"{options.class_names} has no words for {len(missing)} of {len(feature.names)} classes, "
                f"{missing[0]} the first; add them."
            )
        words = [given[class_name] for class_name in feature.names]

    def read(example: Mapping[str, Any]) -> str:
        label = int(example[name])
        if not 0 <= label < len(words):
            raise RejectedRecord(RejectReason.MISSING_FIELD, f"its class is {label}, which is none of {len(words)}.")
        return words[label]

    return read


def _class_names(file: str) -> dict[str, str]:
    """Words by class name: a json object, or lines of a name, white space and words (`n01440764 tench`)."""
    text = read_text(Path(file), "give another")
    if text.lstrip().startswith("{"):
        try:
            return {str(name): str(words) for name, words in json.loads(text).items()}
        except ValueError as error:
            raise JanusError(f"{file} is no json object ({error}); mend it.") from error
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}
