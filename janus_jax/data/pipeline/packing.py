"""Packs examples into sequences of fixed length. All batches have the same shape and little padding."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from janus_jax.batch import NO_IMAGE, NO_POSITION, PADDING_SEGMENT, Batch
from janus_jax.data.pipeline.examples import Example
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import JanusError
from janus_jax.processing import Processor

# To fill the rest of a sequence, all groups of up to 3 of the 16 oldest examples that fit are tried. A group of 3 is
# selected only if it leaves less than 1/256 of the sequence free.
_MAX_CANDIDATES = 16
_MAX_GROUP = 3
_FULL = 1 / 256


@dataclass(frozen=True)
class Budget:
    """Capacity of one packed sequence.

    Attributes:
      tokens: Length L of the sequence.
      und_images: Input images U.
      gen_images: Target images G.
      text_targets: Supervised text positions T.
      context_images: Images C whose image tokens are read but not predicted, such as the sources of edits.
    """

    tokens: int = 4096
    und_images: int = 3
    gen_images: int = 5
    text_targets: int = 4096
    context_images: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 2 or min(self.limits[1:]) < 0:
            raise JanusError(f"{self} is not valid: tokens must be at least 2, the other fields at least 0.")

    @property
    def limits(self) -> Int[np.ndarray, " K"]:
        """The limits as a vector, in the order of `names`."""
        return np.array([getattr(self, name) for name in self.names])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the limited quantities. The last, `context_images`, is left out if no context images are allowed."""
        names = tuple(self.__dataclass_fields__)
        return names if self.context_images else names[:-1]

    def measure(self, example: Example) -> Int[np.ndarray, " K"]:
        """Returns the size of an example in the order of `limits`."""
        return np.array([*example.size, example.sequence.num_context_images][: len(self.names)])

    def fits(self, example: Example) -> bool:
        """Returns whether an empty sequence has room for an example."""
        has_room = example.sequence.num_context_images <= self.context_images
        return has_room and bool((self.measure(example) <= self.limits).all())


def truncate(example: Example, budget: Budget) -> Example:
    """Returns an example whose text is cut at the end, if it exceeds the budget.

    The cut is as late as the budgets of tokens and of text targets allow.

    Raises:
      RejectedRecord: The example has too many images, an image would be cut, or no targets would be left.
    """
    if budget.fits(example):
        return example
    sequence = example.sequence
    length = min(budget.tokens, len(sequence))
    if len(example.text_targets) > budget.text_targets:
        length = min(length, int(example.text_targets[budget.text_targets]))
    targets = example.text_targets[example.text_targets < length]
    # Input images are checked from length - 1 on, because the end-of-image token must stay with its image.
    cuts_image = (sequence.und_patch_index[length - 1 :] != NO_IMAGE).any() or (
        sequence.gen_token_index[length:] != NO_IMAGE
    ).any()
    shorter = replace(
        example,
        sequence=replace(
            sequence,
            tokens=sequence.tokens[:length],
            answer_mask=sequence.answer_mask[:length],
            und_patch_index=sequence.und_patch_index[:length],
            gen_token_index=sequence.gen_token_index[:length],
        ),
        text_targets=targets,
        truncated=len(sequence) - length,
    )
    if cuts_image or not (len(targets) or len(example.gen_starts)) or not budget.fits(shorter):
        raise RejectedRecord(
            RejectReason.TOO_LONG,
            f"it has {_describe([*example.size, sequence.num_context_images])}; a packed sequence has room for "
            f"{_describe([*budget.limits, 0])}.",
        )
    return shorter


def _describe(size: Sequence[int]) -> str:
    names = ("tokens", "input images", "target images", "text targets", "context images")
    return ", ".join(f"{n} {name}" for n, name in zip(size, names, strict=False) if n or name != "context images")


def select_examples(sizes: Int[np.ndarray, "S K"], limits: Int[np.ndarray, " K"]) -> list[int]:
    """Returns the waiting examples that fill the next sequence.

    The oldest example is always selected, so no example waits indefinitely. The oldest examples that fit follow, until
    a small group fills the rest of the sequence.

    Args:
      sizes: Sizes of the waiting examples, oldest first.
      limits: Limits of the budget.

    Returns:
      Indices of the selected examples, in packing order.
    """
    selected: list[int] = []
    taken = np.zeros(len(sizes), bool)
    free = limits.copy()
    while (fit := np.flatnonzero(~taken & (sizes <= free).all(axis=1))).size:
        group = fit[:1] if not selected else _best_group(sizes, fit[:_MAX_CANDIDATES], free, limits[0] * _FULL)
        selected.extend(group.tolist())
        taken[group] = True
        free = free - sizes[group].sum(axis=0)
    return selected


def _best_group(
    sizes: Int[np.ndarray, "S K"], fit: Int[np.ndarray, " F"], free: Int[np.ndarray, " K"], full: float
) -> Int[np.ndarray, " C"]:
    """Returns the group that leaves the fewest tokens free, or the oldest example if a larger group would fit."""
    if len(fit) >= _MAX_GROUP:
        longest = sizes[fit[np.argpartition(sizes[fit, 0], -_MAX_GROUP)[-_MAX_GROUP:]]].sum(axis=0)
        # All groups fit less than this one, which is not full. Saves most of the time.
        if free[0] - longest[0] > full and (longest <= free).all():
            return fit[:1]
    first, second, third = groups = _groups(len(fit))
    # The added zero size stands for "no example" in groups of fewer than three.
    columns = np.vstack([sizes[fit], np.zeros_like(free)]).T
    totals = columns[:, first] + columns[:, second] + columns[:, third]
    tokens = np.where((totals <= free[:, None]).all(axis=0), totals[0], 0)
    best = groups[:, tokens.argmax()]
    best = fit[best[best < len(fit)]]
    return best if len(best) < _MAX_GROUP or free[0] - tokens.max() <= full else fit[:1]


@functools.cache
def _groups(count: int) -> Int[np.ndarray, "3 C"]:
    """Returns all groups of up to three indices less than `count`. Smaller groups are padded with `count`."""
    groups = [
        (*group, *[count] * (_MAX_GROUP - size))
        for size in range(1, _MAX_GROUP + 1)
        for group in itertools.combinations(range(count), size)
    ]
    return np.ascontiguousarray(np.array(groups).T)


class ImageShapes(NamedTuple):
    """Shapes of the images in a batch.

    Attributes:
      und_size: Side of an input image in pixels.
      gen_size: Side of a target image in pixels.
      gen_tokens: Number of precomputed tokens per target image; 0 if the batch has pixels.
      latents: Height, width and channels of the precomputed latents of a target image; None without latents.
    """

    und_size: int
    gen_size: int
    gen_tokens: int = 0
    latents: tuple[int, int, int] | None = None

    @classmethod
    def of(
        cls,
        sizes: tuple[int, int],
        num_gen_tokens: int,
        latent_shape: tuple[int, int, int] | None,
        precomputed_image_tokens: bool,
    ) -> "ImageShapes":
        """Returns the shapes for a model. `precomputed_image_tokens` has the same meaning as in `pack`."""
        tokens = num_gen_tokens if precomputed_image_tokens and latent_shape is None else 0
        return cls(*sizes, tokens, latent_shape if precomputed_image_tokens else None)


def empty_batch(sequences: int, budget: Budget, images: ImageShapes, pad: int = 0) -> Batch:
    """Returns a batch of empty sequences: all positions are padding with the token `pad`."""

    def filled(width: int, value: int) -> Int[np.ndarray, "B W"]:
        return np.full((sequences, width), value, np.int32)

    und, gen, tokens, latents = images
    num_gen = budget.gen_images + budget.context_images
    return Batch(
        tokens=filled(budget.tokens, pad),
        segment_ids=filled(budget.tokens, PADDING_SEGMENT),
        positions=filled(budget.tokens, 0),
        und_patch_index=filled(budget.tokens, NO_IMAGE),
        gen_token_index=filled(budget.tokens, NO_IMAGE),
        und_images=np.zeros((sequences, budget.und_images, und, und, 3), np.uint8),
        gen_images=np.zeros((sequences, 0 if tokens else num_gen, gen, gen, 3), np.uint8),
        text_targets=filled(budget.text_targets, NO_POSITION),
        gen_starts=filled(budget.gen_images, NO_POSITION),
        gen_ids=np.zeros((sequences, num_gen, tokens), np.int32) if tokens else None,
        gen_latents=None if latents is None else np.zeros((sequences, budget.gen_images, *latents), np.float32),
    )


def pack(
    sequences: Sequence[Sequence[Example]], budget: Budget, processor: Processor, precomputed_image_tokens: bool = False
) -> Batch:
    """Packs examples into a batch.

    Args:
      sequences: Examples of each of the B sequences. The examples of a sequence must fit the budget.
      budget: L, U, G, T and C of the batch.
      processor: Processor that made the examples.
      precomputed_image_tokens: Whether to fill `gen_ids` and leave `gen_images` empty. For JanusFlow: whether
        to fill `gen_latents` in addition to `gen_images`, which SigLIP encodes.
    """
    n_und, n_gen = processor.num_und_tokens, processor.num_gen_tokens
    image_sizes = processor.und_image_size, processor.gen_image_size
    images = ImageShapes.of(image_sizes, n_gen, processor.latent_shape, precomputed_image_tokens)
    batch = empty_batch(len(sequences), budget, images, processor.tokenizer.special.pad)
    assert batch.gen_starts is not None
    assert batch.text_targets is not None
    for index, examples in enumerate(sequences):
        start, und, gen, targets = 0, 0, 0, 0
        context = budget.gen_images  # Context images follow the room for target images.
        for segment, example in enumerate(examples, start=PADDING_SEGMENT + 1):
            sequence, size = example.sequence, example.size
            here = np.s_[index, start : start + size[0]]
            batch.tokens[here] = sequence.tokens
            masked = processor.masks_padding & (sequence.tokens == processor.tokenizer.special.pad)
            batch.segment_ids[here] = np.where(masked, PADDING_SEGMENT, segment)
            batch.positions[here] = np.arange(size[0])
            batch.und_patch_index[here] = _shifted(sequence.und_patch_index, und * n_und)
            num_targets, num_contexts = int(size[2]), sequence.num_context_images
            is_context = sequence.gen_token_index >= num_targets * n_gen
            offset = np.where(is_context, context - num_targets, gen) * n_gen
            batch.gen_token_index[here] = _shifted(sequence.gen_token_index, offset)
            batch.und_images[index, und : und + size[1]] = sequence.und_images
            gens = np.s_[index, gen : gen + num_targets]
            contexts = np.s_[index, context : context + num_contexts]
            if batch.gen_ids is None:
                batch.gen_images[gens] = sequence.gen_images[:num_targets]
                batch.gen_images[contexts] = sequence.gen_images[num_targets:]
            elif example.gen_ids is not None:
                batch.gen_ids[gens] = example.gen_ids[:num_targets]
                batch.gen_ids[contexts] = example.gen_ids[num_targets:]
            if batch.gen_latents is not None and example.gen_latents is not None:
                batch.gen_latents[gens] = example.gen_latents
            batch.gen_starts[gens] = example.gen_starts + start
            batch.text_targets[index, targets : targets + size[3]] = example.text_targets + start
            start, und, gen, targets = np.add((start, und, gen, targets), size)
            context += num_contexts
    return batch


def _shifted(image_index: Int[np.ndarray, " L"], offset: int | Int[np.ndarray, " L"]) -> Int[np.ndarray, " L"]:
    return np.where(image_index == NO_IMAGE, NO_IMAGE, image_index + offset)
