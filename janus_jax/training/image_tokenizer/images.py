"""Loads batches of image crops from prepared datasets. A crop depends on the seed, epoch and record only."""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grain
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from janus_jax.data.pipeline.dataset import Component, RecordSource, derive_seed, shard_records
from janus_jax.data.pipeline.loading import Loaded, LoadedExamples, iterate
from janus_jax.data.pipeline.workers import WorkerWatch
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectCounter, RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error
from janus_jax.processing import open_image, prepare_generation
from janus_jax.training.array_batches import BatchSplit, saved_value
from janus_jax.training.image_tokenizer.recipe import ImageData

_MIN_CROP = 0.8
"""Smallest side of a crop, as a fraction of the short side of the image (LlamaGen, arXiv 2406.06525, §3.1)."""

_REJECT_WINDOW = 1000
_READ_AHEAD = 2

Pixels = UInt8[np.ndarray, "S S 3"]


@dataclass(frozen=True)
class _Crop:
    """Makes a crop of a record's image."""

    size: int
    seed: int
    flip: bool

    def __call__(self, record: Record, example_id: str, epoch: int) -> Pixels:
        if not record.images:
            raise RejectedRecord(RejectReason.NO_IMAGE, "the record has no image.")
        rng = np.random.default_rng((self.seed, epoch, derive_seed(record.key)))
        try:
            image = open_image(record.images[rng.integers(len(record.images))])
            return random_crop(image, self.size, rng, self.flip)
        except PARSE_ERRORS as error:
            raise RejectedRecord(RejectReason.BAD_IMAGE, describe_error(error)) from error


class RecordImages:
    """Endless iterator over batches of crops from prepared datasets. Records without a readable image are replaced.

    Args:
      data: Datasets and augmentation. Every record is used once per epoch.
      size: Side of the crops in pixels.
      split: This process's share of each batch.

    Raises:
      JanusError: A dataset cannot be opened, or there are fewer records than processes.
    """

    example_ids = ()

    def __init__(self, data: ImageData, size: int, split: BatchSplit) -> None:
        components = components_of(data.directories, data.split)
        self._split, self._total, self._workers = split, sum(map(len, map(RecordSource, components))), data.workers
        self._rejects = RejectCounter(data.max_rejected, _REJECT_WINDOW)
        records = shard_records(components, split.seed, split.process_index, split.process_count)
        crop, tries = _Crop(size, split.seed, data.flip), self._rejects.max_in_a_row
        self._crops = LoadedExamples(records, crop, name="images", max_tries=tries).repeat()
        self._position = 0
        self._iterator: grain.DatasetIterator[Loaded[Pixels]] | None = None
        self._watch: WorkerWatch | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[UInt8[np.ndarray, "B S S 3"]]:
        if self._iterator is None:
            prefetch = self._split.local_size * _READ_AHEAD
            self._iterator = iterate(self._crops[self._position :], workers=self._workers, prefetch=prefetch)
            self._watch = WorkerWatch() if self._workers else None
        loaded = self._read(itertools.islice(self._iterator, self._split.local_size))
        for one in loaded:
            for rejection in one.rejections:
                self._rejects.reject(rejection)
            self._rejects.accept()
        self._position += len(loaded)
        return (np.stack([one.example for one in loaded if one.example is not None]),)

    def _read(self, crops: Iterable[Loaded[Pixels]]) -> list[Loaded[Pixels]]:
        return list(crops) if self._watch is None else self._watch.call(lambda: list(crops))

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values."""
        return {"position": self._position, "rejects": self._rejects.get_state(), **self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position.

        Raises:
          JanusError: The position was saved with another seed, number of processes or dataset.
        """
        for name, now in self._fingerprint.items():
            if (saved := saved_value(state, name)) != now:
                raise JanusError(
                    f"The data position was saved with {name} = {saved}, now it is {now}; restore {name}, or start in "
                    f"another workdir."
                )
        self.close()
        self._position = int(saved_value(state, "position"))
        self._rejects = self._rejects.with_state(saved_value(state, "rejects"))

    def close(self) -> None:
        """Stops the worker processes."""
        if self._iterator is not None:
            close, self._iterator = self._iterator.close, None
            close() if self._watch is None else self._watch.close(close)

    @property
    def _fingerprint(self) -> dict[str, int]:
        return {"seed": self._split.seed, "process_count": self._split.process_count, "records": self._total}


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, flip: bool = True) -> Pixels:
    """Returns a random square of 0.8 to 1 times the short side, resized to `size`, and mirrored half of the time."""
    shortest = min(image.size)
    side = shortest * rng.uniform(_MIN_CROP, 1.0)
    left, top = (rng.uniform(0, length - side) for length in image.size)
    box = (left, top, min(left + side, image.width), min(top + side, image.height))
    pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box))
    return pixels[:, ::-1] if flip and rng.random() < 0.5 else pixels


def components_of(directories: Sequence[str], split: str) -> tuple[Component, ...]:
    """Returns the prepared datasets in these directories."""
    return tuple(Component(directory, directory, split=split) for directory in directories)


def center_crops(components: Sequence[Component], size: int, count: int) -> UInt8[np.ndarray, "N S S 3"]:
    """Returns center crops of the first `count` readable images, for evaluation.

    Raises:
      JanusError: No image is readable.
    """
    crops: list[Pixels] = []
    for records in map(RecordSource, components):
        for index in range(len(records)):
            if len(crops) == count:
                break
            with contextlib.suppress(JanusError):
                crops += [prepare_generation(open_image(image), size) for image in records[index].images[:1]]
    if not crops:
        names = ", ".join(str(component.source) for component in components)
        raise JanusError(f"{names} has no readable image to evaluate on; name another in config.data.eval_directories.")
    return np.stack(crops)
