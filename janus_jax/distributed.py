"""The processes that share a run: this one alone, or all that `jax.distributed` has joined."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from janus_jax.errors import JanusError

_Result = TypeVar("_Result")


class Cluster:
    """The processes that share the work: this one alone. Their folder is one that all of them see."""

    index, count = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this process does what one alone has to."""
        return self.index == 0

    def share(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers that are this process's to do, whichever others are left."""
        return [number for number in numbers if number % self.count == self.index]

    def together(self, action: Callable[[], _Result]) -> _Result:
        """Does what all processes do at this point, and waits for the others.

        Raises:
          JanusError: another process failed.
        """
        return action()


class JaxCluster(Cluster):
    """All processes that `jax.distributed` has joined."""

    def __init__(self) -> None:
        import jax

        self.index, self.count = jax.process_index(), jax.process_count()

    def together(self, action: Callable[[], _Result]) -> _Result:
        import numpy as np
        from jax.experimental.multihost_utils import process_allgather

        failure = None
        try:
            result = action()
        # Of whatever kind: the others would wait for this process.
        except Exception as error:
            failure = error
        failed = np.flatnonzero(process_allgather(np.array(failure is not None)))
        if failure is not None:
            raise failure
        if failed.size:
            raise JanusError(f"Process {failed[0]} of the cluster has failed; its own message tells why.")
        return result
