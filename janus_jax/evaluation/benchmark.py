"""Interface of benchmarks: items (questions or image requests), answers and scores."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from absl import logging

from janus_jax.errors import JanusError
from janus_jax.processing import ImageSource, Message

Options = Mapping[str, str]
"""Values of all options of a benchmark, by name."""

Answers = Mapping[str, str]
"""A model's answers by item id. An answer is a text, or the path of a generated image."""

Scores = Mapping[str, float]
"""Scores by name, in the units of the papers. Example of a name: `random.f1` is the F1 score of the split `random`."""

PUBLISHED_MODELS = ("janus_1.3b", "janusflow_1.3b", "janus_pro_1b", "janus_pro_7b")
"""Models with scores in the papers, as `ModelConfig.name`."""

MODEL_DEFAULT = "model"
"""Option value that selects the model's own default."""


class Item(Protocol):
    """One unit of work of a benchmark: a question, or a request for an image.

    Attributes:
      id: Unique id within the benchmark.
      group: Name of the group. Items of a group are scored together, so a limit selects all of them or none. An item
        with the group "" is alone in its group.
      inputs: Everything that the answer depends on, except the model.
      image_files: Paths of the images that the item needs.
    """

    @property
    def id(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def inputs(self) -> Sequence[str | bytes]: ...

    @property
    def image_files(self) -> Sequence[Path]: ...


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about images. Benchmarks add the fields that their scores need in subclasses.

    Attributes:
      id: Unique id within the benchmark.
      messages: The conversation. Its images are paths or contents of image files, decoded when the question is asked.
      max_new_tokens: Maximum length of the answer in tokens.
      system_prompt: System prompt. Janus' authors used none, except for MM-Vet.
      group: See `Item.group`.
    """

    id: str
    messages: Sequence[Message] = field(repr=False)
    max_new_tokens: int = 32
    system_prompt: str = ""
    group: str = ""

    @property
    def image_files(self) -> list[Path]:
        """Paths of the question's image files. Images that are given by their content are omitted."""
        sources = [source for message in self.messages for source in message.get("images", ())]
        return [Path(source) for source in sources if isinstance(source, os.PathLike)]

    @property
    def inputs(self) -> list[str | bytes]:
        """Everything that the answer depends on, except the model. Image files are represented by their names."""
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
        """Returns the text if it is one of the values, otherwise None."""
        return text if text in self.values else None

    def __str__(self) -> str:
        return "|".join(self.values)


class Number:
    """A numeric option.

    Args:
      default: Default value; None if the model's own setting is the default.
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
        """Returns the number in canonical notation (5 for 5.0), or None if the text is no number or is out of range."""
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


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of a run, for a benchmark that answers its items itself.

    Attributes:
      folder: The run's folder.
      options: Options of the benchmark.
      seed: Random seed of the run.
      batch_size: Number of items per batch.
    """

    folder: Path
    options: Options
    seed: int
    batch_size: int


AnswerItems = Callable[[Any, Sequence[ItemT], AnswerSettings], Iterator[Mapping[str, str | None]]]
"""Function of a model (`Pretrained`), items and settings that yields answers by item id, one batch at a time."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[ItemT]):
    """A benchmark.

    Attributes:
      name: Name for the command line and recipes.
      title: One-line description.
      layout: Files that `read` expects in the data folder, one pattern per line; "" if it needs no data.
      source: Where to download the data.
      read: Reads all items from the data folder, in file order. Raises `JanusError` for missing or malformed files.
      score: Computes the scores, starting with those that the papers report. Returns no scores if an external tool
        grades the answers.
      write_predictions: Writes all answers into a folder, in the format of the official scorer.
      options: Options by name.
      scoring_options: Names of the options that affect the scores but not the answers. A finished run can be scored
        again with other values of these options.
      published: Scores from the papers by name, one per model of `PUBLISHED_MODELS`; None where a paper has no score.
      answer: Answers items that are neither questions nor image requests, or in another way. By default, questions are
        answered greedily, and the images of image requests are generated from their prompts.
      official_sizes: Number of items in each version of the official data, which may depend on the options; () if it is
        unknown.
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
    published: Mapping[str, tuple[float | None, float | None, float | None, float | None]] = field(default_factory=dict)
    answer: AnswerItems[ItemT] | None = None
    official_sizes: tuple[int, ...] | Callable[[Options], tuple[int, ...]] = ()

    def published_scores(self, model: str) -> Scores:
        """Returns a model's scores from the papers; empty if the model is not in `PUBLISHED_MODELS`."""
        if model not in PUBLISHED_MODELS:
            return {}
        index = PUBLISHED_MODELS.index(model)
        return {name: value for name, values in self.published.items() if (value := values[index]) is not None}

    def load_items(
        self,
        data: Path,
        options: Options,
        limit: int | None = None,
        seed: int = 0,
        *,
        warn: Callable[[str], object] = logging.warning,
    ) -> Sequence[ItemT]:
        """Reads the items, selects a random subset, and checks that ids are unique and image files exist.

        Args:
          limit: Approximate size of the subset, see `limit_items`; None for all items.
          seed: Seed of the random selection.
          warn: Called with a message if the number of items in the folder is not the official one.

        Raises:
          JanusError: Data or an image file is missing, the data is malformed, or an id occurs twice.
        """
        items = self.read(data, options)
        if not items:
            raise JanusError(f"{data} contains no questions; --list shows the expected files.")
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise JanusError(f"{data} contains the id {item.id!r} twice; ids must be unique.")
            seen.add(item.id)
        official = self.official_sizes(options) if callable(self.official_sizes) else self.official_sizes
        if official and len(items) not in official:
            kind = "questions" if isinstance(items[0], Question) else "images"
            numbers = " or ".join(f"{number:,}" for number in official)
            warn(f"{self.name} has {len(items):,} {kind} in {data}; the official number is {numbers}.")
        items = limit_items(items, limit, seed)
        for file in missing_files(file for item in items for file in item.image_files):
            id = next(item.id for item in items if file in item.image_files)
            raise JanusError(f"{file}, the image of question {id}, is missing; --list shows the layout.")
        return items

    def resolve_options(self, given: Mapping[str, str]) -> Options:
        """Returns the values of all options: given values, and defaults for the other options.

        Raises:
          JanusError: The benchmark has no option of a given name, or a value is not allowed.
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


def no_scores(items: Sequence[Item], answers: Answers, options: Options) -> Scores:
    """Returns no scores. The `score` function of benchmarks whose answers an external tool grades."""
    return {}


def percent(correct: Sequence[bool]) -> float:
    """Returns the percentage of True values; 0 for an empty sequence."""
    return 100 * sum(correct) / len(correct) if correct else 0.0


def accuracy_by(name: str, correct: Sequence[tuple[str, bool]]) -> Scores:
    """Returns the accuracy in percent of each category, in order of first appearance. Omits the category "".

    Args:
      name: Pattern of the score names; `{}` stands for the category.
      correct: For each question, its category and whether the answer is correct.
    """
    return {
        name.format(category): percent([one for other, one in correct if other == category])
        for category in dict.fromkeys(category for category, _ in correct)
        if category
    }


def limit_items(items: Sequence[ItemT], limit: int | None, seed: int) -> Sequence[ItemT]:
    """Selects random groups until they have at least `limit` items. Returns their items in the original order.

    The limit None selects all items.
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


def missing_files(files: Iterable[Path]) -> Iterator[Path]:
    """Yields the files that do not exist. Lists each folder once, which is faster on network disks."""
    names: dict[Path, set[str]] = {}
    for file in files:
        folder = file.parent
        if folder not in names:
            names[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if file.name not in names[folder]:
            yield file
