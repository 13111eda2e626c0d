"""The embedded world as a benchmark: questions about pictures never seen, and prompts drawn and read by a detector."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from janus_jax.data.shapes import (
    DEFAULT,
    DrawingScores,
    Prompt,
    Question,
    Scores,
    Split,
    Vocabulary,
    chance_of_answers,
    chance_of_drawings,
    draw,
    prompts,
    questions,
    score_answers,
    score_drawings,
)
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

_SEED = 1 << 16
"""Of what is asked and drawn here, beside those of data sets."""

Report = Callable[[int], object]


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
    guidance_scale: float = 2.0
    temperature: float = 0.7
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


@dataclass(frozen=True)
class Generation:
    """Prompts, the model's pictures and their scores, by category and beside chance."""

    prompts: Sequence[Prompt]
    images: Sequence[UInt8[np.ndarray, "S S 3"]]
    scores: DrawingScores
    chance: DrawingScores


def evaluate_understanding(
    model: Pretrained, protocol: ShapesProtocol = ShapesProtocol(), report: Report = lambda count: None
) -> Understanding:
    """Asks a model.

    Args:
      report: told how many more questions are answered.
    """
    asked = questions(protocol.split, protocol.per_topic, _SEED + protocol.seed, protocol.vocabulary, protocol.about)
    size = model.config.und_encoder.image_size
    answers: list[str] = []
    for first in range(0, len(asked), protocol.batch_size):
        group = asked[first : first + protocol.batch_size]
        answers += model.chat_batch([_message(question, size) for question in group], max_new_tokens=8)
        report(len(group))
    return Understanding(asked, answers, score_answers(asked, answers), chance_of_answers(asked))


def evaluate_generation(
    model: Pretrained, protocol: ShapesProtocol = ShapesProtocol(), report: Report = lambda count: None
) -> Generation:
    """Has a model draw.

    Args:
      report: told how many more pictures are drawn.
    """
    asked = prompts(protocol.split, protocol.per_category, _SEED + protocol.seed, protocol.vocabulary, protocol.about)
    images = []
    for drawn in model.generate_stream(
        [prompt.text for prompt in asked],
        1,
        protocol.guidance_scale,
        protocol.temperature,
        protocol.seed,
        batch_size=protocol.batch_size,
    ):
        images.append(np.asarray(drawn.image))
        report(1)
    return Generation(asked, images, score_drawings(asked, images), chance_of_drawings(asked, protocol.vocabulary))


def figures(understanding: Understanding, generation: Generation) -> Mapping[str, float]:
    """All scores by name: `understanding`, `understanding.TOPIC`, `generation.overall`, `.CATEGORY`, `.strict`."""
    by_topic, drawn = understanding.scores.by_category, generation.scores
    return {
        "understanding": understanding.scores.overall,
        **{f"understanding.{topic}": score for topic, score in by_topic.items()},
        "generation.overall": drawn.geneval.overall,
        **{f"generation.{category}": score for category, score in drawn.geneval.by_category.items()},
        "generation.strict": drawn.strict.overall,
        "chance.understanding": understanding.chance.overall,
        "chance.generation": generation.chance.geneval.overall,
    }


def _message(question: Question, size: int) -> list[Message]:
    picture = Image.fromarray(draw(question.scene, size))
    return [{"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{question.text}", "images": [picture]}]
