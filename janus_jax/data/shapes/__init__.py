"""The embedded world: scenes of coloured shapes, drawn, told, asked about and scored. Nothing is downloaded.

`builder` makes TFDS data sets of it (and takes TFDS's seconds to import); all else is numpy.
"""

from janus_jax.data.shapes.detector import UNKNOWN, Detection, detect
from janus_jax.data.shapes.drawing import draw, images
from janus_jax.data.shapes.language import caption, description, inventory
from janus_jax.data.shapes.prompts import Prompt, Wanted, prompts
from janus_jax.data.shapes.questions import Asked, Negatives, Question, Topic, ask, conversation, questions
from janus_jax.data.shapes.scene import Background, Category, Relation, Scene, Thing, relation, sample_scene
from janus_jax.data.shapes.scoring import (
    DrawingScores,
    Scores,
    Verdict,
    chance_of_answers,
    chance_of_drawings,
    is_right,
    judge,
    score_answers,
    score_drawings,
    score_verdicts,
)
from janus_jax.data.shapes.vocabulary import DEFAULT, EVERYTHING, Split, Vocabulary
from janus_jax.data.shapes.world import World, WorldRecords

__all__ = [
    "DEFAULT",
    "EVERYTHING",
    "UNKNOWN",
    "Asked",
    "Background",
    "Category",
    "Detection",
    "DrawingScores",
    "Negatives",
    "Prompt",
    "Question",
    "Relation",
    "Scene",
    "Scores",
    "Split",
    "Thing",
    "Topic",
    "Verdict",
    "Vocabulary",
    "Wanted",
    "World",
    "WorldRecords",
    "ask",
    "caption",
    "chance_of_answers",
    "chance_of_drawings",
    "conversation",
    "description",
    "detect",
    "draw",
    "images",
    "inventory",
    "is_right",
    "judge",
    "prompts",
    "questions",
    "relation",
    "sample_scene",
    "score_answers",
    "score_drawings",
    "score_verdicts",
]
