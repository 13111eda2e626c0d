"""The shapes dataset as TFDS datasets, one per task.

builder = Shapes(config="understanding", data_dir="data")
builder.download_and_prepare()
records = builder.as_data_source("train")
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from examples.shapes.dataset.records import ShapesDataset
from examples.shapes.dataset.vocabulary import Split
from janus_jax.data.records import features
from janus_jax.processing import Task

COUNTS: Mapping[Split, int] = {Split.TRAIN: 20_000, Split.TEST: 1_000}
"""Default number of records per split."""


class ShapesConfig(tfds.core.BuilderConfig):
    """Records of one task.

    The name is the task, followed by a hash of the settings that differ from the defaults. Different datasets therefore
    have different folders.

    Args:
      task: Task of all records.
      counts: Number of records per split.
      settings: Fields of `ShapesDataset`, except the split.
    """

    def __init__(self, task: Task, *, counts: Mapping[Split, int] = COUNTS, **settings: Any):
        self.task = task
        self.counts = {split: counts[split] for split in Split}
        self.datasets = {split: ShapesDataset(split, **settings) for split in Split}
        is_default = self.counts == COUNTS and self.datasets == {split: ShapesDataset(split) for split in Split}
        content = repr((self.counts, sorted((name, _ordered(value)) for name, value in settings.items())))
        suffix = "" if is_default else f"_{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}"
        super().__init__(name=f"{task.value}{suffix}", description=f"Records for {task.value}.")


def _ordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


class Shapes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder with one config per task. Other counts, sizes or words are given as a `ShapesConfig`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[ShapesConfig]] = [ShapesConfig(task) for task in Task]
    # Without this, TFDS looks for a list of downloads next to this file, with a package that it does not require.
    url_infos: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features(), description="Scenes of coloured shapes with captions and questions."
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Iterator[tuple[str, Any]]]:
        del dl_manager  # Nothing is downloaded.
        return {split.value: self._generate_examples(split) for split in Split}

    def _generate_examples(self, split: Split) -> Iterator[tuple[str, Any]]:
        config = self.builder_config
        for record in config.datasets[split].records(config.task, config.counts[split]):
            yield record.key, record.to_example()


def prepare_shapes(directory: str | Path, **settings: Any) -> dict[Task, Path]:
    """Builds the datasets of all three tasks and returns their folders.

    Args:
      directory: Parent folder, created if missing. Existing datasets with the same settings are kept.
      settings: `counts` and fields of `ShapesDataset`.
    """
    folders = {}
    for task in Task:
        config = ShapesConfig(task, **settings)
        # TFDS takes registered configs by name only.
        is_registered = config.name in Shapes.builder_configs
        builder = Shapes(config=config.name if is_registered else config, data_dir=str(directory))
        builder.download_and_prepare()
        folders[task] = Path(builder.data_dir)
    return folders
