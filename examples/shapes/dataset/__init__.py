"""The shapes dataset: rendered scenes of colored shapes, with captions, questions and scores.

Nothing is downloaded. `examples.shapes.source` prepares the dataset for training.
"""

from examples.shapes.dataset.detector import Detection, detect
from examples.shapes.dataset.prompts import Prompt, sample_prompts
from examples.shapes.dataset.questions import Focus, Question, Topic, sample_questions
from examples.shapes.dataset.records import ShapesDataset
from examples.shapes.dataset.render import render, sample_images
from examples.shapes.dataset.scene import Background, Category, Relation, Scene, SceneObject, sample_scene
from examples.shapes.dataset.scoring import (
    ImageScores,
    Scores,
    Verdict,
    chance_of_answers,
    chance_of_images,
    check_image,
    is_correct,
    score_answers,
    score_images,
    score_verdicts,
)
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, FULL_VOCABULARY, Split, Vocabulary

__all__ = [
    "DEFAULT_VOCABULARY",
    "FULL_VOCABULARY",
    "Background",
    "Category",
    "Detection",
    "Focus",
    "ImageScores",
    "Prompt",
    "Question",
    "Relation",
    "Scene",
    "SceneObject",
    "Scores",
    "ShapesDataset",
    "Split",
    "Topic",
    "Verdict",
    "Vocabulary",
    "chance_of_answers",
    "chance_of_images",
    "check_image",
    "detect",
    "is_correct",
    "render",
    "sample_images",
    "sample_prompts",
    "sample_questions",
    "sample_scene",
    "score_answers",
    "score_images",
    "score_verdicts",
]
