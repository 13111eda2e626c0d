"""The stream: batches of packed samples from a mixture of prepared data sets, deterministic and resumable.

    config = StreamConfig(
        components=(
            Component("captions", "prepared/captions", weight=2),
            Component("pictures", "prepared/pictures", weight=5),
        ),
        batch_size=8,
    )
    with open_stream(config, processor) as stream:
        batch = next(stream)

What comes is a function of the config, the step and the number of processes: how many workers read, and how far ahead,
changes nothing. So the state is small: how far each component was read, and which samples wait for a row.
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
from janus_jax.errors import JanusError
from janus_jax.processing import Processor

_FORMAT = 1
_AHEAD_OF_A_WORKER = 4
_AHEAD_OF_A_ROW = 8
"""Samples that are read ahead: so many a worker, and enough for about the next batch."""


@dataclass(frozen=True)
class StreamConfig:
    """What is read, and how it becomes batches.

    Attributes:
      components: the parts of the mixture.
      batch_size: B of the batches of all processes together.
      budget: what a row has room for.
      phases: weights by step; () for the components' own throughout.
      supervision: which text is learnt.
      seed: of the order and of all that is random about a record.
      precomputed_image_tokens: target images come as ids, which the records must hold (`launch.prepare
        --tokenizer`): batches carry `gen_ids`, and `gen_images` is empty. Of a JanusFlow, as latents: batches carry
        `gen_latents`, and `gen_images` too. Otherwise ids and latents in records are passed over.
      drop_condition, first_sentence, random_crop: as in `ExampleBuilder`.
      lookahead: samples among which a row's are chosen.
      max_rejected: share of the `recent` records last read that may be rejected before the run stops, in [0, 1).
      recent: how many those are.
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

    def __post_init__(self) -> None:
        if not self.components:
            raise JanusError("StreamConfig.components is empty; name at least one prepared data set.")
        names = [component.name for component in self.components]
        for name in names:
            if names.count(name) > 1:
                raise JanusError(f"Two components are called {name!r}; give each a name of its own.")
        for name, least in (("batch_size", 1), ("lookahead", 1), ("recent", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise JanusError(f"StreamConfig.{name} is {value}; it must be at least {least}.")
        for name, below in (("drop_condition", 1.0), ("first_sentence", 1.0), ("max_rejected", 1 - 1e-9)):
            if not 0 <= (value := getattr(self, name)) <= below:
                raise JanusError(f"StreamConfig.{name} is {value}; it must be a share from 0 to {round(below)}.")
        check_phases(self.all_phases, names)

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """`phases`, or the one that the components' own weights make."""
        return self.phases or (Phase(None, {component.name: component.weight for component in self.components}),)


def open_stream(
    config: StreamConfig,
    processor: Processor,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> "Stream":
    """Opens the components and starts the worker processes.

    Args:
      config: what is read.
      processor: of the model to be trained.
      process_index: of this process among those that train together; each reads records of its own.
      process_count: how many those are.
      workers: processes that read, decode and tokenise ahead; with 0 this one does it when a batch is asked for.

    Raises:
      JanusError: a data set is missing or has too few records, or the batch cannot be shared by the processes.
    """
    if not 0 <= process_index < process_count:
        raise JanusError(f"The process index is {process_index} of {process_count} processes; it counts from 0.")
    if workers < 0:
        raise JanusError(f"The number of data workers is {workers}; it must be at least 0.")
    if config.batch_size % process_count:
        raise JanusError(
            f"StreamConfig.batch_size {config.batch_size} is not a multiple of {process_count}, the number of "
            f"processes."
        )
    example_builder = ExampleBuilder(
        processor,
        config.drop_condition,
        config.first_sentence,
        config.random_crop,
        config.precomputed_image_tokens,
        config.seed,
    )
    make_samples = ExampleLoader(config.components, example_builder, config.supervision, config.budget)
    # The workers start while this process looks at the data sets by itself.
    pool: Pool | None = ProcessPool(make_samples, workers) if workers else None
    try:
        shares = [
            ComponentShard(open_records(component).length, process_index, process_count, config.seed, component.name)
            for component in config.components
        ]
        pool = pool or InlinePool(make_samples)
    except BaseException:
        if pool is not None:
            pool.close()
        raise
    rows = config.batch_size // process_count
    ahead = max(_AHEAD_OF_A_WORKER * workers, _AHEAD_OF_A_ROW * rows) if workers else 0
    return Stream(config, processor, shares, pool, ahead)


class Stream(Iterator[Batch]):
    """Batches of this process's rows, without end. `open_stream` makes it.

    Attributes:
      step: batches so far.
      example_ids: of the last batch: each row's samples, in the order of their segments.
    """

    def __init__(
        self, config: StreamConfig, processor: Processor, shares: list[ComponentShard], pool: Pool, ahead: int
    ):
        self.config = config
        self.step = 0
        self.example_ids: tuple[tuple[str, ...], ...] = ()
        self._processor = processor
        self._shares = shares
        self._rows = config.batch_size // shares[0].process_count
        self._schedule = MixtureSchedule(config.all_phases, [component.name for component in config.components])
        self._packer = Packer(config.budget, config.lookahead)
        self._feed = Prefetcher(pool, shares, RejectCounter(config.max_rejected, config.recent))
        self._ahead = ahead
        self._planned: MixtureSchedule | None = None
        self._planned_phase = 0
        self._to_reread: list[tuple[int, int]] = []
        self.close = weakref.finalize(self, pool.close)
        """Ends the worker processes; the stream is then of no more use."""

    def __next__(self) -> Batch:
        phase = self._schedule.phase(self.step)
        self._plan(phase)
        rows = [self._packer.next_row(lambda: self._draw(phase)) for _ in range(self._rows)]
        self.step += 1
        self.example_ids = tuple(tuple(sample.example_id for sample in row) for row in rows)
        return pack(rows, self.config.budget, self._processor, self.config.precomputed_image_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def number(self) -> int:
        """The process index that it was opened with."""
        return self._shares[0].process_index

    def get_state(self) -> dict[str, Any]:
        """Where the stream is between two batches, as json knows it; a few hundred numbers at most."""
        origins = self._to_reread or [waiting.origin for waiting in self._packer.waiting]
        return {
            "format": _FORMAT,
            "process": [self._shares[0].process_index, self._shares[0].process_count],
            "config": self._fingerprint,
            "step": self.step,
            "slots": list(self._schedule.slots),
            "counts": list(self._schedule.counts),
            "positions": list(self._feed.positions),
            "waiting": [list(origin) for origin in origins],
            "records": self._feed.ledger.get_state(),
            "cut": self._packer.cut,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on exactly where `get_state` was called, with however many workers.

        Raises:
          JanusError: the state is of another config, other data or another number of processes.
        """
        self._check(state)
        self.step = state["step"]
        self.example_ids = ()
        self._schedule = dataclasses.replace(self._schedule, slots=state["slots"], counts=state["counts"])
        self._feed.go_to(state["positions"], self._feed.ledger.with_state(state["records"]))
        self._packer = Packer(self.config.budget, self.config.lookahead)
        self._packer.cut = state["cut"]
        self._to_reread = [(component, position) for component, position in state["waiting"]]
        self._planned = None

    def report(self) -> dict[str, float]:
        """What became of the records so far: shares of the budgets that are filled, and counts.

        Fill is of the rows since the stream was opened or restored, the counts of the whole run.
        """
        ledger, packer = self._feed.ledger, self._packer
        room = np.maximum(self.config.budget.limits * max(packer.rows, 1), 1)
        names = ("places", "und_images", "gen_images", "text_targets")
        return {
            **{f"fill/{name}": float(fill) for name, fill in zip(names, packer.filled / room, strict=True)},
            "records/read": ledger.read,
            "records/cut": packer.cut,
            **{f"records/rejected/{reason.value}": count for reason, count in ledger.rejected.items()},
        }

    @property
    def _fingerprint(self) -> dict[str, Any]:
        """All that the order and the content of the batches depend on, by name."""
        config, p = self.config, self._processor
        return {
            "components": [
                [component.name, share.length, component.split, component.task.value if component.task else None]
                for component, share in zip(config.components, self._shares, strict=True)
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
            "model": [len(p.tokenizer), p.und_image_size, p.und_tokens, p.gen_image_size, p.gen_tokens],
        }

    def _check(self, state: dict[str, Any]) -> None:
        if state.get("format") != _FORMAT:
            raise JanusError(f"The data state has the format {state.get('format')!r}; this version reads {_FORMAT}.")
        (index, count), share = state["process"], self._shares[0]
        if count != share.process_count:
            raise JanusError(
                f"The data state was saved by {count} processes and this run has {share.process_count}: each process "
                f"reads records of its own, and those already read cannot be dealt out anew; start {count} processes, "
                f"or go on without the data state and with another StreamConfig.seed, for a new order from the start."
            )
        if index != share.process_index:
            raise JanusError(
                f"The data state is that of process {index}, and this is process {share.process_index}; give each "
                f"process its own."
            )
        for name, now in self._fingerprint.items():
            if state["config"].get(name) != now:
                raise JanusError(
                    f"The data state was saved with {name} {state['config'].get(name)!r:.300}, and now it is "
                    f"{now!r:.300}; put it back, or go on without the data state, for a new order from the start."
                )

    def _plan(self, phase: int) -> None:
        """Sees to what is read ahead, once at the start and whenever the weights change."""
        if self._planned is not None and self._planned_phase == phase:
            return
        self._planned, self._planned_phase = self._schedule.copy(), phase
        wanted = [0] * len(self._shares)
        for _ in range(self._ahead):
            wanted[self._planned.draw(phase)] += 1
        if self._to_reread:
            self._packer.waiting = self._feed.reread(self._to_reread)
            self._to_reread = []
        self._feed.ask_for(wanted)

    def _draw(self, phase: int) -> PendingExample:
        waiting = self._feed.take(self._schedule.draw(phase))
        if self._ahead and self._planned is not None:
            self._feed.ask(self._planned.draw(phase))
        return waiting
