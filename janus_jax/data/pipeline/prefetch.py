"""Loads and prefetches the examples of each component, skipping rejected records."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from janus_jax.data.pipeline.dataset import Component, ComponentShard, RecordReader, open_records
from janus_jax.data.pipeline.examples import Example, ExampleBuilder
from janus_jax.data.pipeline.packing import Budget, PendingExample, truncate
from janus_jax.data.pipeline.workers import Pool, Work
from janus_jax.data.rejects import RejectCounter, RejectedRecord, Rejection, RejectReason
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, describe_error


@dataclass(frozen=True)
class LoadTask:
    """A record to load.

    Attributes:
      component: Index of the component.
      epoch: Epoch of the component.
      index: Index of the record within the component.
    """

    component: int
    epoch: int
    index: int


@dataclass(frozen=True)
class ExampleLoader:
    """Loads examples. It is sent to each worker by pickle, and the worker calls it to open the components."""

    components: Sequence[Component]
    builder: ExampleBuilder
    budget: Budget

    def __call__(self) -> Work:
        """Opens the components and returns the function from task to example."""
        readers = [open_records(component) for component in self.components]
        return lambda task: self.load(task, readers[task.component])

    def load(self, task: LoadTask, reader: RecordReader) -> Example | Rejection:
        """Returns the example of a record, or a `Rejection` if the record is invalid."""
        component = self.components[task.component]
        example_id = f"{component.name}/number {task.index}"
        try:
            record = reader.read(task.index)
            example_id = f"{component.name}/{record.key}{f'#{task.epoch}' if task.epoch else ''}"
            if component.task not in (None, record.task):
                raise RejectedRecord(RejectReason.WRONG_TASK, f"its task is {record.task.value}.")
            return truncate(self.builder(record, task.epoch, example_id), self.budget)
        except RejectedRecord as error:
            return Rejection(example_id, error.reason, str(error))
        except PARSE_ERRORS as error:
            detail = str(error) if isinstance(error, JanusError) else describe_error(error)
            return Rejection(example_id, RejectReason.MALFORMED, detail)


class Prefetcher:
    """Queues of loaded examples, one per component.

    The order of examples does not depend on the lengths of the queues. The examples of a component have the order of
    its records. A rejected record is replaced by the next record of the component.

    Attributes:
      positions: Number of records read so far from each component, including rejected ones.
      rejects: Counts of accepted and rejected records.
    """

    def __init__(self, pool: Pool, shards: Sequence[ComponentShard], rejects: RejectCounter):
        self._pool = pool
        self._shards = shards
        self._queues: list[deque[int]] = [deque() for _ in shards]
        self.rejects = rejects
        self.positions = [0] * len(shards)

    def request(self, component: int) -> None:
        """Adds the next record of a component to its queue."""
        position = self.positions[component] + len(self._queues[component])
        self._queues[component].append(self._submit(component, position))

    def resize_queues(self, lengths: Sequence[int]) -> None:
        """Lengthens or shortens each queue to the given length."""
        for component, (queue, length) in enumerate(zip(self._queues, lengths, strict=True)):
            while len(queue) > length:
                self._pool.cancel(queue.pop())
            while len(queue) < length:
                self.request(component)

    def next_example(self, component: int) -> PendingExample:
        """Returns the next example of a component.

        Raises:
          JanusError: Too many records are rejected, or a worker has ended.
        """
        while True:
            if not self._queues[component]:
                self.request(component)
            result = self._pool.result(self._queues[component].popleft())
            position = self.positions[component]
            self.positions[component] += 1
            if isinstance(result, Example):
                self.rejects.accept()
                return PendingExample(result, (component, position))
            self.rejects.reject(result)
            self.request(component)

    def reload(self, origins: Sequence[tuple[int, int]]) -> list[PendingExample]:
        """Returns the examples that waited to be packed when the state was saved, loaded again.

        Raises:
          JanusError: An example can no longer be loaded.
        """
        numbers = [self._submit(*origin) for origin in origins]
        examples = []
        for origin, number in zip(origins, numbers, strict=True):
            result = self._pool.result(number)
            if not isinstance(result, Example):
                raise JanusError(
                    f"{result.example_id} is part of the saved data state but can no longer be loaded "
                    f"({result.detail}); restore the data as it was."
                )
            examples.append(PendingExample(result, origin))
        return examples

    def seek(self, positions: Sequence[int], rejects: RejectCounter) -> None:
        """Empties the queues and continues at the given position of each component, with the given counts."""
        self.resize_queues([0] * len(self._queues))
        self.positions = list(positions)
        self.rejects = rejects

    def _submit(self, component: int, position: int) -> int:
        return self._pool.submit(LoadTask(component, *self._shards[component].locate(position)))
