"""Evaluates a model on the shapes dataset: answers, images, and their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes import generation_benchmark, understanding_benchmark
from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    ImageScores,
    Prompt,
    Question,
    Scores,
    Split,
    Verdict,
    Vocabulary,
    chance_of_answers,
    chance_of_images,
    is_correct,
    sample_prompts,
    sample_questions,
    score_answers,
    score_verdicts,
)
from janus_jax.evaluation.generation.generate_images import ImageModel, generate_images
from janus_jax.evaluation.results import items_digest
from janus_jax.evaluation.runner import ChatModel, OnProgress, answer_questions, collect_answers


@dataclass(frozen=True)
class ShapesProtocol:
    """Settings of an evaluation.

    Attributes:
      split: TEST uses held-out combinations only; TRAIN is for choosing settings.
      per_topic: Questions per topic.
      per_category: Prompts per category of GenEval, with one image each.
      guidance_scale: Guidance scale of the images.
      temperature: Temperature of the images. Answers are greedy.
      vocabulary: Vocabulary of questions and prompts.
      about: Each question and prompt names at least one of these shapes and colours, if there are any.
      batch_size: Questions or images per batch.
      seed: Seed of questions, prompts and images.
    """

    split: Split = Split.TEST
    per_topic: int = 100
    per_category: int = 50
    guidance_scale: float = generation_benchmark.GUIDANCE_SCALE
    temperature: float = generation_benchmark.TEMPERATURE
    vocabulary: Vocabulary = DEFAULT_VOCABULARY
    about: frozenset[str] = frozenset()
    batch_size: int = 50
    seed: int = 0

    @property
    def sample_seed(self) -> int:
        """Seed of questions and prompts."""
        return understanding_benchmark.SEED + self.seed


@dataclass(frozen=True)
class UnderstandingResult:
    """Questions, answers of the model, their scores and the chance level."""

    questions: Sequence[Question]
    answers: Sequence[str]
    scores: Scores
    chance: Scores

    @property
    def correct(self) -> list[bool]:
        """Whether each answer is correct."""
        return [is_correct(question, answer) for question, answer in zip(self.questions, self.answers, strict=True)]


@dataclass(frozen=True)
class GenerationResult:
    """Prompts, images of the model, their verdicts and scores, and the chance level."""

    prompts: Sequence[Prompt]
    images: Sequence[UInt8[np.ndarray, "S S 3"]]
    verdicts: Sequence[Verdict]
    scores: ImageScores
    chance: ImageScores


def _no_progress(done: int, total: int) -> None:
    pass


def evaluate_understanding(
    model: ChatModel,
    folder: Path,
    protocol: ShapesProtocol = ShapesProtocol(),
    *,
    fingerprint: str = "",
    on_progress: OnProgress = _no_progress,
) -> UnderstandingResult:
    """Asks a model questions.

    Args:
      folder: Folder of the answers. The same call continues an interrupted evaluation.
      fingerprint: Identifies the model (`results.model_fingerprint`). A folder started with another model is refused.
      on_progress: Called with the number of answers and of questions.

    Raises:
      JanusError: See `runner.collect_answers`.
    """
    questions = sample_questions(
        protocol.split, protocol.per_topic, protocol.sample_seed, protocol.vocabulary, protocol.about
    )
    items = understanding_benchmark.benchmark_questions(questions)
    settings = {"model": fingerprint, "questions": items_digest(items)}
    found = collect_answers(
        items,
        lambda left: answer_questions(model, left, protocol.batch_size),
        folder,
        settings,
        on_progress=on_progress,
    )
    answers = [(found or {})[item.id] for item in items]
    return UnderstandingResult(questions, answers, score_answers(questions, answers), chance_of_answers(questions))


def evaluate_generation(
    model: ImageModel,
    folder: Path,
    protocol: ShapesProtocol = ShapesProtocol(),
    *,
    fingerprint: str = "",
    on_progress: OnProgress = _no_progress,
) -> GenerationResult:
    """Generates images of prompts; arguments as of `evaluate_understanding`.

    Raises:
      JanusError: See `runner.collect_answers`.
    """
    prompts = sample_prompts(
        protocol.split, protocol.per_category, protocol.sample_seed, protocol.vocabulary, protocol.about
    )
    requests = generation_benchmark.image_requests(prompts)
    options = {"guidance_scale": str(protocol.guidance_scale), "temperature": str(protocol.temperature)}
    settings = {"model": fingerprint, "questions": items_digest(requests), "options": options, "seed": protocol.seed}
    found = collect_answers(
        requests,
        lambda left: generate_images(
            model, left, folder, options=options, seed=protocol.seed, batch_size=protocol.batch_size
        ),
        folder,
        settings,
        on_progress=on_progress,
    )
    files = {id: str(folder / file) for id, file in (found or {}).items()}
    verdicts = generation_benchmark.verdicts(requests, files)
    images = [np.asarray(Image.open(files[request.id])) for request in requests]
    chance = chance_of_images(prompts, protocol.vocabulary)
    return GenerationResult(prompts, images, verdicts, score_verdicts(prompts, verdicts), chance)


def score_table(understanding: UnderstandingResult, generation: GenerationResult) -> Mapping[str, float]:
    """Returns all scores by name: `understanding`, `understanding.TOPIC`, `generation.overall`, `.CATEGORY`, `.strict`.

    The chance levels have the same names after `chance.`.
    """
    chance = _named_scores(understanding.chance, generation.chance)
    return _named_scores(understanding.scores, generation.scores) | {
        f"chance.{name}": value for name, value in chance.items()
    }


def _named_scores(answers: Scores, images: ImageScores) -> dict[str, float]:
    return {
        "understanding": answers.overall,
        **{f"understanding.{topic}": score for topic, score in answers.by_category.items()},
        "generation.overall": images.geneval.overall,
        **{f"generation.{category}": score for category, score in images.geneval.by_category.items()},
        "generation.strict": images.strict.overall,
    }
