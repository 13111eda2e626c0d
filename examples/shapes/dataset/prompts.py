"""Prompts in GenEval's categories, with the requirements on their images."""

from dataclasses import dataclass

import numpy as np

from examples.shapes.dataset.captions import PHOTO, prompt_text, shuffled
from examples.shapes.dataset.scene import Category, Relation, Scene, relation, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, Split, Vocabulary


@dataclass(frozen=True)
class Requirement:
    """Objects that an image must show.

    Attributes:
      shape: Shape of the objects.
      count: Minimum number of objects.
      color: Color of the objects. None allows any color.
      relation: Position relative to the objects of the first requirement. None allows any position.
    """

    shape: str
    count: int = 1
    color: str | None = None
    relation: Relation | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt and the requirements on its images.

    Attributes:
      scene: A scene that satisfies the requirements.
    """

    category: Category
    text: str
    requirements: tuple[Requirement, ...]
    scene: Scene

    @property
    def is_exact(self) -> bool:
        """Whether GenEval's rule rejects images with more objects of the shape than required."""
        return self.category is Category.COUNTING


def sample_prompts(
    split: Split,
    per_category: int,
    seed: int = 0,
    vocabulary: Vocabulary = DEFAULT_VOCABULARY,
    about: frozenset[str] = frozenset(),
) -> list[Prompt]:
    """Returns random prompts for an evaluation, the same number of each category.

    In TEST each prompt asks for a held-out combination. Prompts for a single object name a shape without a color, which
    is not a combination.

    Args:
      per_category: Prompts per category. Prompts repeat if a category has fewer.
      about: If not empty, each prompt names at least one of these shapes and colors.

    Raises:
      JanusError: The vocabulary allows no scene of a category.
    """
    return [
        _sample(np.random.default_rng((seed, number, index)), category, split, vocabulary, about)
        for number, category in enumerate(Category)
        for index in range(per_category)
    ]


def prompt_for(scene: Scene, category: Category, rng: np.random.Generator) -> Prompt:
    """Returns a prompt for a scene that was sampled for this category. Which object is named first is random."""
    objects = shuffled(scene.objects, rng)
    first, last = objects[0], objects[-1]
    requirements: tuple[Requirement, ...]
    match category:
        case Category.SINGLE_OBJECT:
            requirements = (Requirement(first.shape),)
        case Category.COUNTING:
            requirements = (Requirement(first.shape, len(objects)),)
        case Category.COLORS:
            requirements = (Requirement(first.shape, color=first.color),)
        case Category.TWO_OBJECT:
            requirements = (Requirement(first.shape), Requirement(last.shape))
        case Category.COLOR_ATTR:
            requirements = tuple(Requirement(obj.shape, color=obj.color) for obj in (first, last))
        case Category.POSITION:
            # As in GenEval, the reference object comes first, although it is named last.
            requirements = (Requirement(last.shape), Requirement(first.shape, relation=relation(first, last)))
    return Prompt(category, PHOTO + prompt_text(objects, category), requirements, scene)


def _sample(
    rng: np.random.Generator, category: Category, split: Split, vocabulary: Vocabulary, about: frozenset[str]
) -> Prompt:
    while True:
        prompt = prompt_for(sample_scene(rng, vocabulary, split, category, about), category, rng)
        named = {name for required in prompt.requirements for name in (required.shape, required.color)}
        if not about or named & about:
            return prompt
