"""The world as TFDS data sets of records, drawn when they are built; nothing is downloaded.

builder = Shapes(config="understanding", data_dir="data")
builder.download_and_prepare()
records = builder.as_data_source("train")
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from examples.shapes.dataset.questions import Asked
from examples.shapes.dataset.records import World
from examples.shapes.dataset.scene import Category
from examples.shapes.dataset.vocabulary import DEFAULT, Split, Vocabulary
from janus_jax.data.records import features
from janus_jax.processing import Task

COUNTS: Mapping[Split, int] = {Split.TRAIN: 20_000, Split.TEST: 1_000}
"""Records of each split, unless told otherwise."""


class ShapesConfig(tfds.core.BuilderConfig):
    """One task's records.

    Its name is the task's, and a mark of whatever is not as it is by default, so that different data sets lie in
    different folders.

    Args:
      task: of all records.
      counts: how many records each split has.
      image_size, seed, vocabulary, about, categories, asked: as `World` has them.
    """

    def __init__(
        self,
        task: Task,
        *,
        counts: Mapping[Split, int] = COUNTS,
        image_size: int = 48,
        seed: int = 0,
        vocabulary: Vocabulary = DEFAULT,
        about: frozenset[str] = frozenset(),
        categories: tuple[Category | None, ...] = World.categories,
        asked: Asked = World.asked,
    ):
        self.task = task
        self.counts = {split: counts[split] for split in Split}
        self.worlds = {split: World(split, vocabulary, image_size, seed, about, categories, asked) for split in Split}
        plain = self.counts == COUNTS and self.worlds == {split: World(split) for split in Split}
        content = repr((self.counts, image_size, seed, vocabulary, sorted(about), categories, asked))
        mark = "" if plain else f"_{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}"
        super().__init__(name=f"{task.value}{mark}", description=f"What teaches {task.value}.")


class Shapes(tfds.core.GeneratorBasedBuilder):
    """A config for each task; other counts, sizes or words are given as a `ShapesConfig`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[ShapesConfig]] = [ShapesConfig(task) for task in Task]
    # Nothing is downloaded. (TFDS would look for a list beside this file, with a package that it does not require.)
    url_infos: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features(), description="Scenes of coloured shapes: drawn, told and asked about."
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Iterator[tuple[str, Any]]]:
        del dl_manager  # Nothing is downloaded.
        return {split.value: self._generate_examples(split) for split in Split}

    def _generate_examples(self, split: Split) -> Iterator[tuple[str, Any]]:
        config = self.builder_config
        for record in config.worlds[split].records(config.task, config.counts[split]):
            yield record.key, record.to_example()


def prepare_shapes(directory: str | Path, **settings: Any) -> dict[Task, Path]:
    """Builds all three tasks' data sets under a directory and says where each lies.

    Args:
      directory: made if need be. A data set that is already there, with the same settings, is left as it is.
      settings: `counts`, `image_size`, `seed`, `vocabulary`, `about`, `categories` and `asked`, as `ShapesConfig` has
        them.
    """
    places = {}
    for task in Task:
        config = ShapesConfig(task, **settings)
        # TFDS takes those that it knows by name alone.
        known = config.name in Shapes.builder_configs
        builder = Shapes(config=config.name if known else config, data_dir=str(directory))
        builder.download_and_prepare()
        places[task] = Path(builder.data_dir)
    return places
