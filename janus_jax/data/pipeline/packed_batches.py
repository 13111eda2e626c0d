"""Packs the examples of one data shard into batches: a grain dataset whose state is small."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np

from janus_jax.data.pipeline.dataset import Component, shard_records
from janus_jax.data.pipeline.examples import Example, ExampleBuilder
from janus_jax.data.pipeline.loading import Loaded, LoadedExamples, Ungrouped, complete, iterate
from janus_jax.data.pipeline.mixture import Mixture
from janus_jax.data.pipeline.packing import Budget, pack, select_examples, truncate
from janus_jax.data.pipeline.stream_config import StreamConfig
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectCounter, RejectedRecord, RejectReason
from janus_jax.errors import DataChanged, JanusError
from janus_jax.processing import Processor

_FORMAT = 3
_PREFETCH_PER_WORKER = 4
# About the number of examples in a packed sequence.
_PREFETCH_PER_SEQUENCE = 8
_NOTHING = (-1, -1)


@dataclass(frozen=True)
class _LoadExample:
    """Starts the example of a record, truncated to the budget. It is pickled for each data worker."""

    component: Component
    builder: ExampleBuilder
    budget: Budget

    def __call__(self, record: Record, example_id: str, epoch: int) -> Callable[[], Example]:
        if self.component.task not in (None, record.task):
            raise RejectedRecord(RejectReason.WRONG_TASK, f"its task is {record.task.value}.")
        complete = self.builder.start(record, epoch, example_id)
        return lambda: truncate(complete(), self.budget)


class PackingReport(NamedTuple):
    """Totals of packed sequences, and of records.

    Attributes:
      sequences: Packed sequences since the stream was opened or restored.
      filled: Their total size, in the order of `Budget.limits`.
      truncated: Truncated examples of the whole run.
      read: Records of the whole run, including rejected ones.
      rejected: Rejected records of the whole run.
    """

    sequences: int
    filled: np.ndarray
    truncated: int
    read: int
    rejected: Counter[RejectReason]


class PackedBatch(NamedTuple):
    """A batch, the ids of its examples by sequence and segment, and the totals up to it."""

    batch: Any
    example_ids: tuple[tuple[str, ...], ...]
    report: PackingReport


class PackedBatches(grain.IterDataset[PackedBatch]):
    """Packs the examples of one data shard into batches.

    Each sequence is selected from the next `StreamConfig.lookahead` examples: the oldest one and those that fill the
    sequence best. The others wait for the next sequence.

    Args:
      config: What to read and how to pack it.
      processor: Processor of the model.
      shard_index: Index of the data shard.
      shard_count: Number of data shards.
      workers: See `iterate`.
      threads: See `iterate`.

    Raises:
      JanusError: A dataset is missing or has too few records, or the shards cannot share the batch evenly.
    """

    def __init__(
        self,
        config: StreamConfig,
        processor: Processor,
        shard_index: int = 0,
        shard_count: int = 1,
        *,
        workers: int = 0,
        threads: int = 0,
    ) -> None:
        if config.batch_size % shard_count:
            raise JanusError(
                f"StreamConfig.batch_size is {config.batch_size}; it must be a multiple of {shard_count}, the number "
                f"of data shards."
            )
        self.config, self.processor = config, processor
        self.shard_index, self.shard_count = shard_index, shard_count
        self.sequences = config.batch_size // shard_count
        self.rejects = RejectCounter(config.max_rejected, config.recent)
        builder = ExampleBuilder(
            processor,
            config.supervision,
            drop_condition=config.drop_condition,
            first_sentence=config.first_sentence,
            random_crop=config.random_crop,
            precomputed_image_tokens=config.precomputed_image_tokens,
            seed=config.seed,
            editing=config.editing,
            interleaved_features=config.interleaved_features,
        )
        components = [
            LoadedExamples(
                shard_records([component], config.seed, shard_index, shard_count),
                _LoadExample(component, builder, config.budget),
                name=component.name,
                index=index,
                max_tries=self.rejects.max_in_a_row,
            )
            for index, component in enumerate(config.components)
        ]
        prefetch = max(_PREFETCH_PER_WORKER * max(workers, threads), _PREFETCH_PER_SEQUENCE * self.sequences)
        self.iterate = functools.partial(iterate, group=complete, workers=workers, threads=threads, prefetch=prefetch)
        super().__init__(components)

    def __iter__(self) -> "PackingIterator":
        return PackingIterator(self)

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The values that determine the batches, by name, as JSON values."""
        config, p = self.config, self.processor
        # Left out of the states of other data, which earlier versions also saved.
        editing = dataclasses.asdict(config.editing) | {"interleaved_features": config.interleaved_features}
        return ({"editing": editing} if config.has_context_images else {}) | {
            "components": [
                [one.name, len(loaded), one.split, one.task.value if one.task else None, list(one.transforms)]
                for one, loaded in zip(config.components, self.parents, strict=True)
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

    def check(self, state: Mapping[str, Any]) -> None:
        """Checks that a state of an iterator belongs to this dataset.

        Raises:
          DataChanged: The state is of another format, of another config or of other data.
          JanusError: The state is of another shard.
        """
        if state.get("format") != _FORMAT:
            raise DataChanged(f"The data state has the format {state.get('format')!r}; this version reads {_FORMAT}")
        index, count = state["shard"]
        if count != self.shard_count:
            raise DataChanged(
                f"The data state was saved with {count} data shards, and now there are {self.shard_count}"
            )
        if index != self.shard_index:
            raise JanusError(
                f"The data state is of shard {index} and this stream is shard {self.shard_index}; give each shard its "
                f"own state."
            )
        for name, now in self.fingerprint.items():
            if (saved := state["config"].get(name)) != now:
                raise DataChanged(f"The data state was saved with {name} {saved!r:.300}, and now it is {now!r:.300}")


class PackingIterator(grain.DatasetIterator[PackedBatch]):
    """Iterator over the endless batches of one data shard. Made by `PackedBatches`.

    Attributes:
      waiting: Examples that are not packed yet, oldest first.
    """

    def __init__(self, dataset: PackedBatches) -> None:
        super().__init__()
        self._dataset, self._config = dataset, dataset.config
        self._step = self._config.first_step
        self._phase_counts = [0] * len(self._config.all_phases)
        self._component_counts = [0] * len(self._config.components)
        self.waiting: list[Loaded[Example]] = []
        self._to_reload: list[tuple[int, int]] = []
        self._rejects = dataset.rejects.with_state(dataset.rejects.get_state())
        self._sequences, self._truncated, self._filled = 0, 0, np.zeros_like(self._config.budget.limits)
        # Examples of the current phase.
        self._examples: Ungrouped[Loaded[Example]] | None = None
        self._phase = 0

    def __next__(self) -> PackedBatch:
        phase = next(
            index
            for index, phase in enumerate(self._config.all_phases)
            if phase.until_step is None or self._step < phase.until_step
        )
        if self._examples is None or self._phase != phase:
            self._open(phase)
        sequences = [self._next_sequence() for _ in range(self._dataset.sequences)]
        self._step += 1
        config = self._config
        return PackedBatch(
            pack(sequences, config.budget, self._dataset.processor, config.precomputed_image_tokens),
            tuple(tuple(example.example_id for example in examples) for examples in sequences),
            PackingReport(
                self._sequences, self._filled, self._truncated, self._rejects.read, self._rejects.rejected.copy()
            ),
        )

    def get_state(self) -> dict[str, Any]:
        """Returns the state as JSON values, at most a few hundred numbers, always with the same fields."""
        waiting = self._to_reload or [loaded.origin for loaded in self.waiting]
        return {
            "format": _FORMAT,
            "shard": [self._dataset.shard_index, self._dataset.shard_count],
            "config": self._dataset.fingerprint,
            "step": self._step,
            "phase_counts": list(self._phase_counts),
            "component_counts": list(self._component_counts),
            # Of constant length, which grain recommends.
            "waiting": [list(origin) for origin in waiting + [_NOTHING] * (self._config.lookahead - len(waiting))],
            "records": self._rejects.get_state(),
            "truncated": self._truncated,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues exactly where the state was saved. The numbers of workers and threads may differ.

        Raises:
          JanusError: See `PackedBatches.check`.
        """
        self._dataset.check(state)
        self._close_examples()
        self._step = state["step"]
        self._phase_counts, self._component_counts = list(state["phase_counts"]), list(state["component_counts"])
        self.waiting = []
        self._to_reload = [tuple(origin) for origin in state["waiting"] if tuple(origin) != _NOTHING]
        self._rejects = self._rejects.with_state(state["records"])
        self._sequences, self._truncated = 0, state["truncated"]
        self._filled = np.zeros_like(self._config.budget.limits)

    def close(self) -> None:
        """Ends threads and workers."""
        self._close_examples()
        super().close()

    def _open(self, phase: int) -> None:
        """Opens the examples of a phase, and loads those again that waited when the state was saved."""
        self._close_examples()
        mixture = Mixture(
            self._config.all_phases,
            [component.name for component in self._config.components],
            phase,
            phase_counts=self._phase_counts,
            component_counts=self._component_counts,
            first=self._to_reload,
        )
        self._examples = self._dataset.iterate(grain.MapDataset.select_from_datasets(self._dataset.parents, mixture))
        self._phase = phase
        while self._to_reload:
            loaded = [next(self._examples) for _ in self._to_reload]
            for one in loaded:
                if one.example is None:
                    last = one.rejections[-1]
                    raise JanusError(
                        f"{last.example_id} is part of the saved data state but can no longer be loaded "
                        f"({last.detail}); restore the data as it was."
                    )
            self.waiting, self._to_reload = loaded, []

    def _close_examples(self) -> None:
        if self._examples is not None:
            self._examples.close()
            self._examples = None

    def _next_sequence(self) -> list[Example]:
        """Returns the examples of the next sequence in packing order."""
        while len(self.waiting) < self._config.lookahead:
            self.waiting.append(self._next_example())
        waiting = [loaded.example for loaded in self.waiting if loaded.example is not None]
        sizes = np.stack([self._config.budget.measure(example) for example in waiting])
        selected = select_examples(sizes, self._config.budget.limits)
        taken = set(selected)
        self.waiting = [loaded for index, loaded in enumerate(self.waiting) if index not in taken]
        self._filled = self._filled + sizes[selected].sum(axis=0)
        self._sequences += 1
        examples = [waiting[index] for index in selected]
        self._truncated += sum(example.truncated > 0 for example in examples)
        return examples

    def _next_example(self) -> Loaded[Example]:
        assert self._examples is not None
        loaded = next(self._examples)
        self._phase_counts[self._phase] += 1
        self._component_counts[loaded.origin[0]] += 1
        for rejection in loaded.rejections:
            self._rejects.reject(rejection)
        self._rejects.accept()
        return loaded
