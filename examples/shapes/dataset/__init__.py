"""The shapes dataset: rendered scenes of colored shapes, with captions, questions and scores.

Nothing is downloaded. `examples.shapes.source` prepares the dataset for training.
"""

from examples.shapes.dataset.detector import Detection, detect
from examples.shapes.dataset.drawing_scoring import (
    DrawingTask,
    Plot,
    Transcript,
    chance_of_drawings,
    converse,
    sample_drawing_tasks,
    score_transcripts,
)
from examples.shapes.dataset.edit_scoring import (
    EditScores,
    EditVerdict,
    chance_of_edits,
    check_edit,
    sample_edits,
    score_edit_verdicts,
    score_edits,
)
from examples.shapes.dataset.edits import EditKind, EditRequest, Limits, SceneEdit, sample_edit
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
    "DrawingTask",
    "EditKind",
    "EditRequest",
    "EditScores",
    "EditVerdict",
    "Focus",
    "ImageScores",
    "Limits",
    "Plot",
    "Prompt",
    "Question",
    "Relation",
    "Scene",
    "SceneEdit",
    "SceneObject",
    "Scores",
    "ShapesDataset",
    "Split",
    "Topic",
    "Transcript",
    "Verdict",
    "Vocabulary",
    "chance_of_answers",
    "chance_of_drawings",
    "chance_of_edits",
    "chance_of_images",
    "check_edit",
    "check_image",
    "converse",
    "detect",
    "is_correct",
    "render",
    "sample_drawing_tasks",
    "sample_edit",
    "sample_edits",
    "sample_images",
    "sample_prompts",
    "sample_questions",
    "sample_scene",
    "score_answers",
    "score_edit_verdicts",
    "score_edits",
    "score_images",
    "score_transcripts",
    "score_verdicts",
]
