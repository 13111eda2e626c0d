"""What a benchmark is: questions read from its own files, and what their answers are worth."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from janus_jax.errors import JanusError
from janus_jax.processing import ImageSource, Message

Options = Mapping[str, str]
"""A benchmark's options by name, every one of them set."""

Answers = Mapping[str, str]
"""What a model answered, by question id: its text, or for pictures the name of the file."""

Scores = Mapping[str, float]
"""Figures by name, in the units that the papers print. `random.f1` is the F1 of the part named random."""


class Item(Protocol):
    """What a benchmark asks for once, and what a journal knows as done.

    Attributes:
      id: that no other item of the benchmark has.
      group: items that are counted together have the same; a limit keeps them whole.
      asked: all that its answer depends on, besides the model.
    """

    @property
    def id(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def asked(self) -> Sequence[str | bytes]: ...


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about pictures. Benchmarks add what their scorers need.

    Attributes:
      id: that no other question of the benchmark has.
      messages: the turns. Their pictures are paths, or bytes of a file: none is decoded before it is asked about.
      max_new_tokens: ids of the answer at most.
      system_prompt: the authors asked without one.
      group: questions that are counted together have the same.
    """

    id: str
    messages: Sequence[Message] = field(repr=False)
    max_new_tokens: int = 32
    system_prompt: str = ""
    group: str = ""

    @property
    def asked(self) -> list[str | bytes]:
        """All that its answer depends on; of a picture in a file, the file's name."""
        parts: list[str | bytes] = [self.system_prompt, str(self.max_new_tokens)]
        for message in self.messages:
            parts += [message["role"], message["content"], *map(_named, message.get("images", ()))]
        return parts


OWN = "own"
"""Of an option: what the model itself would take."""


@dataclass(frozen=True)
class Amount:
    """The values of an option that is a number.

    Attributes:
      default: where none is given; None for the model's own, which is written `OWN`.
      least, most: that it may be.
      whole: whether only whole numbers will do.
    """

    default: float | None
    least: float = 0.0
    most: float = 1e6
    whole: bool = False

    def read(self, text: str) -> str | None:
        """The number, written as all that mean it are; None where it will not do."""
        if text == OWN and self.default is None:
            return OWN
        try:
            value = float(text)
        except ValueError:
            return None
        fits = self.least <= value <= self.most and (value.is_integer() or not self.whole)
        return _number(value) if fits else None

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {_number(self.least)} to {_number(self.most)}"


Asked = TypeVar("Asked", bound=Item)


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[Asked]):
    """One benchmark; it is all in one file, and that file's last lines make one of these.

    Attributes:
      name: that the command takes.
      title: what it is, in a line.
      layout: of the data's folder, file by file.
      source: where the data comes from.
      read: the data's folder to what is asked, in the order of the files. Raises `JanusError` for whatever is missing
        or malformed: one sentence with the file, the field (and line) and what was expected.
      score: figures of all answers, the papers' own first; none where grading is done outside.
      write_predictions: all answers into a folder, in the official scorer's format.
      options: the values that each option may take, its default first.
      scoring_options: those that change figures, but no answer: a folder may be scored again with others.
      published: the papers' figures, by `JanusConfig.name` and figure.
    """

    name: str
    title: str
    layout: str
    source: str
    read: Callable[[Path, Options], Sequence[Asked]]
    score: Callable[[Sequence[Asked], Answers, Options], Scores]
    write_predictions: Callable[[Sequence[Asked], Answers, Path], None]
    options: Mapping[str, tuple[str, ...] | Amount] = field(default_factory=dict)
    scoring_options: tuple[str, ...] = ()
    published: Mapping[str, Scores] = field(default_factory=dict)

    def settled(self, given: Mapping[str, str]) -> Options:
        """All options: those given and the defaults of the others.

        Raises:
          JanusError: there is no such option, or not of that value.
        """
        settled = {name: default_of(values) for name, values in self.options.items()}
        for name, value in given.items():
            if name not in self.options:
                there = ", ".join(self.options) or "none"
                raise JanusError(f"{self.name} has no option {name!r}; its options: {there}.")
            values = self.options[name]
            read = values.read(value) if isinstance(values, Amount) else value if value in values else None
            if read is None:
                allowed = values if isinstance(values, Amount) else f"one of {', '.join(values)}"
                raise JanusError(f"{self.name}'s option {name} is {value!r}; it must be {allowed}.")
            settled[name] = read
        return settled


def default_of(values: tuple[str, ...] | Amount) -> str:
    """What an option is where it is not given."""
    if not isinstance(values, Amount):
        return values[0]
    return OWN if values.default is None else _number(values.default)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


def published(**rows: tuple[float | None, float | None, float | None, float | None]) -> dict[str, Scores]:
    """The papers' figures of Janus-1.3B, JanusFlow-1.3B, Janus-Pro-1B and -7B, by figure; None: not published."""
    models = ("janus_1.3b", "janusflow_1.3b", "janus_pro_1b", "janus_pro_7b")
    return {
        model: {name.replace("__", "."): value for name, row in rows.items() if (value := row[index]) is not None}
        for index, model in enumerate(models)
    }


def limited(items: Sequence[Asked], limit: int | None, seed: int) -> Sequence[Asked]:
    """Groups drawn by the seed until there are `limit` items or a few more; in their old order. None: all."""
    if limit is None or limit >= len(items):
        return items
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.group or f"\0{item.id}", []).append(index)
    kept: list[int] = []
    whole = list(groups.values())
    for chosen in np.random.default_rng(seed).permutation(len(whole)):
        if len(kept) >= limit:
            break
        kept += whole[chosen]
    return [items[index] for index in sorted(kept)]


def _named(source: ImageSource) -> str | bytes:
    if isinstance(source, bytes):
        return source
    return os.path.basename(source) if isinstance(source, str | os.PathLike) else repr(source)


def check_ids(items: Sequence[Item], where: Path) -> None:
    """Checks that there are items, and that no two have the same id.

    Raises:
      JanusError: there are none, or two have.
    """
    if not items:
        raise JanusError(f"{where} holds no question; look at the layout that --list shows.")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise JanusError(f"{where} holds two questions with the id {item.id!r}; every id must be there once.")
        seen.add(item.id)
