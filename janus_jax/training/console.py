"""Console output of a run: a summary, messages, and progress with the remaining time. Only the first process prints."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from tqdm import tqdm

from janus_jax.training.state import TrainState

_BAR = "{percentage:3.0f}% |{bar:10}| {n:,}/{total:,}  {remaining:>8} left  {desc}"
_COLUMNS = 80  # of a terminal of unknown width


class Console:
    """Context manager that prints to the terminal, or to a log file as lines without carriage returns.

    Args:
      total_steps: Steps of the whole run.
      every_seconds: Interval of the progress lines if the output is not a terminal.
      stream: Output; None for stdout.
    """

    def __init__(self, total_steps: int, *, every_seconds: float = 30.0, stream: TextIO | None = None) -> None:
        self._total, self._every = total_steps, every_seconds
        self._stream = (stream or sys.stdout) if jax.process_index() == 0 else None
        self._bar: tqdm[Any] | None = None
        self._line_is_open = False
        self._printed_at = -math.inf
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def facts(self, facts: Mapping[str, str]) -> None:
        """Prints facts by name, one per line."""
        width = max(map(len, facts))
        for name, fact in facts.items():
            self.message(f"  {name:{width}}  {fact}")

    @contextlib.contextmanager
    def timed(self, action: str) -> Iterator[None]:
        """Context manager that prints the name of an action, then the time that its block took, on the same line."""
        begin = time.monotonic()
        self._write(f"{action} ... ")
        self._line_is_open = True
        took = ""
        try:
            yield
            took = f"{time.monotonic() - begin:.1f} s"
        finally:
            # A message in between has ended the line.
            self._write(f"{took}\n" if self._line_is_open else took and f"{action} took {took}\n")
            self._line_is_open = False

    def message(self, text: str) -> None:
        """Prints a line above the progress bar. Any thread may call it."""
        if self._bar is not None:
            self._bar.write(text, file=self._bar.fp)
            return
        is_open, self._line_is_open = self._line_is_open, False
        self._write("\n" * is_open + f"{text}\n")

    @contextlib.contextmanager
    def stepping(self, step: int) -> Iterator[None]:
        """Context manager around a step.

        The first step compiles. Its time is printed, and excluded from the remaining time.
        """
        if self._first is not None:
            yield
            return
        with self.timed("compiling the training step"):
            yield
        self._first = step, time.monotonic()
        if self._stream is not None and self._stream.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_BAR,
                miniters=1,
                smoothing=0,  # The time left includes evaluations and saves in proportion.
            )

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the step, the remaining time, and as many of the values as fit the terminal, first to last.

        A log file gets a line only every `every_seconds`, and at the last step.
        """
        fields = [f"{name} {_short(value)}" for name, value in values.items()]
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str("", refresh=False)
            width = (self._bar.format_dict["ncols"] or _COLUMNS) - len(str(self._bar))
            self._bar.set_description_str(_join(fields, width), refresh=False)
            self._bar.update(0)
            return
        now = time.monotonic()
        first_step, first_time = self._first or (step, now)
        if now - self._printed_at < self._every and step < self._total:
            return
        self._printed_at = now
        left = []
        if first_step < step < self._total:
            left = [f"{tqdm.format_interval((now - first_time) / (step - first_step) * (self._total - step))} left"]
        self._write("  ".join([f"step {step:,}/{self._total:,}", *left, *fields]) + "\n")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


def describe_state(state: Any, mesh: Mesh | None) -> dict[str, str]:
    """Returns facts about a state and its devices: `parameters`, `devices` and `mesh`.

    Args:
      state: Tree of train states, with arrays or their shapes and shardings.
      mesh: Mesh that holds the state; None for a single device.
    """
    states = [node for node in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(node)]
    trained, frozen = (
        sum(math.prod(leaf.shape) for one in states for leaf in jax.tree.leaves(getattr(one, name)))
        for name in ("params", "frozen")
    )
    total = trained + frozen
    share = f"of which {_count(trained)} are trained ({trained / total:.2%})" if frozen else "all trained"
    device = next(iter(jax.tree.leaves(state)[0].sharding.device_set))
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return {
        "parameters": f"{_count(total)}, {share}",
        "devices": f"{1 if mesh is None else mesh.size} x {device.device_kind}{processes}",
        "mesh": "one device" if mesh is None else ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
    }


def changed_fields(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each field in which two configs (JSON values) differ, with both values."""
    before, after = (flatten_dict(config, sep=".") for config in (saved, current))
    names = [*after, *(name for name in before if name not in after)]
    return [
        f"config.{name} was {_value(before, name)} and is {_value(after, name)}"
        for name in names
        if _value(before, name) != _value(after, name)
    ]


def _value(config: Mapping[str, Any], name: str) -> str:
    return f"{config[name]!r}" if name in config else "not set"


def _is_state(node: Any) -> bool:
    return isinstance(node, TrainState)


def _join(fields: list[str], width: int) -> str:
    """Joins as many fields as fit, starting with the first."""
    text = ""
    for field in fields:
        longer = f"{text}  {field}" if text else field
        if len(longer) > width:
            break
        text = longer
    return text


def _count(number: int) -> str:
    for unit, name in ((1e9, " B"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:,}"


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else tqdm.format_sizeof(value)
