"""Progress bars of the commands."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol

import tqdm


class Report(Protocol):
    """Function that updates a progress bar."""

    def __call__(self, done: int, total: int | None = None, **counts: int) -> None:
        """Shows that `done` of `total` items (None: unknown) are done, followed by the other counts and their names."""


@contextlib.contextmanager
def count_bar(name: str, unit: str = "answers", *, disable: bool = False, delay: float = 0.0) -> Iterator[Report]:
    """Shows a progress bar on stderr. Yields the function that updates it.

    Args:
      name: Text before the bar.
      unit: Unit of the count.
      disable: Whether to show no bar.
      delay: Seconds before the bar appears.
    """
    with tqdm.tqdm(
        unit=f" {unit}", desc=name, smoothing=0.1, miniters=1, disable=disable, delay=delay, file=sys.stderr
    ) as bar:
        started = False

        def report(done: int, total: int | None = None, **counts: int) -> None:
            nonlocal started
            if not started:
                bar.initial, started = done, True  # The speed excludes the work of earlier runs.
            bar.total, bar.n = total, done
            bar.set_postfix(counts, refresh=False)
            bar.update(0)

        yield report
