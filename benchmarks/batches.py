"""Packed training batches of random text and images, with examples of equal or of different lengths."""

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
"""Token id at image positions."""


@dataclass(frozen=True)
class Example:
    """Text with at most one image.

    Attributes:
      prompt: Text tokens before the image.
      answer: Text tokens after the image.
      image: Kind of the image: `und` (input image), `gen` (target image) or None without an image.
    """

    prompt: int
    answer: int = 0
    image: Literal["und", "gen"] | None = None

    def image_tokens(self, config: JanusConfig) -> int:
        """Returns the number of tokens of the image."""
        return {"und": config.und_encoder.num_patches, "gen": config.gen_encoder.num_tokens, None: 0}[self.image]

    def length(self, config: JanusConfig) -> int:
        """Returns the number of tokens of text and image."""
        return self.prompt + self.image_tokens(config) + self.answer


Sequences = Sequence[Sequence[Example]]


def equal_sequences(
    config: JanusConfig, batch_size: int, length: int, *, und_images: int, gen_images: int, prompt: int, answer: int
) -> Sequences:
    """Returns sequences of the same examples: input images, target images, and text that fills the sequence.

    Args:
      und_images, gen_images: Number of examples with one image each.
      prompt: Text tokens before an image.
      answer: Text tokens after an input image.

    Raises:
      JanusError: The examples do not fit the length.
    """
    examples = [Example(prompt, answer, "und")] * und_images + [Example(prompt, 0, "gen")] * gen_images
    left = length - sum(example.length(config) for example in examples)
    if left < 2:
        raise JanusError(f"{length} tokens are too few for {len(examples)} examples with images and text.")
    return [[*examples, Example(left)]] * batch_size


def unequal_sequences(config: JanusConfig, batch_size: int, length: int) -> Sequences:
    """Returns sequences of random examples of different lengths, packed as in training.

    Half of the examples have an input image. Texts have 16 to 256 tokens, answers 8 to 128, both with uniformly
    distributed logarithms.
    """
    # The packer chooses among 64 examples (the default of training is 24). The first 32 sequences are not typical,
    # because long examples are packed after several others, so they are left out.
    waiting_examples, skipped = 64, 32
    random = np.random.default_rng(0)

    def log_uniform(minimum: int, doublings: int) -> int:
        return int(minimum * 2 ** random.uniform(0, doublings))

    def make_example(number: int) -> Example:
        return Example(12, log_uniform(8, 4), "und") if number % 2 else Example(log_uniform(16, 4))

    stream, waiting, packed = map(make_example, itertools.count()), list[Example](), list[Sequence[Example]]()
    limits = Budget(
        length, und_images=length // config.und_encoder.num_patches, gen_images=0, text_targets=length
    ).limits
    while len(packed) < skipped + batch_size:
        waiting += itertools.islice(stream, waiting_examples - len(waiting))
        sizes = [(one.length(config), one.image == "und", 0, one.prompt + one.answer) for one in waiting]
        chosen = select_examples(np.array(sizes), limits)
        packed.append([waiting[index] for index in chosen])
        waiting = [example for index, example in enumerate(waiting) if index not in chosen]
    return packed[skipped:]


def make_batch(config: JanusConfig, sequences: Sequences, length: int) -> Batch:
    """Returns a batch of packed examples with random tokens and pixels.

    All text tokens are targets, except the first token of each example.
    """
    random, shape = np.random.default_rng(0), (len(sequences), length)
    segment_ids, positions = np.zeros((2, *shape), np.int32)
    index = {"und": np.full(shape, NO_IMAGE, np.int32), "gen": np.full(shape, NO_IMAGE, np.int32)}
    counts = {kind: max(sum(one.image == kind for one in examples) for examples in sequences) for kind in index}
    gen_starts = np.full((len(sequences), counts["gen"]), NO_POSITION, np.int32)
    for row, examples in enumerate(sequences):
        images = {kind: itertools.count() for kind in index}
        end = 0
        for segment, example in enumerate(examples, 1):
            start, end = end, end + example.length(config)
            segment_ids[row, start:end], positions[row, start:end] = segment, np.arange(end - start)
            if example.image is None:
                continue
            first, size, image = start + example.prompt, example.image_tokens(config), next(images[example.image])
            index[example.image][row, first : first + size] = np.arange(size) + image * size
            if example.image == "gen":
                gen_starts[row, image] = first
    is_text = (segment_ids > 0) & (index["und"] == NO_IMAGE) & (index["gen"] == NO_IMAGE)
    supervised = [np.flatnonzero(row) for row in is_text & (positions > 0)]
    targets = np.full((len(sequences), max(map(len, supervised))), NO_POSITION, np.int32)
    for row, found in enumerate(supervised):
        targets[row, : len(found)] = found
    tokens = random.integers(IMAGE + 1, config.llm.vocab_size, shape)

    def random_images(kind: str, side: int) -> Any:
        return random.integers(0, 256, (len(sequences), counts[kind], side, side, 3), np.uint8)

    return Batch(
        tokens=np.where(is_text, tokens, IMAGE).astype(np.int32),
        segment_ids=segment_ids,
        positions=positions,
        und_patch_index=index["und"],
        gen_token_index=index["gen"],
        und_images=random_images("und", config.und_encoder.image_size),
        gen_images=random_images("gen", config.gen_encoder.image_size),
        text_targets=targets,
        gen_starts=gen_starts,
    )
