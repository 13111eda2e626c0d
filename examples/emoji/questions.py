"""Conversations about emoji for training, and questions for the evaluation."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from examples.emoji.dataset import Emoji, Split

NAME, CATEGORY = "What is this?", "Which category is it?"

_CHOICES = {"choice of 4": 4, "choice of 2": 2}
_KINDS = ("name", "category", *_CHOICES, "yes or no")
_NAMING = ("name", "choice of 4", "choice of 2", "name", "choice of 4")


class Question(NamedTuple):
    """A question about a picture, its answer, and the probability that a guess is correct."""

    kind: str
    text: str
    answer: str
    chance: float


class Questions:
    """Makes questions about emoji.

    Wrong choices are another variant of the same emoji, if there is one, and other emoji of the same category.
    """

    def __init__(self, emoji: Sequence[Emoji]) -> None:
        self._variants: dict[str, list[str]] = {}
        self._bases: dict[str, list[str]] = {}
        for one in emoji:
            self._variants.setdefault(one.base, []).append(one.name)
            self._bases.setdefault(one.category, []).append(one.base)
        self._bases = {category: sorted(set(bases)) for category, bases in self._bases.items()}
        self._all_bases = sorted(self._variants)
        unseen = Counter(one.category for one in emoji if one.split is Split.EMOJI and one.name == one.base)
        self._commonest = max(unseen.values()) / unseen.total()
        self._num_names = len(emoji)

    def ask(self, emoji: Emoji, kind: str, rng: np.random.Generator) -> Question:
        """Returns a question of a kind in `KINDS`."""
        if kind == "name":
            return Question(kind, NAME, emoji.name, 1 / self._num_names)
        if kind == "category":
            return Question(kind, CATEGORY, emoji.category, self._commonest)
        if kind in _CHOICES:
            names = [emoji.name, *self._others(emoji, _CHOICES[kind] - 1, rng)]
            rng.shuffle(names)
            return Question(kind, f"Which is it: {'; '.join(names)}?", emoji.name, 1 / len(names))
        is_true = rng.random() < 0.5
        name = emoji.name if is_true else self._others(emoji, 1, rng)[0]
        return Question(kind, f"Is it {name}?", "yes" if is_true else "no", 1 / 2)

    def conversation(self, emoji: Emoji, number: int) -> dict[str, Any]:
        """Returns one of many conversations about a picture, as an object for `janus-prepare --source conversations`.

        It asks for the name in one of several ways, for the category, and a question with yes or no, in random order.
        A second name would be answered from the first, without the picture.
        """
        rng = np.random.default_rng((number, *emoji.name.encode()))
        turns = []
        kinds = [_NAMING[number % len(_NAMING)], "category", "yes or no"]
        for position, kind in enumerate(rng.permutation(kinds)):
            question = self.ask(emoji, str(kind), rng)
            text = question.text if position else f"<image>\n{question.text}"
            turns += [{"from": "human", "value": text}, {"from": "gpt", "value": question.answer}]
        return {"image": emoji.file, "conversations": turns}

    def test(self, emoji: Emoji) -> list[Question]:
        """Returns the questions of the evaluation about a held-out picture.

        A model cannot know the name of an emoji that it never saw, only its category. All emoji with several variants
        are people, so variants are asked for no category, and skin tones of unseen emoji are omitted.
        """
        rng = np.random.default_rng((0, *emoji.name.encode()))
        if emoji.split is Split.EMOJI:
            return [self.ask(emoji, "category", rng)] if emoji.name == emoji.base else []
        return [self.ask(emoji, kind, rng) for kind in _KINDS if kind != "category"]

    def _others(self, emoji: Emoji, count: int, rng: np.random.Generator) -> list[str]:
        same = [name for name in self._variants[emoji.base] if name != emoji.name]
        # A question with one wrong name asks for the variant half of the time.
        found = [str(rng.choice(same))] if same and (count > 1 or rng.random() < 0.5) else []
        near = self._bases[emoji.category]
        while len(found) < count:
            bases = near if len(near) > count else self._all_bases
            base = str(rng.choice(bases))
            name = str(rng.choice(self._variants[base]))
            if base != emoji.base and name not in found:
                found.append(name)
        return found


def chat(emoji: Sequence[Emoji]) -> list[dict[str, Any]]:
    """Returns conversations without images, one for each emoji that is no variant."""
    rows = []
    for one in {one.base: one for one in reversed(emoji)}.values():
        turns = [f"Which category is {one.base}?", one.category]
        if one.keywords:
            turns += [f"What is another name of {one.base}?", one.keywords[0]]
        roles = ("human", "gpt") * 2
        rows.append(
            {"conversations": [{"from": role, "value": turn} for role, turn in zip(roles, turns, strict=False)]}
        )
    return rows
