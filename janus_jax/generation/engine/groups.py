"""Prompts and groups of sequences on the host, and their rows in the numbers of a decode call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt32

from janus_jax.generation.engine.slots import NO_TOKEN, Prefilled, Rows
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.processing import Processor, TokenSequence

MAX_SEQUENCES = 3
"""Maximum number of sequences that guidance combines."""


@dataclass(eq=False)
class Prompt:
    """A prompt whose keys and values are computed once for all groups that share it.

    Attributes:
      sequence: The tokens and images.
      image_tokens: Tokens of the sequence's target images as far as they are known. The others are encoded.
      num_shared: Number of first tokens that other prompts are likely to share: those of the system prompt.
      prefilled: Its keys and values, as an entry of a batch of prompts; None before they are computed.
      num_cached: Number of first tokens whose keys and values were those of an earlier prompt.
    """

    sequence: TokenSequence
    image_tokens: Sequence[Int[np.ndarray, " N"] | None] = ()
    num_shared: int = 0
    prefilled: tuple[Prefilled, int] | None = None
    num_cached: int = 0

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def has_images(self) -> bool:
        """Whether the prompt contains images."""
        return bool((self.sequence.und_patch_index >= 0).any() or (self.sequence.gen_token_index >= 0).any())

    @property
    def num_token_images(self) -> int:
        """Number of images that the model reads as image tokens."""
        return max(len(self.sequence.gen_images), len(self.image_tokens))


@dataclass(frozen=True)
class GroupSettings:
    """How the tokens of a group are sampled.

    Attributes:
      is_image: Whether the group generates image tokens.
      sampling: Settings for sampling one token.
      guidance: The argument `guidance_scale` of `decode.guide`.
      stop_tokens: At most two tokens that end the sequence.
    """

    is_image: bool
    sampling: SamplingConfig
    guidance: Any = 1.0
    stop_tokens: tuple[int, ...] = ()


@dataclass(eq=False)
class Group:
    """One sequence to generate, with the further sequences that guidance needs.

    Attributes:
      prompts: The prompt, then those of the further sequences.
      settings: How its tokens are sampled.
      key: Data of its random key.
      limit: Maximum number of tokens.
      receive: Called with new tokens. Returns True if the group needs no more tokens.
      fail: Called with an error that ends the group.
      rows: Rows of its sequences; () before it has any.
      steps: Number of generated tokens.
      num_cached: `Prompt.num_cached` of the first prompt.
    """

    prompts: tuple[Prompt, ...]
    settings: GroupSettings
    key: UInt32[np.ndarray, " K"]
    limit: int
    receive: Callable[[Sequence[int]], bool]
    fail: Callable[[Exception], object]
    rows: tuple[int, ...] = ()
    steps: int = 0
    num_cached: int = 0
    prompt_lengths: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_lengths = tuple(map(len, self.prompts))

    @property
    def num_rows(self) -> int:
        """Number of rows that the group needs."""
        return len(self.prompt_lengths)

    @property
    def length(self) -> int:
        """Number of positions of the longest sequence."""
        return max(self.prompt_lengths) + self.steps

    @property
    def left(self) -> int:
        """Number of tokens that the group still needs at most."""
        return self.limit - self.steps

    def fill(self, rows: Rows) -> None:
        """Writes the numbers of the group's rows."""
        first, last = self.rows[0], self.rows[-1]
        settings = self.settings
        index = list(self.rows)
        rows.lengths[index] = [length + self.steps for length in self.prompt_lengths]
        rows.left[index], rows.steps[index] = self.left, self.steps
        rows.is_image[index], rows.leaders[index] = settings.is_image, first
        rows.others[first] = self.rows[len(self.rows) // 2], last
        if np.ndim(settings.guidance):
            # Two sequences: the second is the last.
            rows.weights[first] = 0
            rows.weights[first, [0, -1] if len(index) == 2 else slice(None)] = settings.guidance
        elif len(index) == 2:
            rows.is_pair[first], rows.guidance_scale[first] = True, settings.guidance
        for column, value in zip(rows.sampling, settings.sampling.params, strict=True):
            column[first] = value
        rows.keys[first] = self.key
        rows.stop_tokens[index] = NO_TOKEN
        rows.stop_tokens[first, : len(settings.stop_tokens)] = settings.stop_tokens


def system_prompt_length(processor: Processor, sequence: TokenSequence, system_prompt: str | None) -> int:
    """Returns the number of first tokens of a conversation that are those of its system prompt alone."""
    text = processor.system_prompt if system_prompt is None else system_prompt
    tokens = np.array(processor.tokenizer.encode(text), np.int32)[: len(sequence)]
    differs = tokens != sequence.tokens[: len(tokens)]
    return int(differs.argmax()) if differs.any() else len(tokens)


def key_data(seed: int, prompt: int, samples: range) -> UInt32[np.ndarray, "N K"]:
    """Returns the data of the keys of `sampling_keys`."""
    return np.asarray(jax.random.key_data(sampling_keys(seed, prompt, samples)))


def key_size() -> int:
    """Returns the number of words of a random key."""
    shape: tuple[int, ...] = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    return shape[-1]


def valid_tokens(tokens: Int[np.ndarray, " M"]) -> list[int]:
    """Returns the tokens of one row of the result of `decode`, without the steps in which the row did not run."""
    return [token for token in tokens.tolist() if token != NO_TOKEN]
