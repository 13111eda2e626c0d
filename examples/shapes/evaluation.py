"""The embedded world as a benchmark, whole: what a model answers and draws, question by question, and the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes import generation_benchmark as generation
from examples.shapes import understanding_benchmark as understanding
from examples.shapes.dataset import (
    DEFAULT,
    DrawingScores,
    Prompt,
    Question,
    Scores,
    Split,
    Verdict,
    Vocabulary,
    chance_of_answers,
    chance_of_drawings,
    is_right,
    prompts,
    questions,
    score_answers,
    score_verdicts,
)
from janus_jax.evaluation.generation.generate_images import ImageModel, generate_images
from janus_jax.evaluation.results import items_digest
from janus_jax.evaluation.runner import ChatModel, OnProgress, answer_questions, collect_answers


@dataclass(frozen=True)
class ShapesProtocol:
    """What is asked and how.

    Attributes:
      split: TEST asks and draws held-out combinations alone; TRAIN is for choosing settings.
      per_topic: questions of each topic.
      per_category: prompts of each of GenEval's categories, one picture each.
      guidance_scale, temperature: of drawing. Answers are the likeliest ones.
      vocabulary: of questions and prompts.
      about: shapes and colours of which each names one; empty for any.
      batch_size: questions, or pictures, at a time.
      seed: of what is asked and drawn.
    """

    split: Split = Split.TEST
    per_topic: int = 100
    per_category: int = 50
    guidance_scale: float = generation.GUIDANCE_SCALE
    temperature: float = generation.TEMPERATURE
    vocabulary: Vocabulary = DEFAULT
    about: frozenset[str] = frozenset()
    batch_size: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Understanding:
    """Questions, the model's answers and their scores, by topic and beside chance."""

    questions: Sequence[Question]
    answers: Sequence[str]
    scores: Scores
    chance: Scores

    @property
    def right(self) -> list[bool]:
        """Of each answer."""
        return [is_right(question, answer) for question, answer in zip(self.questions, self.answers, strict=True)]


@dataclass(frozen=True)
class Generation:
    """Prompts, the model's pictures, what the detector says of them, and scores by category, beside chance."""

    prompts: Sequence[Prompt]
    images: Sequence[UInt8[np.ndarray, "S S 3"]]
    verdicts: Sequence[Verdict]
    scores: DrawingScores
    chance: DrawingScores


def _silent(done: int, total: int) -> None:
    pass


def evaluate_understanding(
    model: ChatModel,
    folder: Path,
    protocol: ShapesProtocol = ShapesProtocol(),
    named: str = "",
    report: OnProgress = _silent,
) -> Understanding:
    """Asks a model.

    Args:
      folder: where its answers go as they come; the same call goes on from there.
      named: the model (`results.model_fingerprint`); a folder that another has begun is refused.
      report: told how many questions are answered, and how many there are.

    Raises:
      JanusError: as `runner.collect_answers`.
    """
    asked = questions(protocol.split, protocol.per_topic, _seed(protocol), protocol.vocabulary, protocol.about)
    items = understanding.asking(asked)
    began = {"model": named, "questions": items_digest(items)}
    found = collect_answers(
        items, lambda left: answer_questions(model, left, protocol.batch_size), folder, began, on_progress=report
    )
    answers = [(found or {})[item.id] for item in items]
    return Understanding(asked, answers, score_answers(asked, answers), chance_of_answers(asked))


def evaluate_generation(
    model: ImageModel,
    folder: Path,
    protocol: ShapesProtocol = ShapesProtocol(),
    named: str = "",
    report: OnProgress = _silent,
) -> Generation:
    """Has a model draw; arguments as of `evaluate_understanding`.

    Raises:
      JanusError: as `runner.collect_answers`.
    """
    wanted = prompts(protocol.split, protocol.per_category, _seed(protocol), protocol.vocabulary, protocol.about)
    items = generation.drawing(wanted)
    options = {"guidance_scale": str(protocol.guidance_scale), "temperature": str(protocol.temperature)}
    began = {"model": named, "questions": items_digest(items), "options": options, "seed": protocol.seed}
    found = collect_answers(
        items,
        lambda left: generate_images(
            model, left, folder, options=options, seed=protocol.seed, batch_size=protocol.batch_size
        ),
        folder,
        began,
        on_progress=report,
    )
    files = {id: str(folder / file) for id, file in (found or {}).items()}
    verdicts = generation.verdicts(items, files)
    images = [np.asarray(Image.open(files[item.id])) for item in items]
    chance = chance_of_drawings(wanted, protocol.vocabulary)
    return Generation(wanted, images, verdicts, score_verdicts(wanted, verdicts), chance)


def figures(understanding: Understanding, generation: Generation) -> Mapping[str, float]:
    """All scores by name: `understanding`, `understanding.TOPIC`, `generation.overall`, `.CATEGORY`, `.strict`.

    What guessing gives has the same names behind `chance.`.
    """
    answers, drawings = understanding.scores, generation.scores
    guesses, guessed = understanding.chance, generation.chance
    return _figures(answers, drawings) | {f"chance.{name}": value for name, value in _figures(guesses, guessed).items()}


def _figures(answers: Scores, drawings: DrawingScores) -> dict[str, float]:
    return {
        "understanding": answers.overall,
        **{f"understanding.{topic}": score for topic, score in answers.by_category.items()},
        "generation.overall": drawings.geneval.overall,
        **{f"generation.{category}": score for category, score in drawings.geneval.by_category.items()},
        "generation.strict": drawings.strict.overall,
    }


def _seed(protocol: ShapesProtocol) -> int:
    return understanding.SEED + protocol.seed
