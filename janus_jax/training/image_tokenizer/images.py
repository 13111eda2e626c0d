"""Loads batches of image crops from prepared datasets. A crop depends on the seed, epoch and record only."""

import bisect
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from janus_jax.data.pipeline.dataset import Component, ComponentShard, RecordReader, open_records
from janus_jax.data.pipeline.workers import InlinePool, Pool, ProcessPool, Work
from janus_jax.data.rejects import RejectCounter, Rejection, RejectReason
from janus_jax.errors import DataChanged, JanusError
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
class _CropWorker:
    """Makes the function of a worker process. It maps an epoch and a record index to a crop."""

    components: Sequence[Component]
    size: int
    seed: int
    flip: bool

    def __call__(self) -> Work:
        records = open_all(self.components)
        return lambda task: self._crop(records, *task)

    def _crop(self, records: RecordReader, epoch: int, index: int) -> Pixels | Rejection:
        example_id = f"number {index}"
        try:
            record = records.read(index)
            example_id = record.key
            if not record.images:
                return Rejection(example_id, RejectReason.NO_IMAGE, "the record has no image.")
            rng = np.random.default_rng((self.seed, epoch, index))
            image = open_image(record.images[rng.integers(len(record.images))])
            return random_crop(image, self.size, rng, self.flip)
        except PARSE_ERRORS as error:
            return Rejection(example_id, RejectReason.BAD_IMAGE, describe_error(error))


class RecordImages:
    """Endless iterator over batches of crops from prepared datasets. Records without a readable image are skipped.

    Args:
      data: Datasets and augmentation. Every record is used once per epoch.
      size: Side of the crops in pixels.
      split: This process's share of each batch.

    Raises:
      JanusError: A dataset cannot be opened, or there are no records.
    """

    example_ids = ()

    def __init__(self, data: ImageData, size: int, split: BatchSplit) -> None:
        components = components_of(data.directories, data.split)
        total = open_all(components).length
        self._share = ComponentShard(total, split.process_index, split.process_count, split.seed, "images")
        self._split, self._total = split, total
        worker = _CropWorker(components, size, split.seed, data.flip)
        self._pool: Pool = ProcessPool(worker, data.workers) if data.workers else InlinePool(worker)
        self._read_ahead = split.local_size * (_READ_AHEAD if data.workers else 1)
        self._requested: deque[int] = deque()
        self._position = 0
        self._rejects = RejectCounter(data.max_rejected, _REJECT_WINDOW)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[UInt8[np.ndarray, "B S S 3"]]:
        batch: list[Pixels] = []
        while len(batch) < self._split.local_size:
            while len(self._requested) < self._read_ahead:
                location = self._share.locate(self._position + len(self._requested))
                self._requested.append(self._pool.submit(location))
            crop = self._pool.result(self._requested.popleft())
            self._position += 1
            if isinstance(crop, Rejection):
                self._rejects.reject(crop)
            else:
                self._rejects.accept()
                batch.append(crop)
        return (np.stack(batch),)

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values."""
        return {"position": self._position, "rejects": self._rejects.get_state(), **self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position.

        Raises:
          DataChanged: The position was saved with another seed, number of processes or dataset.
        """
        for name, now in self._fingerprint.items():
            if (saved := saved_value(state, name)) != now:
                raise DataChanged(f"The data position was saved with {name} = {saved}, now it is {now}")
        while self._requested:
            self._pool.cancel(self._requested.pop())
        self._position = int(saved_value(state, "position"))
        self._rejects = self._rejects.with_state(saved_value(state, "rejects"))

    def close(self) -> None:
        """Stops the worker processes."""
        self._pool.close()

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


def open_all(components: Sequence[Component]) -> RecordReader:
    """Returns a reader of all records of several datasets, in order.

    Raises:
      JanusError: A dataset cannot be opened, or there are no records.
    """
    parts = [open_records(component) for component in components]
    lengths = [part.length for part in parts]
    if not sum(lengths):
        raise JanusError("There are no records to train on; name a prepared dataset in config.data.directories.")
    starts = [0, *np.cumsum(lengths)[:-1].tolist()]

    def read(index: int) -> Any:
        part = bisect.bisect_right(starts, index) - 1
        return parts[part].read(index - starts[part])

    return RecordReader(sum(lengths), read)


def center_crops(components: Sequence[Component], size: int, count: int) -> UInt8[np.ndarray, "N S S 3"]:
    """Returns center crops of the first `count` readable images, for evaluation.

    Raises:
      JanusError: No image is readable.
    """
    records = open_all(components)
    crops: list[Pixels] = []
    for index in range(records.length):
        if len(crops) == count:
            break
        with contextlib.suppress(JanusError):
            crops += [prepare_generation(open_image(image), size) for image in records.read(index).images[:1]]
    if not crops:
        names = ", ".join(str(component.source) for component in components)
        raise JanusError(f"{names} has no readable image to evaluate on; name another in config.data.eval_directories.")
    return np.stack(crops)
