"""The embedded shapes world: records that are drawn, from nothing but a number.

    --source examples.shapes.source:shapes --input train:20000 --task generation
    --input train:2000,seed=7,about=heart+pink,categories=single_object+colors

What stands before the colon is the world's split, behind it how many records; `about` adds its shapes and colours to
the vocabulary and shows one of them in every scene.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from examples.shapes.dataset.questions import Asked
from examples.shapes.dataset.records import World
from examples.shapes.dataset.scene import Category
from examples.shapes.dataset.vocabulary import DEFAULT, Split
from janus_jax.data.prepare.prepare import PrepareOptions, prepare
from janus_jax.data.prepare.shard_writer import DatasetSpec
from janus_jax.data.sources import Entry, Part, SourceOptions, register_source
from janus_jax.errors import JanusError
from janus_jax.processing import Task

_ALL = "all"
"""Among categories: captions that name every thing."""


@register_source("shapes", Task.GENERATION, Task.UNDERSTANDING, Task.TEXT, shard_records=2048)
def shapes(options: SourceOptions) -> Iterator[Part]:
    """SPLIT:COUNT, and after commas image_size=, seed=, about=, categories= and asked= of `shapes.World`."""
    for given in options.inputs:
        world, count = _world(given)
        for first in range(0, count, options.shard_records):
            span = range(first, min(first + options.shard_records, count))
            yield Part(f"{given}/{first}", functools.partial(_entries, world, options.task, span), len(span))


def _entries(world: World, task: Task, span: range) -> Iterator[Entry]:
    for number in span:
        yield Entry(world.key(task, number), functools.partial(world.record, task, number))


def _world(given: str) -> tuple[World, int]:
    head, *settings = given.split(",")
    split, _, count = head.partition(":")
    values = dict(setting.partition("=")[::2] for setting in settings)
    try:
        if unknown := set(values) - {"image_size", "seed", "about", "categories", "asked"}:
            raise ValueError(f"it knows no {min(unknown)!r}")
        about = tuple(filter(None, values.get("about", "").split("+")))
        names = filter(None, values.get("categories", "").split("+"))
        categories = tuple(None if name == _ALL else Category(name) for name in names)
        world = World(
            split=Split(split),
            vocabulary=DEFAULT.with_extras(*about),
            image_size=int(values.get("image_size", World.image_size)),
            seed=int(values.get("seed", World.seed)),
            about=frozenset(about),
            categories=categories or World.categories,
            asked=Asked(values.get("asked", World.asked)),
        )
        if int(count) < 1:
            raise ValueError("the count must be 1 or more")
        return world, int(count)
    except ValueError as error:
        raise JanusError(
            f"--input {given} is no part of the shapes world ({error}); give one such as train:20000 or "
            f"train:2000,seed=7,about=heart+pink,categories=single_object+colors."
        ) from None


def prepare_shards(output: Path, given: str, task: Task, tokenizer: Path | None = None) -> None:
    """Writes the records that `given` describes (see `shapes`) as a prepared data set.

    Args:
      output: Folder of the data set.
      given: Split, count and settings, such as "train:2000,seed=7".
      task: Task of the records.
      tokenizer: Checkpoint that precomputes image tokens or latents; None for none.
    """
    make_encoder = None
    if tokenizer is not None:
        # Imported here because data workers import this module, without jax.
        from janus_jax.data.prepare.encode_images import open_image_encoder

        make_encoder = open_image_encoder(tokenizer)
    options = SourceOptions((given,), task, shard_records=2048)
    name = None if tokenizer is None else str(tokenizer)
    spec = DatasetSpec(f"{__name__}:shapes", options, output, tokenizer=name)
    prepare(spec, PrepareOptions(workers=2, max_rejected=0.0), make_encoder)
