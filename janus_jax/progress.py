"""Progress bars of the commands."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol

import tqdm


class Report(Protocol):
    """Updates a progress bar."""

    def __call__(self, done: int, total: int | None = None, **counts: int) -> None:
        """Shows `done` of `total` (None if unknown), followed by further counts."""


@contextlib.contextmanager
def count_bar(name: str, unit: str = "answers", *, disable: bool = False, delay: float = 0.0) -> Iterator[Report]:
    """Shows a progress bar on stderr and yields the function that updates it.

    Args:
      name: Text before the bar.
      unit: Unit of the count.
      disable: Shows nothing.
      delay: Seconds before the bar appears.
    """
    with tqdm.tqdm(
        unit=f" {unit}", desc=name, smoothing=0.1, miniters=1, disable=disable, delay=delay, file=sys.stderr
    ) as bar:
        started = False

        def report(done: int, total: int | None = None, **counts: int) -> None:
            nonlocal started
            if not started:
                bar.initial, started = done, True  # The work of earlier runs does not count into the speed.
            bar.total, bar.n = total, done
            bar.set_postfix(counts, refresh=False)
            bar.update(0)

        yield report
