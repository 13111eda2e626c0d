"""Records of the dataset, generated on access."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes.dataset.captions import caption, document
from examples.shapes.dataset.drawings import sample_drawing_conversation
from examples.shapes.dataset.edits import EditKind, Limits, sample_edit
from examples.shapes.dataset.questions import Focus, sample_conversation
from examples.shapes.dataset.render import MIN_IMAGE_SIZE, render
from examples.shapes.dataset.scene import Category, Scene, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, Split, Vocabulary
from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.processing import Message, Task

# Counts and relations, the hardest categories, are twice as frequent.
_CAPTION_CATEGORIES = (*Category, Category.COUNTING, Category.POSITION, None, None)
_STREAMS = {Task.TEXT: 0, Task.UNDERSTANDING: 1, Task.GENERATION: 2, Task.EDITING: 3, Task.INTERLEAVED: 4}


@dataclass(frozen=True)
class ShapesDataset:
    """An endless dataset. A record depends only on these fields, its task and its index.

    Attributes:
      split: TRAIN excludes held-out combinations. Every record of TEST is about a held-out combination.
      vocabulary: Shapes and colors that occur.
      image_size: Side of the images in pixels.
      seed: Seed of all records.
      about: If not empty, every scene shows at least one of these shapes and colors.
      categories: Categories of scenes and captions, equally frequent. None stands for scenes of any kind with captions
        that name every object. If empty, all categories occur, and harder ones are more frequent. Categories with one
        object are used early in training, like ImageNet for Janus (arXiv 2410.13848, §3.3).
      focus: Topics of the conversations.
      edits: Kinds of edits, equally frequent. If empty, all kinds.

    Raises:
      JanusError: `image_size` is too small, or `about` is not in the vocabulary.
    """

    split: Split = Split.TRAIN
    vocabulary: Vocabulary = DEFAULT_VOCABULARY
    image_size: int = 48
    seed: int = 0
    about: frozenset[str] = frozenset()
    categories: tuple[Category | None, ...] = ()
    focus: Focus = Focus.EVERYTHING
    edits: tuple[EditKind, ...] = ()

    def __post_init__(self) -> None:
        if self.image_size < MIN_IMAGE_SIZE:
            raise JanusError(
                f"image_size is {self.image_size}; the shapes dataset needs {MIN_IMAGE_SIZE} pixels or more."
            )
        if unknown := self.about - {*self.vocabulary.shapes, *self.vocabulary.colors}:
            raise JanusError(
                f"about names {min(unknown)!r}, which is not in the vocabulary; add it with Vocabulary.with_extras."
            )

    def key(self, task: Task, index: int) -> str:
        """Returns the key of a record."""
        return f"shapes/{self.split}/{self.seed}/{task.value}/{index}"

    def record(self, task: Task, index: int) -> Record:
        """Returns a record.

        Raises:
          JanusError: The vocabulary allows no such scene.
        """
        rng = self._rng(task, index)
        key = self.key(task, index)
        match task:
            case Task.TEXT:
                return Record(key, task, text=document(rng, self.vocabulary, self.split, self.about))
            case Task.UNDERSTANDING:
                scene, messages = self._conversation(rng)
                return Record(key, task, messages=messages, images=self._images(scene))
            case Task.GENERATION:
                scene, text = self._captioned_scene(rng)
                return Record(key, task, text=text, images=self._images(scene))
            case Task.EDITING:
                kinds = self.edits or tuple(EditKind)
                edit = sample_edit(rng, self._limits, kinds[rng.integers(len(kinds))], self.about)
                return Record(key, task, text=edit.request.text, images=self._images(edit.source, edit.target))
            case Task.INTERLEAVED:
                scenes, messages = sample_drawing_conversation(rng, self._limits, about=self.about)
                return Record(key, task, messages=messages, images=self._images(*scenes))

    def texts(self, count: int) -> Iterator[str]:
        """Yields the texts of the first `count` records of every task, for example to train a tokenizer."""
        for index in range(count):
            yield document(self._rng(Task.TEXT, index), self.vocabulary, self.split, self.about)
            rng = self._rng(Task.UNDERSTANDING, index)
            yield from (turn["content"] for turn in self._conversation(rng)[1])
            yield self._captioned_scene(self._rng(Task.GENERATION, index))[1]

    def records(self, task: Task, count: int) -> Iterator[Record]:
        """Yields the first `count` records of a task."""
        return (self.record(task, index) for index in range(count))

    @property
    def _limits(self) -> Limits:
        return Limits(self.vocabulary, self.split)

    def _images(self, *scenes: Scene) -> tuple[bytes, ...]:
        return tuple(encode_png(render(scene, self.image_size)) for scene in scenes)

    def _conversation(self, rng: np.random.Generator) -> tuple[Scene, tuple[Message, ...]]:
        return sample_conversation(
            rng, self.vocabulary, self.split, about=self.about, categories=self.categories, focus=self.focus
        )

    def _captioned_scene(self, rng: np.random.Generator) -> tuple[Scene, str]:
        categories = self.categories or _CAPTION_CATEGORIES
        category = categories[rng.integers(len(categories))]
        scene = sample_scene(rng, self.vocabulary, self.split, category, self.about)
        return scene, caption(scene, rng, category)

    def _rng(self, task: Task, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, tuple(Split).index(self.split), _STREAMS[task], index))


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Returns an image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
