"""TFDS data sets of images such as ImageNet, with class names or texts as captions.

`tfds.data_source` reads them without TensorFlow; the files must be in ArrayRecord format. Images keep their encoding.
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
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources.base import Entry, Part, SourceOptions, register_source
from janus_jax.data.sources.fields import caption_record, get_text
from janus_jax.errors import JanusError
from janus_jax.files import describe_error, read_text
from janus_jax.processing import Task

GetCaption = Callable[[Mapping[str, Any]], str]


@register_source("tfds", Task.GENERATION, Task.UNDERSTANDING)
def tfds(options: SourceOptions) -> Iterator[Part]:
    """Reads NAME or NAME/CONFIG:VERSION in TFDS's syntax, or the folder of a prepared data set."""
    for name in options.inputs:
        builder = _builder(name, options.data_dir)
        size = len(_data(builder, options))
        _get_caption(builder, options)
        for first in range(0, size, options.shard_records):
            span = range(first, min(first + options.shard_records, size))
            title = f"{builder.info.full_name}/{options.input_split}:{first}"
            yield Part(title, functools.partial(_entries, name, span, options), len(span))


def _entries(name: str, span: range, options: SourceOptions) -> Iterator[Entry]:
    builder = _builder(name, options.data_dir)
    data, get_caption = _data(builder, options), _get_caption(builder, options)
    image_field = _image_field(builder, options)

    def record(key: str, number: int) -> Record:
        example = data[number]
        return caption_record(key, get_text(get_caption(example)), _encoded(example[image_field]), options)

    for number in span:
        key = f"{builder.info.full_name}/{options.input_split}:{number}"
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


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets

    try:
        if Path(name).is_dir():
            return tensorflow_datasets.builder_from_directory(name)
        return tensorflow_datasets.builder(name, data_dir=data_dir, try_gcs=False)
    # TFDS raises errors of many types for an unknown name.
    except Exception as error:
        raise JanusError(f"--input {name} is not a TFDS data set ({describe_error(error)}); check its name.") from error


@functools.cache
def _open(directory: str, split: str, image: str) -> Any:
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(directory)
    encoded = isinstance(builder.info.features[image], tensorflow_datasets.features.Image)
    decoders = {image: tensorflow_datasets.decode.SkipDecoding()} if encoded else None
    return builder.as_data_source(split, decoders=decoders)


def _data(builder: Any, options: SourceOptions) -> Any:
    name = builder.info.full_name
    if not builder.info.splits:
        raise JanusError(
            f"TFDS data set {name} is not in {builder.data_dir}; prepare it there with "
            f'tfds.builder("{name}", file_format="array_record").download_and_prepare(), or give --data_dir.'
        )
    image_field = _image_field(builder, options)
    try:
        return _open(str(builder.data_dir), options.input_split, image_field)
    except Exception as error:
        raise JanusError(
            f"{name} cannot be read ({describe_error(error)}); its splits are {', '.join(builder.info.splits)}, and "
            f'its files must be prepared with file_format="array_record".'
        ) from error


def _image_field(builder: Any, options: SourceOptions) -> str:
    return _field("--image_field", builder, options.image_field, ("image",))


def _field(flag: str, builder: Any, name: str | None, usual: tuple[str, ...]) -> str:
    features = list(builder.info.features)
    for candidate in usual if name is None else (name,):
        if candidate in features:
            return candidate
    raise JanusError(
        f"{builder.info.full_name} has no feature {name or ' or '.join(usual)}, only {', '.join(features)}; name the "
        f"right one with {flag}."
    )


def _get_caption(builder: Any, options: SourceOptions) -> GetCaption:
    """Returns the function from an example to its caption."""
    import tensorflow_datasets

    name = _field("--text_field", builder, options.text_field, ("label", "caption", "text"))
    feature = builder.info.features[name]
    if not isinstance(feature, tensorflow_datasets.features.ClassLabel):
        return lambda example: example[name]
    captions = [class_name.replace("_", " ") for class_name in feature.names]
    if options.class_names is not None:
        given = _read_class_names(options.class_names)
        if missing := [class_name for class_name in feature.names if class_name not in given]:
            raise JanusError(
                f"{options.class_names} lacks {len(missing)} of {len(feature.names)} classes, the first is "
                f"{missing[0]}; add them."
            )
        captions = [given[class_name] for class_name in feature.names]

    def get_caption(example: Mapping[str, Any]) -> str:
        label = int(example[name])
        if not 0 <= label < len(captions):
            message = f"its class is {label}; the data set has {len(captions)} classes."
            raise RejectedRecord(RejectReason.MISSING_FIELD, message)
        return captions[label]

    return get_caption


def _read_class_names(file: str) -> dict[str, str]:
    """Reads captions by class name: a JSON object, or lines of a name and a caption (`n01440764 tench`)."""
    text = read_text(Path(file), "give another")
    if text.lstrip().startswith("{"):
        try:
            return {str(name): str(caption) for name, caption in json.loads(text).items()}
        except ValueError as error:
            raise JanusError(f"{file} is not a JSON object ({error}); fix it.") from error
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}
