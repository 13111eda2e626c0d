"""Whether a picture shows what its prompt asks for, by GenEval's rule and by a stricter one."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from jaxtyping import UInt8

from examples.shapes.dataset.detector import Detection, detect
from examples.shapes.dataset.prompts import Prompt, Wanted
from examples.shapes.dataset.questions import Question
from examples.shapes.dataset.render import draw
from examples.shapes.dataset.scene import Relation, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT, Vocabulary
from janus_jax.errors import JanusError

_OVERLAP = 0.1  # GenEval's: of both things' widths (heights), that a thing must be off for to be to a side
_ASIDE = 0.5  # GenEval's: the sine of the angle at which a side begins


@dataclass(frozen=True)
class Verdict:
    """On one picture.

    Attributes:
      correct: by GenEval's rule (arXiv 2310.11513, §3.2): what is wanted is there; what else is there is ignored,
        but for counts.
      strict: correct, and nothing else is there.
      reason: what is missing, or too much; "" if strict.
      found: what the detector sees.
    """

    correct: bool
    strict: bool
    reason: str
    found: tuple[Detection, ...]


@dataclass(frozen=True)
class Scores:
    """Shares of right answers or pictures, by category, and the mean of the categories."""

    by_category: Mapping[str, float]

    @property
    def overall(self) -> float:
        """As GenEval has it: every category weighs the same."""
        return fmean(self.by_category.values())


@dataclass(frozen=True)
class DrawingScores:
    """Of pictures: GenEval's rule and the strict one."""

    geneval: Scores
    strict: Scores


def judge(prompt: Prompt, image: UInt8[np.ndarray, "H W 3"]) -> Verdict:
    """What a picture, RGB, 0..255, is worth as one of `prompt`."""
    return judge_detections(prompt, detect(image))


def judge_detections(prompt: Prompt, found: Sequence[Detection]) -> Verdict:
    """As `judge`, of what was found in a picture."""
    ranked = sorted(found, key=lambda detection: -detection.score)
    reason = _missing(prompt, ranked)
    extra = len(ranked) - sum(wanted.count for wanted in prompt.wanted)
    correct = not reason
    if correct and extra:
        reason = f"{extra} more than asked for"
    return Verdict(correct, not reason, reason, tuple(ranked))


def score_drawings(prompts: Sequence[Prompt], images: Iterable[UInt8[np.ndarray, "H W 3"]]) -> DrawingScores:
    """Scores of pictures, one for each prompt.

    Raises:
      JanusError: they differ in number, or there are none.
    """
    images = list(images)
    _check_numbers("pictures", len(images), "prompts", len(prompts))
    return score_verdicts(prompts, [judge(prompt, image) for prompt, image in zip(prompts, images, strict=True)])


def score_verdicts(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> DrawingScores:
    """Scores of pictures that are judged already, one for each prompt."""
    categories = [prompt.category.value for prompt in prompts]
    return DrawingScores(
        _scores(categories, [verdict.correct for verdict in verdicts]),
        _scores(categories, [verdict.strict for verdict in verdicts]),
    )


def score_answers(questions: Sequence[Question], answers: Sequence[str]) -> Scores:
    """Scores of answers by topic.

    Raises:
      JanusError: they differ in number, or there are none.
    """
    _check_numbers("answers", len(answers), "questions", len(questions))
    right = [is_right(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return _scores([question.topic.value for question in questions], right)


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer is the question's, but for case, white space and a last full stop."""
    return answer.strip().removesuffix(".").strip().lower() == question.answer


def chance_of_drawings(
    prompts: Sequence[Prompt], vocabulary: Vocabulary = DEFAULT, seed: int = 0, size: int = 48
) -> DrawingScores:
    """The scores of who knows the category and draws well, but reads no further.

    Args:
      prompts: what was asked for.
      vocabulary: what is drawn: any of its combinations.
      seed: of what is drawn.
      size: of the pictures, in pixels.
    """
    rng = np.random.default_rng(seed)
    drawn = (draw(sample_scene(rng, vocabulary, None, prompt.category), size) for prompt in prompts)
    return score_drawings(prompts, drawn)


def chance_of_answers(questions: Sequence[Question]) -> Scores:
    """The scores to be expected of who guesses among the words that fit the question, without looking."""
    _check_numbers("answers", len(questions), "questions", len(questions))
    return _scores(
        [question.topic.value for question in questions], [1 / len(question.choices) for question in questions]
    )


def _missing(prompt: Prompt, found: Sequence[Detection]) -> str:
    first: list[Detection] = []
    for index, wanted in enumerate(prompt.wanted):
        alike = [detection for detection in found if detection.shape == wanted.shape]
        if len(alike) < wanted.count or (prompt.exact and len(alike) > wanted.count):
            return f"{len(alike)} x {wanted.shape} instead of {wanted.count}"
        taken = alike[: wanted.count]
        if reason := _unlike(wanted, taken, first):
            return reason
        if index == 0:
            first = taken
    return ""


def _unlike(wanted: Wanted, taken: Sequence[Detection], first: Sequence[Detection]) -> str:
    wrong = [detection.colour for detection in taken if wanted.colour not in (None, detection.colour)]
    if wrong:
        return f"{wanted.shape} {wrong[0]} instead of {wanted.colour}"
    if wanted.relation and not all(wanted.relation in sides(one, other) for one in taken for other in first):
        return f"{wanted.shape} not {wanted.relation.phrase} {first[0].shape}"
    return ""


def sides(one: Detection, other: Detection) -> set[Relation]:
    """Where `one` is, seen from `other`, by GenEval's rule: none, one or two of the relations."""
    offsets = []
    for low in range(2):
        offset = one.middle[low] - other.middle[low]
        widths = (one.box[low + 2] - one.box[low]) + (other.box[low + 2] - other.box[low])
        offsets.append(math.copysign(max(abs(offset) - _OVERLAP * widths, 0), offset))
    distance = math.hypot(*offsets)
    if distance < 1e-6:
        return set()
    dx, dy = (offset / distance for offset in offsets)
    aside = {Relation.LEFT: -dx, Relation.RIGHT: dx, Relation.ABOVE: -dy, Relation.BELOW: dy}
    return {side for side, sine in aside.items() if sine > _ASIDE}


def _scores(categories: Sequence[str], right: Sequence[float]) -> Scores:
    by_category: dict[str, list[float]] = defaultdict(list)
    for category, value in zip(categories, right, strict=True):
        by_category[category].append(value)
    return Scores({category: fmean(values) for category, values in by_category.items()})


def _check_numbers(what: str, count: int, of_what: str, expected: int) -> None:
    if count != expected or not count:
        raise JanusError(f"There are {count} {what} for {expected} {of_what}; give one for each, and one at least.")
