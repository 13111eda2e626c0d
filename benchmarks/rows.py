"""Rows to train on, of random words and pictures: samples that are all alike, or as unlike as people's are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from janus_jax.batch import NO_IMAGE, NO_POSITION, Batch
from janus_jax.config import JanusConfig
from janus_jax.data.pipeline.packing import Budget, select_examples
from janus_jax.errors import JanusError

IMAGE = 4
"""The id of image places."""


@dataclass(frozen=True)
class Sample:
    """Text, with an image in it or none.

    Attributes:
      prompt: places of text before the image.
      answer: places of text after it.
      image: whether it is there to understand or to generate.
    """

    prompt: int
    answer: int = 0
    image: Literal["und", "gen"] | None = None

    def image_places(self, config: JanusConfig) -> int:
        """Of the image."""
        return {"und": config.und_encoder.num_patches, "gen": config.gen_encoder.num_tokens, None: 0}[self.image]

    def length(self, config: JanusConfig) -> int:
        """Of all of it, in places."""
        return self.prompt + self.image_places(config) + self.answer


Row = Sequence[Sample]


@dataclass(frozen=True)
class Layout:
    """A full row: images to understand, images to generate, and text in what is left.

    Attributes:
      places: of the row.
      und_images, gen_images: of so many samples with one image each.
      prompt: places of text before an image.
      answer: places of text after an image to understand.
    """

    places: int
    und_images: int
    gen_images: int
    prompt: int
    answer: int

    def row(self, config: JanusConfig) -> Row:
        """The samples.

        Raises:
          JanusError: they are longer than the row.
        """
        shown = [Sample(self.prompt, self.answer, "und")] * self.und_images
        shown += [Sample(self.prompt, 0, "gen")] * self.gen_images
        left = self.places - sum(sample.length(config) for sample in shown)
        if left < 2:
            raise JanusError(f"{self.places} places are too few for {len(shown)} samples with images and text.")
        return [*shown, Sample(left)]

    def batch(self, config: JanusConfig, rows: int) -> Batch:
        """Rows that are all alike."""
        return batch_of(config, [self.row(config)] * rows, self.places)


_WAITING = 64
"""Samples that the packer chooses from; training's default is 24 (`data.stream`)."""
_UNDER_WAY = 32
"""Rows after which those that wait are as in any later one."""


def unlike_rows(config: JanusConfig, rows: int, places: int) -> list[Row]:
    """Rows as training packs them (`data.packing`), some way into a stream of samples that differ.

    Half of the samples have an image to understand, half none. Texts and answers have 16 to 256 and 8 to 128 places, as
    many between 16 and 32 as between 128 and 256.
    """
    random = np.random.default_rng(0)

    def doubled(least: int, times: int) -> int:
        return int(least * 2 ** random.uniform(0, times))

    def draw(number: int) -> Sample:
        return Sample(12, doubled(8, 4), "und") if number % 2 else Sample(doubled(16, 4))

    def size(sample: Sample) -> tuple[int, int, int, int]:
        return sample.length(config), sample.image == "und", 0, sample.prompt + sample.answer

    stream, waiting, packed = map(draw, itertools.count()), list[Sample](), list[Row]()
    room = Budget(places, und_images=places // config.und_encoder.num_patches, gen_images=0, text_targets=places).limits
    while len(packed) < _UNDER_WAY + rows:
        waiting += itertools.islice(stream, _WAITING - len(waiting))
        chosen = select_examples(np.array([size(sample) for sample in waiting]), room)
        packed.append([waiting[index] for index in chosen])
        waiting = [sample for index, sample in enumerate(waiting) if index not in chosen]
    return packed[_UNDER_WAY:]


def batch_of(config: JanusConfig, rows: Sequence[Row], places: int) -> Batch:
    """These samples, end to end. All text is learnt but the first word of a sample."""
    random, shape = np.random.default_rng(0), (len(rows), places)
    segments, positions = np.zeros((2, *shape), np.int32)
    fillers = {"und": np.full(shape, NO_IMAGE, np.int32), "gen": np.full(shape, NO_IMAGE, np.int32)}
    counts = {kind: max(sum(one.image == kind for one in row) for row in rows) for kind in fillers}
    gen_starts = np.full((len(rows), counts["gen"]), NO_POSITION, np.int32)
    for index, row in enumerate(rows):
        seen = {kind: itertools.count() for kind in fillers}
        end = 0
        for number, sample in enumerate(row):
            start, end = end, end + sample.length(config)
            segments[index, start:end], positions[index, start:end] = number + 1, np.arange(end - start)
            if sample.image is None:
                continue
            first, size, image = start + sample.prompt, sample.image_places(config), next(seen[sample.image])
            fillers[sample.image][index, first : first + size] = np.arange(size) + image * size
            if sample.image == "gen":
                gen_starts[index, image] = first
    text = (segments > 0) & (fillers["und"] == NO_IMAGE) & (fillers["gen"] == NO_IMAGE)
    learnt = [np.flatnonzero(row) for row in text & (positions > 0)]
    targets = np.full((len(rows), max(map(len, learnt))), NO_POSITION, np.int32)
    for index, those in enumerate(learnt):
        targets[index, : len(those)] = those
    tokens = random.integers(IMAGE + 1, config.llm.vocab_size, shape)

    def pictures(kind: str, side: int) -> Any:
        return random.integers(0, 256, (len(rows), counts[kind], side, side, 3), np.uint8)

    return Batch(
        tokens=np.where(text, tokens, IMAGE).astype(np.int32),
        segment_ids=segments,
        positions=positions,
        und_patch_index=fillers["und"],
        gen_token_index=fillers["gen"],
        und_images=pictures("und", config.und_encoder.image_size),
        gen_images=pictures("gen", config.gen_encoder.image_size),
        text_targets=targets,
        gen_starts=gen_starts,
    )
