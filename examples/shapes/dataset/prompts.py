"""Prompts for pictures, as GenEval has them, and what each must show."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.shapes.dataset.captions import PHOTO, request, shuffled
from examples.shapes.dataset.scene import Category, Relation, Scene, relation, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT, Split, Vocabulary


@dataclass(frozen=True)
class Wanted:
    """Things that a prompt asks for.

    Attributes:
      shape: of all of them.
      count: how many, at least.
      colour: of all of them; None for any.
      relation: where they are, seen from the things wanted first; None for anywhere.
    """

    shape: str
    count: int = 1
    colour: str | None = None
    relation: Relation | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt and what a picture of it must show.

    Attributes:
      category: of GenEval's.
      text: the prompt.
      wanted: what must be there.
      scene: one of which the prompt is true.
    """

    category: Category
    text: str
    wanted: tuple[Wanted, ...]
    scene: Scene

    @property
    def exact(self) -> bool:
        """Whether more of a shape than wanted is wrong by GenEval's rule too."""
        return self.category is Category.COUNTING

    def metadata(self) -> dict[str, Any]:
        """The line of GenEval's `evaluation_metadata.jsonl`."""
        include = []
        for wanted in self.wanted:
            entry: dict[str, Any] = {"class": wanted.shape, "count": wanted.count}
            if wanted.colour:
                entry["color"] = wanted.colour
            if wanted.relation:
                entry["position"] = [wanted.relation.phrase, 0]
            include.append(entry)
        exclude = [{"class": wanted.shape, "count": wanted.count + 1} for wanted in self.wanted if self.exact]
        excluded = {"exclude": exclude} if exclude else {}
        return {"tag": self.category.value, "include": include, **excluded, "prompt": self.text}


def prompts(
    split: Split,
    per_category: int,
    seed: int = 0,
    vocabulary: Vocabulary = DEFAULT,
    about: frozenset[str] = frozenset(),
) -> list[Prompt]:
    """Prompts for an evaluation, as many of each category. In TEST each asks for a held-out combination.

    (But for those of a single object: a shape alone is no combination.)

    Args:
      split: which combinations.
      per_category: how many; they repeat where there are fewer.
      seed: of the sample.
      vocabulary: what may be asked for.
      about: shapes and colours of which the prompt must name one; empty for any.

    Raises:
      JanusError: the vocabulary makes no scene of a category.
    """
    return [
        _sample(np.random.default_rng((seed, number, index)), category, split, vocabulary, about)
        for number, category in enumerate(Category)
        for index in range(per_category)
    ]


def prompt_for(scene: Scene, category: Category, rng: np.random.Generator) -> Prompt:
    """The prompt of a scene that was made for a category; `rng` draws which thing comes first."""
    things = shuffled(scene.things, rng)
    first, last = things[0], things[-1]
    wanted: tuple[Wanted, ...]
    match category:
        case Category.SINGLE_OBJECT:
            wanted = (Wanted(first.shape),)
        case Category.COUNTING:
            wanted = (Wanted(first.shape, len(things)),)
        case Category.COLORS:
            wanted = (Wanted(first.shape, colour=first.colour),)
        case Category.TWO_OBJECT:
            wanted = (Wanted(first.shape), Wanted(last.shape))
        case Category.COLOR_ATTR:
            wanted = (Wanted(first.shape, colour=first.colour), Wanted(last.shape, colour=last.colour))
        case Category.POSITION:
            # As in GenEval the thing that the other is seen from is wanted first, though it is named last.
            wanted = (Wanted(last.shape), Wanted(first.shape, relation=relation(first, last)))
    return Prompt(category, PHOTO + request(things, category), wanted, scene)


def _sample(
    rng: np.random.Generator, category: Category, split: Split, vocabulary: Vocabulary, about: frozenset[str]
) -> Prompt:
    while True:
        prompt = prompt_for(sample_scene(rng, vocabulary, split, category, about), category, rng)
        named = {name for wanted in prompt.wanted for name in (wanted.shape, wanted.colour)}
        if not about or named & about:
            return prompt
