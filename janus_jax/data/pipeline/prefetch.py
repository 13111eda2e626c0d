"""Samples of each component in its own order, read ahead of their use; what is rejected is passed over."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from janus_jax.batch import NO_IMAGE
from janus_jax.data.pipeline.dataset import Component, ComponentShard, RecordReader, open_records
from janus_jax.data.pipeline.examples import ExampleBuilder, Supervision, text_targets
from janus_jax.data.pipeline.packing import Budget, Example, PendingExample, truncate
from janus_jax.data.pipeline.workers import Pool, Work
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectCounter, RejectedRecord, Rejection, RejectReason
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error
from janus_jax.processing import Task, TokenSequence


@dataclass(frozen=True)
class LoadTask:
    """What a worker is asked for: one record's sample."""

    component: int
    epoch: int
    index: int


@dataclass(frozen=True)
class ExampleLoader:
    """What a worker is sent: opens the components and gives the function from a task to its sample."""

    components: Sequence[Component]
    example_builder: ExampleBuilder
    supervision: Supervision
    budget: Budget

    def __call__(self) -> Work:
        records = [open_records(component) for component in self.components]
        return lambda task: self.sample(task, records[task.component])

    def sample(self, task: LoadTask, records: RecordReader) -> Example | Rejection:
        """The sample of one record, or why there is none: a bad record stops no worker."""
        component = self.components[task.component]
        example_id = f"{component.name}/number {task.index}"
        try:
            record = records.read(task.index)
            example_id = f"{component.name}/{record.key}{f'#{task.epoch}' if task.epoch else ''}"
            if component.task not in (None, record.task):
                raise RejectedRecord(RejectReason.WRONG_TASK, f"it is of the task {record.task.value}.")
            row = self.example_builder(record, task.epoch)
            return truncate(self._sample(example_id, record, row), self.budget)
        except RejectedRecord as error:
            return Rejection(example_id, error.reason, str(error))
        except PARSE_ERRORS as error:
            reason = str(error) if isinstance(error, JanusError) else describe_error(error)
            return Rejection(example_id, RejectReason.MALFORMED, reason)

    def _sample(self, example_id: str, record: Record, row: TokenSequence) -> Example:
        targets = text_targets(row, self.supervision)
        n = self.example_builder.processor.gen_tokens
        starts = np.flatnonzero((row.gen_token_index != NO_IMAGE) & (row.gen_token_index % n == 0)).astype(np.int32)
        if not len(targets) and not len(starts):
            raise RejectedRecord(RejectReason.NO_TARGETS, "nothing in it is supervised.")
        sample = Example(example_id, row, targets, starts)
        if not self.example_builder.precomputed_image_tokens or row.task is not Task.GENERATION:
            return sample
        shape = self.example_builder.processor.latent_shape
        if shape is None:
            return replace(sample, gen_ids=record.image_tokens[None])
        return replace(sample, gen_latents=record.image_latents.reshape(1, *shape))


class Prefetcher:
    """The good samples of each component, one after the other.

    Which records are rejected does not depend on how far ahead is read: a component's samples come in the order of its
    records, and a rejected one's place is taken by the next of the same component.

    Attributes:
      positions: how far each component was read, rejected records included.
    """

    def __init__(self, pool: Pool, shares: Sequence[ComponentShard], ledger: RejectCounter):
        self._pool = pool
        self._shares = shares
        self._queues: list[deque[int]] = [deque() for _ in shares]
        self.ledger = ledger
        self.positions = [0] * len(shares)

    def ask(self, component: int) -> None:
        """Has one more record of a component read ahead."""
        position = self.positions[component] + len(self._queues[component])
        self._queues[component].append(self._submit(component, position))

    def ask_for(self, counts: Sequence[int]) -> None:
        """Has so many records of each component read ahead, and gives up any more."""
        for component, (queue, count) in enumerate(zip(self._queues, counts, strict=True)):
            while len(queue) > count:
                self._pool.forget(queue.pop())
            while len(queue) < count:
                self.ask(component)

    def take(self, component: int) -> PendingExample:
        """The component's next sample.

        Raises:
          JanusError: too many records are rejected, or the workers have ended.
        """
        while True:
            if not self._queues[component]:
                self.ask(component)
            result = self._pool.result(self._queues[component].popleft())
            position = self.positions[component]
            self.positions[component] += 1
            if isinstance(result, Example):
                self.ledger.accept()
                return PendingExample(result, (component, position))
            self.ledger.reject(result)
            self.ask(component)

    def reread(self, origins: Sequence[tuple[int, int]]) -> list[PendingExample]:
        """Samples that were taken before, once more.

        Raises:
          JanusError: one of them cannot be read any more.
        """
        numbers = [self._submit(*origin) for origin in origins]
        samples = []
        for origin, number in zip(origins, numbers, strict=True):
            result = self._pool.result(number)
            if not isinstance(result, Example):
                raise JanusError(
                    f"{result.example_id}, which a saved data state refers to, cannot be used any more "
                    f"({result.detail}); bring the data back to how it was."
                )
            samples.append(PendingExample(result, origin))
        return samples

    def go_to(self, positions: Sequence[int], ledger: RejectCounter) -> None:
        """Goes on from these positions and counts."""
        self.ask_for([0] * len(self._queues))
        self.positions = list(positions)
        self.ledger = ledger

    def _submit(self, component: int, position: int) -> int:
        return self._pool.submit(LoadTask(component, *self._shares[component].locate(position)))
