"""The shapes dataset as a data source for `janus-prepare`.

    --source examples.shapes.source:shapes --input train:20000 --task generation
    --input train:2000,seed=7,about=heart+pink,categories=single_object+colors

The input is a split, the number of records, and settings of `ShapesDataset`. Shapes and colors in `about` are added to
the vocabulary.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from examples.shapes.dataset.edits import EditKind
from examples.shapes.dataset.questions import Focus
from examples.shapes.dataset.records import ShapesDataset
from examples.shapes.dataset.scene import Category
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, Split
from janus_jax.data.prepare.prepare import PrepareOptions, prepare
from janus_jax.data.prepare.shard_writer import DatasetSpec
from janus_jax.data.sources import Entry, Part, SourceOptions, register_source
from janus_jax.errors import JanusError
from janus_jax.processing import Task

_ALL_OBJECTS = "all"
"""Name, in the input, of scenes of any kind with captions that name every object."""


@register_source(
    "shapes", Task.GENERATION, Task.UNDERSTANDING, Task.TEXT, Task.EDITING, Task.INTERLEAVED, shard_records=2048
)
def shapes(options: SourceOptions) -> Iterator[Part]:
    """Inputs are SPLIT:COUNT, followed by comma-separated settings of `ShapesDataset`, such as seed=7."""
    for given in options.inputs:
        dataset, count = _parse(given)
        for first in range(0, count, options.shard_records):
            span = range(first, min(first + options.shard_records, count))
            yield Part(f"{given}/{first}", functools.partial(_entries, dataset, options.task, span), len(span))


def _entries(dataset: ShapesDataset, task: Task, span: range) -> Iterator[Entry]:
    for number in span:
        yield Entry(dataset.key(task, number), functools.partial(dataset.record, task, number))


def _parse(given: str) -> tuple[ShapesDataset, int]:
    head, *settings = given.split(",")
    split, _, count = head.partition(":")
    values = dict(setting.partition("=")[::2] for setting in settings)
    try:
        if unknown := set(values) - {"image_size", "seed", "about", "categories", "focus", "edits"}:
            raise ValueError(f"unknown setting {min(unknown)!r}")
        about = tuple(filter(None, values.get("about", "").split("+")))
        names = filter(None, values.get("categories", "").split("+"))
        categories = tuple(None if name == _ALL_OBJECTS else Category(name) for name in names)
        dataset = ShapesDataset(
            split=Split(split),
            vocabulary=DEFAULT_VOCABULARY.with_extras(*about),
            image_size=int(values.get("image_size", ShapesDataset.image_size)),
            seed=int(values.get("seed", ShapesDataset.seed)),
            about=frozenset(about),
            categories=categories or ShapesDataset.categories,
            focus=Focus(values.get("focus", ShapesDataset.focus)),
            edits=tuple(map(EditKind, filter(None, values.get("edits", "").split("+")))),
        )
        if int(count) < 1:
            raise ValueError("the count must be 1 or more")
        return dataset, int(count)
    except ValueError as error:
        raise JanusError(
            f"--input {given} does not describe records of the shapes dataset ({error}); give one such as train:20000 "
            f"or train:2000,seed=7,about=heart+pink,categories=single_object+colors."
        ) from None


def prepare_shards(output: Path, given: str, task: Task, tokenizer: Path | None = None) -> None:
    """Writes a prepared dataset, as `janus-prepare` does.

    Args:
      output: Folder of the prepared dataset.
      given: Split, count and settings, such as "train:2000,seed=7".
      task: Task of the records.
      tokenizer: Checkpoint whose image tokenizer precomputes the tokens of target images. None precomputes none.
    """
    make_encoder = None
    if tokenizer is not None:
        # Imported here because the processes of janus-prepare import this module and do not import jax.
        from janus_jax.data.prepare.encode_images import open_image_encoder

        make_encoder = open_image_encoder(tokenizer)
    options = SourceOptions((given,), task, shard_records=2048)
    name = None if tokenizer is None else str(tokenizer)
    spec = DatasetSpec(f"{__name__}:shapes", options, output, tokenizer=name)
    prepare(spec, PrepareOptions(workers=2, max_rejected=0.0), make_encoder)
