"""Progress bars of the commands."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol, TextIO, cast

import tqdm

# Of bars whose output is not a terminal.
_SECONDS_BETWEEN_LINES = 30
_COLUMNS = 80


class Report(Protocol):
    """Function that updates a progress bar."""

    def __call__(self, done: int, total: int | None = None, **counts: int) -> None:
        """Shows that `done` of `total` items (None: unknown) are done, followed by the other counts and their names."""


def progress_bar(**settings: Any) -> "tqdm.tqdm[Any]":
    """Returns a tqdm bar on stderr. If stderr is not a terminal, the bar prints a line every 30 seconds.

    Args:
      **settings: Arguments of tqdm.
    """
    if sys.stderr.isatty():
        return tqdm.tqdm(file=sys.stderr, dynamic_ncols=True, miniters=1, **settings)
    lines = cast(TextIO, _Lines(sys.stderr))
    return tqdm.tqdm(file=lines, ncols=_COLUMNS, miniters=1, mininterval=_SECONDS_BETWEEN_LINES, **settings)


class _Lines:
    """File for tqdm that writes each state of a bar as a line, without carriage returns."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._last = file, ""

    def write(self, text: str) -> None:
        line = text.lstrip("\r").rstrip()
        if line and line != self._last:
            self._file.write(f"{line}\n")
            self._last = line

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def count_bar(name: str, unit: str = "answers", *, disable: bool = False, delay: float = 0.0) -> Iterator[Report]:
    """Shows a progress bar on stderr. Yields the function that updates it.

    Args:
      name: Text before the bar.
      unit: Unit of the count.
      disable: Whether to show no bar.
      delay: Seconds before the bar appears.
    """
    with progress_bar(unit=f" {unit}", desc=name, smoothing=0.1, disable=disable, delay=delay) as bar:
        started = False

        def report(done: int, total: int | None = None, **counts: int) -> None:
            nonlocal started
            if not started:
                bar.initial, started = done, True  # The speed excludes the work of earlier runs.
            bar.total, bar.n = total, done
            bar.set_postfix(counts, refresh=False)
            bar.update(0)

        yield report
