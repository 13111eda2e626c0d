"""Options of the engine: sizes that decide which programs are compiled."""

import dataclasses
from dataclasses import dataclass

from janus_jax.config import ModelConfig
from janus_jax.errors import JanusError
from janus_jax.generation.padding import round_up
from janus_jax.models.target_platform import current_platform

_DEFAULT_MAX_LENGTH = 4096
_BUCKETS = (64, 128, 256, 512, 768)
_TOKENS_PER_PREFILL = {"cpu": 64}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of the engine.

    The cache has at most `slots * max_length` positions. It grows to the next of `rows` and `lengths` when requests
    need it, and shrinks again. Each pair of a number of rows and a length is one decode program.

    Attributes:
      slots: Maximum number of sequences that are decoded together. An answer takes one, an image with guidance two, and
        an edit two or three.
      max_length: Maximum number of positions of a sequence: prompt, answer and image. 0: the model's context, at most
        4096.
      rows: Numbers of rows of the cache, ascending. (): 4 and `slots`.
      lengths: Lengths of the cache, ascending. (): 1024 and `max_length`.
      buckets: Padded lengths of prompts, ascending. (): some lengths up to 768, then powers of two.
      tokens_per_prefill: Short prompts are computed together up to this number of tokens. 0: a number for the platform.
      steps_per_call: Maximum number of decode steps between two looks at new requests, cancellations and stop strings.
      max_queue: Maximum number of requests that wait or run.
    """

    slots: int = 16
    max_length: int = 0
    rows: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    buckets: tuple[int, ...] = ()
    tokens_per_prefill: int = 0
    steps_per_call: int = 8
    max_queue: int = 256

    def __post_init__(self) -> None:
        for name in ("slots", "steps_per_call", "max_queue"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise JanusError(f"{name} is {value!r}; it must be a positive whole number.")
        if self.max_length < 0 or self.tokens_per_prefill < 0:
            raise JanusError("max_length and tokens_per_prefill must not be negative.")

    def resolve(self, config: ModelConfig, shards: int, num_sequences: int) -> "EngineOptions":
        """Returns the options with all sizes of one model.

        Args:
          config: Architecture of the model.
          shards: Number of data shards of the mesh; it divides all numbers of rows.
          num_sequences: Number of rows that one request may need; the minimum of `slots`.

        Raises:
          JanusError: A size is too small, or larger than the model's context.
        """
        context = config.llm.max_positions
        length = self.max_length or min(context, _DEFAULT_MAX_LENGTH)
        if not 2 <= length <= context:
            raise JanusError(f"max_length is {length}; it must be from 2 to the model's context of {context}.")
        slots = round_up(max(self.slots, num_sequences), shards)
        rows = self.rows or (round_up(min(4, slots), shards), slots)
        lengths = self.lengths or (min(1024, length), length)
        powers = (1 << exponent for exponent in range(10, length.bit_length() + 1))
        buckets = self.buckets or tuple(size for size in (*_BUCKETS, *powers) if size < length)
        tokens = self.tokens_per_prefill or _TOKENS_PER_PREFILL.get(current_platform(), 256)
        return dataclasses.replace(
            self,
            slots=slots,
            max_length=length,
            rows=_ascending({round_up(size, shards) for size in rows if size < slots} | {slots}),
            lengths=_ascending({size for size in lengths if size < length} | {length}),
            buckets=_ascending({size for size in buckets if size < length} | {length}),
            tokens_per_prefill=tokens,
        )


def _ascending(sizes: set[int]) -> tuple[int, ...]:
    return tuple(sorted(sizes))
