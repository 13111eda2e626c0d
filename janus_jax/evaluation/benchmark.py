"""The benchmark interface: items read from the benchmark's files, their answers, and the scores."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from janus_jax.errors import JanusError
from janus_jax.processing import ImageSource, Message

Options = Mapping[str, str]
"""Values of all options of a benchmark, by name."""

Answers = Mapping[str, str]
"""A model's answers by item id: a text, or the path of the generated image."""

Scores = Mapping[str, float]
"""Scores by name, in the units of the papers. `random.f1` is the F1 of the split `random`."""

MODEL_DEFAULT = "model"
"""Value of an option that leaves the setting to the model."""


class Item(Protocol):
    """One unit of work of a benchmark: a question, or a request for an image.

    Attributes:
      id: Unique id within the benchmark.
      group: Items of one group are scored together, so a limit keeps or drops them together. "" for a group of one.
      inputs: Everything that the answer depends on, other than the model.
    """

    @property
    def id(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def inputs(self) -> Sequence[str | bytes]: ...


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about images. Benchmarks derive classes with the fields that their scores need.

    Attributes:
      id: Unique id within the benchmark.
      messages: The conversation. Images are paths or encoded files; they are decoded when the question is asked.
      max_new_tokens: Upper bound of the answer's length in tokens.
      system_prompt: The system prompt; the authors used none.
      group: See `Item.group`.
    """

    id: str
    messages: Sequence[Message] = field(repr=False)
    max_new_tokens: int = 32
    system_prompt: str = ""
    group: str = ""

    @property
    def inputs(self) -> list[str | bytes]:
        """Everything that the answer depends on. An image file is represented by its name."""
        parts: list[str | bytes] = [self.system_prompt, str(self.max_new_tokens)]
        for message in self.messages:
            parts += [message["role"], message["content"], *map(_image_input, message.get("images", ()))]
        return parts


def _image_input(source: ImageSource) -> str | bytes:
    if isinstance(source, bytes):
        return source
    return os.path.basename(source) if isinstance(source, str | os.PathLike) else repr(source)


class Choice:
    """An option with a fixed set of values; the first is the default."""

    def __init__(self, *values: str) -> None:
        self.values, self.default = values, values[0]

    def parse(self, text: str) -> str | None:
        """Returns the value, or None if it is not allowed."""
        return text if text in self.values else None

    def __str__(self) -> str:
        return "|".join(self.values)


class Number:
    """A numeric option.

    Args:
      default: The default, or None for `MODEL_DEFAULT`.
      minimum: Smallest allowed value.
      maximum: Largest allowed value.
      integer: Whether only integers are allowed.
    """

    def __init__(
        self, default: float | None, minimum: float = 0.0, maximum: float = 1e6, *, integer: bool = False
    ) -> None:
        self.default = MODEL_DEFAULT if default is None else _canonical(default)
        self._minimum, self._maximum, self._integer = minimum, maximum, integer

    def parse(self, text: str) -> str | None:
        """Returns the number in canonical notation, or None if it is not allowed."""
        if text == self.default:
            return text
        try:
            value = float(text)
        except ValueError:
            return None
        allowed = self._minimum <= value <= self._maximum and (value.is_integer() or not self._integer)
        return _canonical(value) if allowed else None

    def __str__(self) -> str:
        kind = "an integer" if self._integer else "a number"
        return f"{kind} from {_canonical(self._minimum)} to {_canonical(self._maximum)}"


def _canonical(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[ItemT]):
    """One benchmark.

    Attributes:
      name: Name on the command line and in recipes.
      title: Description in one line.
      layout: Files that `read` expects in the data folder, one pattern per line; "" if it needs no data.
      source: Where to download the data.
      read: Reads the items from the data folder, in file order. Raises `JanusError` for missing or malformed files.
      score: Computes the scores, those of the papers first. Returns no scores if an external tool grades the answers.
      write_predictions: Writes all answers into a folder, in the format of the official scorer.
      options: Options by name.
      scoring_options: Names of the options that change scores but no answers. Finished runs can be scored again with
        other values.
      published: Scores from the papers, by `JanusConfig.name` and score name.
    """

    name: str
    title: str
    layout: str
    source: str
    read: Callable[[Path, Options], Sequence[ItemT]]
    score: Callable[[Sequence[ItemT], Answers, Options], Scores]
    write_predictions: Callable[[Sequence[ItemT], Answers, Path], None]
    options: Mapping[str, Choice | Number] = field(default_factory=dict)
    scoring_options: tuple[str, ...] = ()
    published: Mapping[str, Scores] = field(default_factory=dict)

    def resolve_options(self, given: Mapping[str, str]) -> Options:
        """Returns the values of all options: the given ones, and defaults for the others.

        Raises:
          JanusError: The benchmark has no such option, or the option does not allow the value.
        """
        resolved = {name: option.default for name, option in self.options.items()}
        for name, text in given.items():
            if name not in self.options:
                raise JanusError(
                    f"{self.name} has no option {name!r}; its options are {', '.join(self.options) or '(none)'}."
                )
            value = self.options[name].parse(text)
            if value is None:
                raise JanusError(f"{self.name}'s option {name} is {text!r}; it must be {self.options[name]}.")
            resolved[name] = value
        return resolved


def published_scores(**scores: tuple[float | None, float | None, float | None, float | None]) -> Mapping[str, Scores]:
    """Arranges scores from the papers by model.

    Args:
      **scores: Scores of Janus-1.3B, JanusFlow-1.3B, Janus-Pro-1B and Janus-Pro-7B; None if not published. Two
        underscores in a name stand for a dot.
    """
    models = ("janus_1.3b", "janusflow_1.3b", "janus_pro_1b", "janus_pro_7b")
    published: dict[str, dict[str, float]] = {model: {} for model in models}
    for name, values in scores.items():
        for model, value in zip(models, values, strict=True):
            if value is not None:
                published[model][name.replace("__", ".")] = value
    return published


def no_scores(items: Sequence[Item], answers: Answers, options: Options) -> Scores:
    """The `score` function of benchmarks that an external tool grades."""
    return {}


def percent(correct: Sequence[bool]) -> float:
    """Returns the share of True in percent; 0 for an empty sequence."""
    return 100 * sum(correct) / len(correct) if correct else 0.0


def accuracy_by(name: str, correct: Sequence[tuple[str, bool]]) -> Scores:
    """Returns accuracies in percent by category, in order of first appearance. The category "" has none.

    Args:
      name: Pattern of the scores' names, in which `{}` stands for the category.
      correct: Category of each question, and whether its answer is correct.
    """
    return {
        name.format(category): percent([one for other, one in correct if other == category])
        for category in dict.fromkeys(category for category, _ in correct)
        if category
    }


def limit_items(items: Sequence[ItemT], limit: int | None, seed: int) -> Sequence[ItemT]:
    """Selects random groups until at least `limit` items are selected; the order of the items is kept.

    Args:
      limit: Number of items, or None for all.
      seed: Seed of the selection.
    """
    if limit is None or limit >= len(items):
        return items
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.group or f"\0{item.id}", []).append(index)
    candidates = list(groups.values())
    selected: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(candidates)):
        if len(selected) >= limit:
            break
        selected += candidates[number]
    return [items[index] for index in sorted(selected)]


def check_items(items: Sequence[Item], source: Path) -> None:
    """Checks that there are items and that their ids are unique.

    Args:
      source: The file or folder that the items come from, for messages.

    Raises:
      JanusError: There are no items, or two have the same id.
    """
    if not items:
        raise JanusError(f"{source} contains no questions; --list shows the expected files.")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise JanusError(f"{source} contains the id {item.id!r} twice; ids must be unique.")
        seen.add(item.id)
