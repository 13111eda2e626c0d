"""Batches of images to train the tokenizer on, each following from the seed and its number alone."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes.dataset import images as sample_image_tokens
from janus_jax.data.pipeline.dataset import Component, ComponentShard, RecordReader, open_records
from janus_jax.data.pipeline.workers import InlinePool, Pool, ProcessPool, Work
from janus_jax.data.rejects import RejectCounter, Rejection, RejectReason
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error
from janus_jax.processing import open_image, prepare_generation

_LEAST_CROP = 0.8
"""Of an image's short side, what a crop has at least (as LlamaGen trains, arXiv 2406.06525, §3.1)."""

_RECENT = 1000
_READ_AHEAD = 2

Pixels = UInt8[np.ndarray, "S S 3"]


class ImageStream(Protocol):
    """This process' rows of every batch, without end."""

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "B S S 3"]]: ...

    def __next__(self) -> UInt8[np.ndarray, "B S S 3"]: ...

    def get_state(self) -> dict[str, Any]:
        """Where it is; fit for json."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from where `get_state` was called.

        Raises:
          JanusError: it was another stream.
        """
        ...

    def close(self) -> None:
        """Ends its workers."""
        ...


@dataclass(frozen=True)
class Split:
    """Which rows of a batch are whose.

    Attributes:
      batch_size: of all processes together.
      seed: of the order, the crops and the flips.
    """

    batch_size: int
    seed: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.process_count:
            raise JanusError(
                f"batch_size {self.batch_size} is not a multiple of the {self.process_count} processes; take one."
            )

    @property
    def local_size(self) -> int:
        """Rows of one process."""
        return self.batch_size // self.process_count


class WorldImages:
    """Pictures of the shapes world, drawn once and kept in memory.

    Args:
      size: side in pixels.
      count: pictures that are drawn; batches choose among them.
    """

    def __init__(self, size: int, count: int, split: Split) -> None:
        self._pictures = sample_image_tokens(split.seed, count, size)
        self._split = split
        self._batch = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> UInt8[np.ndarray, "B S S 3"]:
        rng = np.random.default_rng((self._split.seed, self._batch))
        chosen = rng.integers(len(self._pictures), size=self._split.batch_size)
        self._batch += 1
        start = self._split.process_index * self._split.local_size
        return self._pictures[chosen[start : start + self._split.local_size]]

    def get_state(self) -> dict[str, Any]:
        return {"batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._batch = int(_of_state(state, "batch"))

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _MakeImages:
    """What a worker is sent: opens the data sets, and crops the images of records."""

    components: Sequence[Component]
    size: int
    seed: int
    flip: bool

    def __call__(self) -> Work:
        records = open_all(self.components)
        return lambda task: self.image(records, *task)

    def image(self, records: RecordReader, epoch: int, index: int) -> Pixels | Rejection:
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
    """Crops of the images of prepared data sets; records without a readable image are passed over.

    Args:
      components: the data sets; each image comes up equally often, whichever it is of.
      size: side of a crop in pixels.
      workers: processes that decode; 0 decodes in this one.
      flip: whether half of the crops are mirrored.
      max_rejected: share of recent records without a readable image at which it stops.
    """

    def __init__(
        self,
        components: Sequence[Component],
        size: int,
        split: Split,
        workers: int = 0,
        flip: bool = True,
        max_rejected: float = 0.1,
    ) -> None:
        total = open_all(components).length
        self._share = ComponentShard(total, split.process_index, split.process_count, split.seed, "images")
        self._split, self._total = split, total
        make = _MakeImages(tuple(components), size, split.seed, flip)
        self._pool: Pool = ProcessPool(make, workers) if workers else InlinePool(make)
        self._ahead = split.local_size * (_READ_AHEAD if workers else 1)
        self._asked: deque[int] = deque()
        self._position = 0
        self._ledger = RejectCounter(max_rejected, _RECENT)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> UInt8[np.ndarray, "B S S 3"]:
        batch: list[Pixels] = []
        while len(batch) < self._split.local_size:
            while len(self._asked) < self._ahead:
                self._asked.append(self._pool.submit(self._share.locate(self._position + len(self._asked))))
            result = self._pool.result(self._asked.popleft())
            self._position += 1
            if isinstance(result, Rejection):
                self._ledger.reject(result)
            else:
                self._ledger.accept()
                batch.append(result)
        return np.stack(batch)

    def get_state(self) -> dict[str, Any]:
        return {"position": self._position, "ledger": self._ledger.get_state(), **self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        for name, now in self._fingerprint.items():
            if (then := _of_state(state, name)) != now:
                raise JanusError(
                    f"The data's position was saved with {name} = {then}, now it is {now}; go on as it was, or start "
                    f"in another workdir."
                )
        while self._asked:
            self._pool.cancel(self._asked.pop())
        self._position = int(_of_state(state, "position"))
        self._ledger = self._ledger.with_state(_of_state(state, "ledger"))

    def close(self) -> None:
        self._pool.close()

    @property
    def _fingerprint(self) -> dict[str, int]:
        return {"seed": self._split.seed, "process_count": self._split.process_count, "records": self._total}


def _of_state(state: dict[str, Any], name: str) -> Any:
    if name not in state:
        raise JanusError(f"The checkpoint's data position lacks {name!r}: it is of another kind of data.")
    return state[name]


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, flip: bool = True) -> Pixels:
    """A square of 0.8 to all of the image's short side, scaled to `size`; mirrored half of the time."""
    shortest = min(image.size)
    side = shortest * rng.uniform(_LEAST_CROP, 1.0)
    left, top = (rng.uniform(0, length - side) for length in image.size)
    box = (left, top, min(left + side, image.width), min(top + side, image.height))
    pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box))
    return pixels[:, ::-1] if flip and rng.random() < 0.5 else pixels


@dataclass(frozen=True)
class _Joined:
    """Several data sets as one."""

    parts: Sequence[RecordReader]
    starts: Sequence[int] = field(default_factory=tuple)

    def read(self, index: int) -> Any:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part].read(index - self.starts[part])


def open_all(components: Sequence[Component]) -> RecordReader:
    """All records, data set after data set.

    Raises:
      JanusError: see `open_records`; or there are none.
    """
    parts = [open_records(component) for component in components]
    lengths = [part.length for part in parts]
    if not sum(lengths):
        raise JanusError("There are no records to train on; name a prepared data set in data.directories.")
    starts = [0, *np.cumsum(lengths)[:-1].tolist()]
    return RecordReader(sum(lengths), _Joined(parts, starts).read)


def middle_crops(components: Sequence[Component], size: int, count: int) -> UInt8[np.ndarray, "N S S 3"]:
    """The middles of the first readable images, to evaluate on.

    Raises:
      JanusError: there is none.
    """
    records = open_all(components)
    crops: list[Pixels] = []
    for index in range(records.length):
        if len(crops) == count:
            break
        try:
            crops += [prepare_generation(open_image(image), size) for image in records.read(index).images[:1]]
        except JanusError:
            continue
    if not crops:
        names = ", ".join(str(component.source) for component in components)
        raise JanusError(f"{names} holds no readable image to evaluate on; name another in data.eval_directories.")
    return np.stack(crops)
