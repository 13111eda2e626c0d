"""The world as records: what the three tasks learn from it, in memory or on its way to a prepared data set."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes.dataset.captions import caption, document
from examples.shapes.dataset.questions import Asked, conversation
from examples.shapes.dataset.render import SMALLEST, draw
from examples.shapes.dataset.scene import Category, Scene, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT, Split, Vocabulary
from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.processing import Message, Task

# Numbers and places, which are learnt last, come twice.
_CAPTIONED = (*Category, Category.COUNTING, Category.POSITION, None, None)
_STREAMS = {Task.TEXT: 0, Task.UNDERSTANDING: 1, Task.GENERATION: 2}


@dataclass(frozen=True)
class World:
    """A world without end: every record follows from these fields, its task and its number.

    Attributes:
      split: TRAIN holds no held-out combination; every record of TEST is about one.
      vocabulary: the shapes and colours it shows and names.
      image_size: side of its pictures, in pixels.
      seed: another seed, another world.
      about: shapes and colours of which every scene shows one, to teach new ones; empty for any.
      categories: what scenes are made for and captions ask for, each as often; None is any scene, its caption naming
        every thing; empty for the shares that captions and questions are best learnt in. Those of one object make the
        easy beginning that ImageNet is to Janus (arXiv 2410.13848, §3.3).

      asked: what conversations ask for.

    Raises:
      JanusError: `image_size` is too small, or `about` is not in the vocabulary.
    """

    split: Split = Split.TRAIN
    vocabulary: Vocabulary = DEFAULT
    image_size: int = 48
    seed: int = 0
    about: frozenset[str] = frozenset()
    categories: tuple[Category | None, ...] = ()
    asked: Asked = Asked.EVERYTHING

    def __post_init__(self) -> None:
        if self.image_size < SMALLEST:
            raise JanusError(f"image_size is {self.image_size}; the shapes world needs {SMALLEST} pixels or more.")
        if unknown := self.about - {*self.vocabulary.shapes, *self.vocabulary.colours}:
            raise JanusError(
                f"about names {min(unknown)!r}, which is not in the vocabulary; add it with Vocabulary.with_extras."
            )

    def key(self, task: Task, index: int) -> str:
        """Of the record of this task and number."""
        return f"shapes/{self.split}/{self.seed}/{task.value}/{index}"

    def record(self, task: Task, index: int) -> Record:
        """The record of this task and number.

        Raises:
          JanusError: the vocabulary holds no such scene.
        """
        rng = self._rng(task, index)
        key = self.key(task, index)
        match task:
            case Task.TEXT:
                return Record(key, task, text=document(rng, self.vocabulary, self.split, self.about))
            case Task.UNDERSTANDING:
                scene, messages = self._asked(rng)
                return Record(key, task, messages=messages, images=(encode(draw(scene, self.image_size)),))
            case Task.GENERATION:
                scene, text = self._captioned(rng)
                return Record(key, task, text=text, images=(encode(draw(scene, self.image_size)),))

    def texts(self, count: int) -> Iterator[str]:
        """What the first `count` records of every task say, without their pictures: a tokenizer's corpus."""
        for index in range(count):
            yield document(self._rng(Task.TEXT, index), self.vocabulary, self.split, self.about)
            rng = self._rng(Task.UNDERSTANDING, index)
            yield from (turn["content"] for turn in self._asked(rng)[1])
            yield self._captioned(self._rng(Task.GENERATION, index))[1]

    def records(self, task: Task, count: int) -> "WorldRecords":
        """The first `count` records of a task."""
        return WorldRecords(self, task, count)

    def _asked(self, rng: np.random.Generator) -> tuple[Scene, tuple[Message, ...]]:
        return conversation(rng, self.vocabulary, self.split, self.about, self.categories, self.asked)

    def _captioned(self, rng: np.random.Generator) -> tuple[Scene, str]:
        categories = self.categories or _CAPTIONED
        category = categories[rng.integers(len(categories))]
        scene = sample_scene(rng, self.vocabulary, self.split, category, self.about)
        return scene, caption(scene, rng, category)

    def _rng(self, task: Task, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, tuple(Split).index(self.split), _STREAMS[task], index))


@dataclass(frozen=True)
class WorldRecords(Sequence[Record]):
    """Records that are made when they are read, each time alike: a source for a stream with nothing on disk."""

    world: World
    task: Task
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        numbers = range(self.length)[index]
        if isinstance(numbers, range):
            return [self.world.record(self.task, number) for number in numbers]
        return self.world.record(self.task, numbers)


def encode(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
