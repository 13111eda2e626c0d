"""The embedded world: scenes of coloured shapes, drawn, told, asked about and scored. Nothing is downloaded.

`builder` makes TFDS data sets of it (and takes TFDS's seconds to import); all else is numpy.
"""

from examples.shapes.dataset.captions import caption, description, inventory
from examples.shapes.dataset.detector import UNKNOWN, Detection, detect
from examples.shapes.dataset.prompts import Prompt, Wanted, prompts
from examples.shapes.dataset.questions import Asked, Negatives, Question, Topic, ask, conversation, questions
from examples.shapes.dataset.records import World, WorldRecords
from examples.shapes.dataset.render import draw, images
from examples.shapes.dataset.scene import Background, Category, Relation, Scene, Thing, relation, sample_scene
from examples.shapes.dataset.scoring import (
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
from examples.shapes.dataset.vocabulary import DEFAULT, EVERYTHING, Split, Vocabulary

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
