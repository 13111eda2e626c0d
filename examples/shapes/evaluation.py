"""Evaluates the answers and images of a model on the shapes dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from examples.shapes import drawings_benchmark, edits_benchmark, generation_benchmark, understanding_benchmark
from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    EditScores,
    EditVerdict,
    ImageScores,
    Limits,
    Prompt,
    Question,
    SceneEdit,
    Scores,
    Split,
    Transcript,
    Verdict,
    Vocabulary,
    chance_of_answers,
    chance_of_drawings,
    chance_of_edits,
    chance_of_images,
    is_correct,
    sample_drawing_tasks,
    sample_edits,
    sample_prompts,
    sample_questions,
    score_answers,
    score_edit_verdicts,
    score_transcripts,
    score_verdicts,
)
from janus_jax.evaluation.benchmark import AnswerSettings, Benchmark, Item, Options
from janus_jax.evaluation.generation.edit_requests import EditModel, generate_edits
from janus_jax.evaluation.generation.generate_images import ImageModel, generate_images
from janus_jax.evaluation.results import items_digest
from janus_jax.evaluation.runner import ChatModel, OnProgress, answer_questions, collect_answers


@dataclass(frozen=True)
class ShapesProtocol:
    """Settings of an evaluation.

    Attributes:
      split: TEST uses held-out combinations only. TRAIN is for choosing settings of training and sampling.
      per_topic: Questions per topic.
      per_category: Prompts per category of GenEval. One image is generated for each prompt.
      per_kind: Edits per kind.
      per_plot: Conversations about drawings per plot.
      guidance_scale: Guidance scale of image generation.
      temperature: Temperature of image generation. Answers are sampled greedily.
      vocabulary: Vocabulary of questions and prompts.
      about: If not empty, each question and prompt names at least one of these shapes and colors.
      batch_size: Questions or images per batch.
      seed: Seed of questions, prompts and images.
    """

    split: Split = Split.TEST
    per_topic: int = 100
    per_category: int = 50
    per_kind: int = 50
    per_plot: int = 50
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
    """Questions, the answers of the model, their scores, and the scores of random guesses."""

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
    """Prompts, the images of the model, their verdicts and scores, and the scores of random images."""

    prompts: Sequence[Prompt]
    images: Sequence[UInt8[np.ndarray, "S S 3"]]
    verdicts: Sequence[Verdict]
    scores: ImageScores
    chance: ImageScores


@dataclass(frozen=True)
class EditingResult:
    """Edits, the images of the model, their verdicts and scores, and the scores of random edits."""

    edits: Sequence[SceneEdit]
    images: Sequence[UInt8[np.ndarray, "S S 3"]]
    verdicts: Sequence[EditVerdict]
    scores: EditScores
    chance: EditScores


@dataclass(frozen=True)
class DrawingResult:
    """Conversations about drawings, their scores, and the scores of random replies."""

    transcripts: Sequence[Transcript]
    scores: Scores
    chance: Scores


def evaluate_understanding(
    model: ChatModel,
    folder: Path,
    protocol: ShapesProtocol = ShapesProtocol(),
    *,
    fingerprint: str = "",
    on_progress: OnProgress = lambda done, total: None,
) -> UnderstandingResult:
    """Returns the answers of a model to sampled questions, with scores.

    Args:
      folder: Folder in which answers are stored. The same call continues an interrupted evaluation.
      fingerprint: Identifies the model (`results.model_fingerprint`).
      on_progress: Called with the number of answers and the number of questions.

    Raises:
      JanusError: The folder contains an evaluation of another model or with other settings.
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
    on_progress: OnProgress = lambda done, total: None,
) -> GenerationResult:
    """Returns the images that a model generates for sampled prompts, with scores.

    The arguments are those of `evaluate_understanding`.

    Raises:
      JanusError: The folder contains an evaluation of another model or with other settings.
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


def evaluate_editing(
    model: EditModel,
    folder: Path,
    protocol: ShapesProtocol = ShapesProtocol(),
    *,
    fingerprint: str = "",
    on_progress: OnProgress = lambda done, total: None,
    **sampling: float,
) -> EditingResult:
    """Returns the images that a model makes of sampled edits, with scores.

    The arguments are those of `evaluate_understanding`, and options of the benchmark.

    Raises:
      JanusError: The folder contains an evaluation of another model or with other settings.
    """
    limits = Limits(protocol.vocabulary, protocol.split)
    edits = sample_edits(protocol.per_kind, limits, protocol.sample_seed)
    requests = edits_benchmark.edit_requests(edits)
    options = _options(edits_benchmark.BENCHMARK, sampling)
    found = collect_answers(
        requests,
        lambda left: generate_edits(
            model, left, folder, options=options, seed=protocol.seed, batch_size=protocol.batch_size
        ),
        folder,
        _settings(fingerprint, requests, options, protocol),
        on_progress=on_progress,
    )
    files = {id: str(folder / file) for id, file in (found or {}).items()}
    verdicts = edits_benchmark.verdicts(requests, files)
    images = [np.asarray(Image.open(files[request.id])) for request in requests]
    scores = score_edit_verdicts([edit.request for edit in edits], verdicts)
    return EditingResult(edits, images, verdicts, scores, chance_of_edits(edits, protocol.vocabulary))


def evaluate_drawing(
    model: drawings_benchmark.DrawingModel,
    folder: Path,
    protocol: ShapesProtocol = ShapesProtocol(),
    *,
    fingerprint: str = "",
    on_progress: OnProgress = lambda done, total: None,
    **sampling: float,
) -> DrawingResult:
    """Returns conversations with generated images, and their scores. The arguments are those of `evaluate_editing`.

    Raises:
      JanusError: The folder contains an evaluation of another model or with other settings.
    """
    tasks = sample_drawing_tasks(protocol.split, protocol.per_plot, protocol.sample_seed, protocol.vocabulary)
    items = drawings_benchmark.drawing_items(tasks)
    options = _options(drawings_benchmark.BENCHMARK, sampling)
    run = AnswerSettings(folder, options, protocol.seed, protocol.batch_size)
    found = collect_answers(
        items,
        lambda left: drawings_benchmark.answer(model, left, run),
        folder,
        _settings(fingerprint, items, options, protocol),
        on_progress=on_progress,
    )
    answers = found or {}
    transcripts = [drawings_benchmark.transcript(item, answers[item.id]) for item in items]
    return DrawingResult(transcripts, score_transcripts(transcripts), chance_of_drawings(tasks))


def score_table(understanding: UnderstandingResult, generation: GenerationResult) -> Mapping[str, float]:
    """Returns all scores by name: `understanding`, `understanding.TOPIC`, `generation.overall`, and so on.

    The score of random guesses has the same name with the prefix `chance.`.
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


def _options(benchmark: Benchmark[Any], given: Mapping[str, float]) -> Options:
    return benchmark.resolve_options({name: str(value) for name, value in given.items()})


def _settings(fingerprint: str, items: Sequence[Item], options: Options, protocol: ShapesProtocol) -> dict[str, Any]:
    return {"model": fingerprint, "questions": items_digest(items), "options": options, "seed": protocol.seed}
