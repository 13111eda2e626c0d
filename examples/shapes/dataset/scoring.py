"""Scores answers to questions, and images of prompts by GenEval's rule and by a strict rule."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from jaxtyping import UInt8

from examples.shapes.dataset.detector import Detection, detect
from examples.shapes.dataset.prompts import Prompt, Requirement
from examples.shapes.dataset.questions import Question
from examples.shapes.dataset.render import render
from examples.shapes.dataset.scene import Relation, sample_scene
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, Vocabulary
from janus_jax.errors import JanusError

_OVERLAP = 0.1  # GenEval: minimum offset along an axis, as a fraction of the sum of both extents
_MIN_SINE = 0.5  # GenEval: minimum share of a direction in the normalized offset


@dataclass(frozen=True)
class Verdict:
    """Result for one image.

    Attributes:
      correct: Whether the image meets all requirements, by GenEval's rule (arXiv 2310.11513, §3.2). Additional objects
        are ignored, except in prompts about counts.
      strict: Whether the image is correct and has no additional objects.
      reason: Describes what is missing or additional; empty if `strict`.
      found: Detected objects.
    """

    correct: bool
    strict: bool
    reason: str
    found: tuple[Detection, ...]


@dataclass(frozen=True)
class Scores:
    """Fraction of correct answers or images, by category."""

    by_category: Mapping[str, float]

    @property
    def overall(self) -> float:
        """Mean of the categories, as in GenEval."""
        return fmean(self.by_category.values())


@dataclass(frozen=True)
class ImageScores:
    """Scores of images by GenEval's rule and by the strict rule."""

    geneval: Scores
    strict: Scores


def check_image(prompt: Prompt, image: UInt8[np.ndarray, "H W 3"]) -> Verdict:
    """Returns the verdict on an RGB image of a prompt."""
    return check_detections(prompt, detect(image))


def check_detections(prompt: Prompt, found: Sequence[Detection]) -> Verdict:
    """Returns the verdict on the objects detected in an image of a prompt."""
    ranked = sorted(found, key=lambda detection: -detection.score)
    reason = _unmet(prompt, ranked)
    surplus = len(ranked) - sum(required.count for required in prompt.requirements)
    correct = not reason
    if correct and surplus:
        reason = f"{surplus} more than asked for"
    return Verdict(correct, not reason, reason, tuple(ranked))


def score_images(prompts: Sequence[Prompt], images: Iterable[UInt8[np.ndarray, "H W 3"]]) -> ImageScores:
    """Returns the scores of images, one per prompt.

    Raises:
      JanusError: The numbers of images and prompts differ, or are 0.
    """
    images = list(images)
    check_count("images", len(images), "prompts", len(prompts))
    return score_verdicts(prompts, [check_image(prompt, image) for prompt, image in zip(prompts, images, strict=True)])


def score_verdicts(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> ImageScores:
    """Returns the scores for verdicts on images, one per prompt."""
    categories = [prompt.category.value for prompt in prompts]
    return ImageScores(
        mean_scores(categories, [verdict.correct for verdict in verdicts]),
        mean_scores(categories, [verdict.strict for verdict in verdicts]),
    )


def score_answers(questions: Sequence[Question], answers: Sequence[str]) -> Scores:
    """Returns the scores of answers by topic.

    Raises:
      JanusError: The numbers of answers and questions differ, or are 0.
    """
    check_count("answers", len(answers), "questions", len(questions))
    correct = [is_correct(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return mean_scores([question.topic.value for question in questions], correct)


def is_correct(question: Question, answer: str) -> bool:
    """Returns whether an answer is the expected one, ignoring case, surrounding white space and a final period."""
    return answer.strip().removesuffix(".").strip().lower() == question.answer


def chance_of_images(
    prompts: Sequence[Prompt], vocabulary: Vocabulary = DEFAULT_VOCABULARY, seed: int = 0, size: int = 48
) -> ImageScores:
    """Returns the scores of random images: scenes of the prompt's category with random shapes and colors.

    Args:
      vocabulary: Shapes and colors of the scenes, held-out combinations included.
      size: Side of the images in pixels.
    """
    rng = np.random.default_rng(seed)
    images = (render(sample_scene(rng, vocabulary, None, prompt.category), size) for prompt in prompts)
    return score_images(prompts, images)


def chance_of_answers(questions: Sequence[Question]) -> Scores:
    """Returns the expected scores of random guesses among the choices of each question."""
    check_count("answers", len(questions), "questions", len(questions))
    return mean_scores(
        [question.topic.value for question in questions], [1 / len(question.choices) for question in questions]
    )


def mean_scores(categories: Sequence[str], correct: Sequence[float]) -> Scores:
    """Returns the mean of the values of each category."""
    by_category: dict[str, list[float]] = defaultdict(list)
    for category, value in zip(categories, correct, strict=True):
        by_category[category].append(value)
    return Scores({category: fmean(values) for category, values in by_category.items()})


def check_count(what: str, count: int, of_what: str, expected: int) -> None:
    """Checks that there is one of a thing for each other thing, and at least one.

    Raises:
      JanusError: The numbers differ, or are 0.
    """
    if count != expected or not count:
        raise JanusError(f"There are {count} {what} for {expected} {of_what}; give one for each, and at least one.")


def _unmet(prompt: Prompt, found: Sequence[Detection]) -> str:
    """Returns a description of the first requirement that is not met, or an empty string if all are met."""
    reference: list[Detection] = []
    for index, required in enumerate(prompt.requirements):
        matching = [detection for detection in found if detection.shape == required.shape]
        if len(matching) < required.count or (prompt.is_exact and len(matching) > required.count):
            return f"{len(matching)} x {required.shape} instead of {required.count}"
        best = matching[: required.count]
        if reason := _mismatch(required, best, reference):
            return reason
        if index == 0:
            reference = best
    return ""


def _mismatch(required: Requirement, found: Sequence[Detection], reference: Sequence[Detection]) -> str:
    wrong = [detection.color for detection in found if required.color not in (None, detection.color)]
    if wrong:
        return f"{required.shape} {wrong[0]} instead of {required.color}"
    if required.relation and not all(required.relation in relations(a, b) for a in found for b in reference):
        return f"{required.shape} not {required.relation.phrase} {reference[0].shape}"
    return ""


def relations(one: Detection, other: Detection) -> set[Relation]:
    """Returns the positions of `one` relative to `other` by GenEval's rule: none, one or two relations."""
    offsets = []
    for low in range(2):
        offset = one.center[low] - other.center[low]
        extents = (one.box[low + 2] - one.box[low]) + (other.box[low + 2] - other.box[low])
        offsets.append(math.copysign(max(abs(offset) - _OVERLAP * extents, 0), offset))
    distance = math.hypot(*offsets)
    if distance < 1e-6:
        return set()
    dx, dy = (offset / distance for offset in offsets)
    sines = {Relation.LEFT: -dx, Relation.RIGHT: dx, Relation.ABOVE: -dy, Relation.BELOW: dy}
    return {relation for relation, sine in sines.items() if sine > _MIN_SINE}
