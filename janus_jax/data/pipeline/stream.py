"""Deterministic, resumable stream of batches from a mixture of prepared datasets.

    config = StreamConfig(
        components=(
            Component("captions", "prepared/captions", weight=2),
            Component("chat", "prepared/chat", weight=5),
        ),
        batch_size=8,
    )
    with open_stream(config, processor) as stream:
        batch = next(stream)

Batches depend on the config, the step and the number of shards, but not on the number of workers or on the prefetch
depth. The state is small: the position in each component, and the origins of the examples that wait to be packed.
"""

import dataclasses
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from janus_jax.batch import Batch
from janus_jax.data.pipeline.dataset import Component, ComponentShard, open_records
from janus_jax.data.pipeline.examples import ExampleBuilder, Supervision
from janus_jax.data.pipeline.mixture import MixtureSchedule, Phase, check_phases
from janus_jax.data.pipeline.packing import Budget, Packer, PendingExample, pack
from janus_jax.data.pipeline.prefetch import ExampleLoader, Prefetcher
from janus_jax.data.pipeline.workers import InlinePool, Pool, ProcessPool
from janus_jax.data.rejects import RejectCounter
from janus_jax.errors import DataChanged, JanusError
from janus_jax.processing import Processor

_FORMAT = 2
_PREFETCH_PER_WORKER = 4
# About the number of examples in a packed sequence.
_PREFETCH_PER_SEQUENCE = 8


@dataclass(frozen=True)
class StreamConfig:
    """Configures what a stream reads and how it builds batches.

    Attributes:
      components: Datasets of the mixture.
      batch_size: Sequences per batch, summed over all shards.
      budget: Capacity of a packed sequence.
      phases: Mixture weights by step; () uses the components' weights at every step.
      supervision: Which text tokens are targets.
      seed: Seed of the order and of all randomness per record.
      precomputed_image_tokens: Whether to read the image tokens that `janus-prepare --tokenizer` stored. Batches then
        have `gen_ids`, and `gen_images` is empty. For JanusFlow: whether to read the stored latents into `gen_latents`,
        in addition to `gen_images`. If False, stored tokens and latents are ignored.
      drop_condition: See `ExampleBuilder`.
      first_sentence: See `ExampleBuilder`.
      random_crop: See `ExampleBuilder`.
      lookahead: Number of examples among which the packer selects those of the next sequence.
      max_rejected: Largest share of recent records that may be rejected before the run stops, in [0, 1).
      recent: Number of records that count as recent.
      first_step: Training step of the first batch, which selects its phase.
    """

    components: tuple[Component, ...]
    batch_size: int
    budget: Budget = field(default_factory=Budget)
    phases: tuple[Phase, ...] = ()
    supervision: Supervision = Supervision.TEXT
    seed: int = 0
    precomputed_image_tokens: bool = False
    drop_condition: float = 0.1
    first_sentence: float = 0.25
    random_crop: bool = False
    lookahead: int = 24
    max_rejected: float = 0.1
    recent: int = 1000
    first_step: int = 0

    def __post_init__(self) -> None:
        if not self.components:
            raise JanusError("StreamConfig.components is empty; name at least one prepared dataset.")
        names = [component.name for component in self.components]
        for name in names:
            if names.count(name) > 1:
                raise JanusError(f"Two components are called {name!r}; names must be unique.")
        for name, least in (("batch_size", 1), ("lookahead", 1), ("recent", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise JanusError(f"StreamConfig.{name} is {value}; it must be at least {least}.")
        for name, below in (("drop_condition", 1.0), ("first_sentence", 1.0), ("max_rejected", 1 - 1e-9)):
            if not 0 <= (value := getattr(self, name)) <= below:
                raise JanusError(f"StreamConfig.{name} is {value}; it must be a share from 0 to {round(below)}.")
        check_phases(self.all_phases, names)

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """`phases`, or one phase with the components' weights."""
        return self.phases or (Phase(None, {component.name: component.weight for component in self.components}),)


def open_stream(
    config: StreamConfig, processor: Processor, shard_index: int = 0, shard_count: int = 1, *, workers: int = 0
) -> "Stream":
    """Opens the components and starts the worker processes.

    Args:
      config: What to read and how to pack it.
      processor: Processor of the model.
      shard_index: Index of the data shard to read. Each training process reads different shards.
      shard_count: Number of shards.
      workers: Number of processes that read, decode and tokenize in advance. 0: this process does so when a batch is
        requested.

    Raises:
      JanusError: A dataset is missing or has too few records, or the shards cannot share the batch evenly.
    """
    if not 0 <= shard_index < shard_count:
        raise JanusError(f"shard_index is {shard_index}; it must be from 0 to {shard_count - 1}.")
    if workers < 0:
        raise JanusError(f"The number of data workers is {workers}; it must be at least 0.")
    if config.batch_size % shard_count:
        raise JanusError(
            f"StreamConfig.batch_size is {config.batch_size}; it must be a multiple of {shard_count}, the number "
            f"of data shards."
        )
    builder = ExampleBuilder(
        processor,
        config.supervision,
        drop_condition=config.drop_condition,
        first_sentence=config.first_sentence,
        random_crop=config.random_crop,
        precomputed_image_tokens=config.precomputed_image_tokens,
        seed=config.seed,
    )
    loader = ExampleLoader(config.components, builder, config.budget)
    # Started first, so that the workers start while this process opens the datasets.
    pool: Pool | None = ProcessPool(loader, workers) if workers else None
    try:
        shards = [
            ComponentShard(open_records(component).length, shard_index, shard_count, config.seed, component.name)
            for component in config.components
        ]
        pool = pool or InlinePool(loader)
    except BaseException:
        if pool is not None:
            pool.close()
        raise
    sequences = config.batch_size // shard_count
    depth = max(_PREFETCH_PER_WORKER * workers, _PREFETCH_PER_SEQUENCE * sequences) if workers else 0
    return Stream(config, processor, shards, pool, depth)


class Stream(Iterator[Batch]):
    """Iterator over the endless batches of one data shard. Made by `open_stream`.

    Attributes:
      step: Number of batches so far.
      example_ids: Ids of the last batch's examples, by sequence and segment.
      close: Function that ends the worker processes. The stream cannot be used afterwards.
    """

    def __init__(
        self, config: StreamConfig, processor: Processor, shards: list[ComponentShard], pool: Pool, prefetch: int
    ):
        self.config = config
        self.step = config.first_step
        self.example_ids: tuple[tuple[str, ...], ...] = ()
        self._processor = processor
        self._shards = shards
        self._sequences = config.batch_size // shards[0].count
        self._schedule = MixtureSchedule(config.all_phases, [component.name for component in config.components])
        self._packer = Packer(config.budget, config.lookahead)
        self._prefetcher = Prefetcher(pool, shards, RejectCounter(config.max_rejected, config.recent))
        self._prefetch = prefetch
        # A copy of the schedule for requesting records. It is `_prefetch` examples ahead of `_schedule`.
        self._requested: MixtureSchedule | None = None
        self._requested_phase = 0
        self._to_reload: list[tuple[int, int]] = []
        self.close = weakref.finalize(self, pool.close)

    def __next__(self) -> Batch:
        phase = self._schedule.phase(self.step)
        self._prepare_queues(phase)
        sequences = [self._packer.next_sequence(lambda: self._next_example(phase)) for _ in range(self._sequences)]
        self.step += 1
        self.example_ids = tuple(tuple(example.example_id for example in examples) for examples in sequences)
        return pack(sequences, self.config.budget, self._processor, self.config.precomputed_image_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shard_index(self) -> int:
        """Index of the data shard."""
        return self._shards[0].index

    def get_state(self) -> dict[str, Any]:
        """Returns the state as JSON values, at most a few hundred numbers. Must be called between two batches."""
        origins = self._to_reload or [pending.origin for pending in self._packer.waiting]
        return {
            "format": _FORMAT,
            "shard": [self._shards[0].index, self._shards[0].count],
            "config": self._fingerprint,
            "step": self.step,
            "phase_counts": list(self._schedule.phase_counts),
            "component_counts": list(self._schedule.component_counts),
            "positions": list(self._prefetcher.positions),
            "waiting": [list(origin) for origin in origins],
            "records": self._prefetcher.rejects.get_state(),
            "truncated": self._packer.truncated,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly where the state was saved. The number of workers may differ.

        Raises:
          DataChanged: The state is of another config or of other data.
          JanusError: The state is of another shard.
        """
        self._check(state)
        self.step = state["step"]
        self.example_ids = ()
        self._schedule = dataclasses.replace(
            self._schedule, phase_counts=state["phase_counts"], component_counts=state["component_counts"]
        )
        self._prefetcher.seek(state["positions"], self._prefetcher.rejects.with_state(state["records"]))
        self._packer = Packer(self.config.budget, self.config.lookahead)
        self._packer.truncated = state["truncated"]
        self._to_reload = [(component, position) for component, position in state["waiting"]]
        self._requested = None

    def report(self) -> dict[str, float]:
        """Returns metrics: the used share of each budget, and the numbers of read, truncated and rejected records.

        The shares are averages since the stream was opened or restored. The numbers are totals of the whole run.
        """
        rejects, packer = self._prefetcher.rejects, self._packer
        capacity = np.maximum(self.config.budget.limits * max(packer.sequences, 1), 1)
        names = ("tokens", "und_images", "gen_images", "text_targets")
        return {
            **{f"fill/{name}": float(fill) for name, fill in zip(names, packer.filled / capacity, strict=True)},
            "records/read": rejects.read,
            "records/truncated": packer.truncated,
            **{f"records/rejected/{reason.value}": count for reason, count in rejects.rejected.items()},
        }

    @property
    def _fingerprint(self) -> dict[str, Any]:
        """The values that determine the batches, by name."""
        config, p = self.config, self._processor
        return {
            "components": [
                [component.name, shard.length, component.split, component.task.value if component.task else None]
                for component, shard in zip(config.components, self._shards, strict=True)
            ],
            "phases": [[phase.until_step, dict(sorted(phase.weights.items()))] for phase in config.all_phases],
            "batch_size": config.batch_size,
            "budget": config.budget.limits.tolist(),
            "supervision": config.supervision.value,
            "seed": config.seed,
            "precomputed_image_tokens": config.precomputed_image_tokens,
            "drop_condition": config.drop_condition,
            "first_sentence": config.first_sentence,
            "random_crop": config.random_crop,
            "lookahead": config.lookahead,
            "model": [len(p.tokenizer), p.und_image_size, p.num_und_tokens, p.gen_image_size, p.num_gen_tokens],
        }

    def _check(self, state: dict[str, Any]) -> None:
        if state.get("format") != _FORMAT:
            raise DataChanged(f"The data state has the format {state.get('format')!r}; this version reads {_FORMAT}")
        (index, count), shard = state["shard"], self._shards[0]
        if count != shard.count:
            raise JanusError(
                f"The data state has {count} data shards and this stream has {shard.count}; open it with {count} "
                f"shards, or drop the data state and set another StreamConfig.seed to start a new order."
            )
        if index != shard.index:
            raise JanusError(
                f"The data state is of shard {index} and this stream is shard {shard.index}; give each shard its own "
                f"state."
            )
        for name, now in self._fingerprint.items():
            if state["config"].get(name) != now:
                saved = state["config"].get(name)
                raise DataChanged(f"The data state was saved with {name} {saved!r:.300}, and now it is {now!r:.300}")

    def _prepare_queues(self, phase: int) -> None:
        """Fills the prefetch queues at the start and whenever the weights of the mixture change."""
        if self._requested is not None and self._requested_phase == phase:
            return
        self._requested, self._requested_phase = self._schedule.copy(), phase
        lengths = [0] * len(self._shards)
        for _ in range(self._prefetch):
            lengths[self._requested.next_component(phase)] += 1
        if self._to_reload:
            self._packer.waiting = self._prefetcher.reload(self._to_reload)
            self._to_reload = []
        self._prefetcher.resize_queues(lengths)

    def _next_example(self, phase: int) -> PendingExample:
        pending = self._prefetcher.next_example(self._schedule.next_component(phase))
        if self._prefetch and self._requested is not None:
            self._prefetcher.request(self._requested.next_component(phase))
        return pending
