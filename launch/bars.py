"""The progress bar of an evaluation, whoever runs it."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import tqdm


@contextlib.contextmanager
def answers_bar(name: str, disable: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar over answers; gives the `report` of `evaluate.runner.collect`."""
    with tqdm.tqdm(unit=" answers", desc=name, smoothing=0.1, disable=disable, file=sys.stderr) as bar:

        def report(done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial = total, done  # What an earlier run did is no part of this one's speed.
            bar.n = done
            bar.refresh()

        yield report
