"""Progress bars, whoever runs what they show."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import tqdm

from janus_jax.data.prepare.parallel import PrepareProgress


@contextlib.contextmanager
def count_bar(name: str, unit: str = "answers", disable: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar over answers, or over pictures; gives the `report` of `evaluation.runner.collect_answers`."""
    with tqdm.tqdm(unit=f" {unit}", desc=name, smoothing=0.1, disable=disable, file=sys.stderr) as bar:

        def report(done: int, total: int) -> None:
            if bar.total is None:
                bar.total, bar.initial = total, done  # What an earlier run did is no part of this one's speed.
            bar.n = done
            bar.refresh()

        yield report


@contextlib.contextmanager
def records_bar(disable: bool = False) -> Iterator[Callable[[PrepareProgress], None]]:
    """A bar over records; gives the `report` of `data.processes.write_parts`."""
    with tqdm.tqdm(unit=" records", desc="records", smoothing=0.1, disable=disable) as bar:

        def report(progress: PrepareProgress) -> None:
            if not bar.n:
                bar.initial = progress.entries  # What an earlier run did is no part of this one's speed.
            bar.total = progress.total
            bar.n = progress.entries
            bar.set_postfix(rejected=progress.rejected, shards=progress.parts, refresh=False)
            bar.refresh()

        yield report
