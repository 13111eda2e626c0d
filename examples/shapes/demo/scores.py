"""Scores of a model in the demo, and the report on them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from examples.shapes.dataset import Transcript
    from examples.shapes.evaluation import DrawingResult, EditingResult, GenerationResult, UnderstandingResult


@dataclass(frozen=True)
class DemoScores:
    """Answers, images and scores of a model, on the words of the first training and on the new words."""

    understanding: "UnderstandingResult"
    generation: "GenerationResult"
    new_understanding: "UnderstandingResult"
    new_generation: "GenerationResult"

    def table(self) -> dict[str, float]:
        """Returns the scores by name, as in report.json."""
        from examples.shapes.evaluation import score_table

        return {
            **score_table(self.understanding, self.generation),
            "new.understanding": self.new_understanding.scores.overall,
            "new.generation": self.new_generation.scores.geneval.overall,
            "chance.new.understanding": self.new_understanding.chance.overall,
            "chance.new.generation": self.new_generation.chance.geneval.overall,
        }


@dataclass(frozen=True)
class ContextScores:
    """Edits and conversations with generated images of a model."""

    editing: "EditingResult"
    drawing: "DrawingResult"

    def table(self) -> dict[str, float]:
        """Returns the scores by name, as in report.json."""
        edits, chance = self.editing.scores, self.editing.chance
        talks, random_talks = self.drawing.scores, self.drawing.chance
        return {
            "edits": edits.correct.overall,
            "edits.met": edits.met.overall,
            "edits.objects_kept": edits.kept,
            "edits.pixels_unchanged": edits.unchanged,
            "conversations": talks.overall,
            **{f"conversations.{plot}": score for plot, score in talks.by_category.items()},
            "chance.edits": chance.correct.overall,
            "chance.edits.met": chance.met.overall,
            "chance.edits.objects_kept": chance.kept,
            "chance.edits.pixels_unchanged": chance.unchanged,
            "chance.conversations": random_talks.overall,
            **{f"chance.conversations.{plot}": score for plot, score in random_talks.by_category.items()},
        }

    def longest_conversation(self) -> "Transcript":
        """Returns the conversation with the most turns, a correct one if there is one."""
        return max(self.drawing.transcripts, key=lambda one: (len(one.turns), one.correct))


def report(before: DemoScores, after: DemoScores, context: ContextScores, minutes: float) -> dict[str, float]:
    """Returns the scores before fine-tuning, and those of the new words after it.

    The entry `old_drop` is the larger drop of the two overall scores on old words.
    """
    first, last = before.table(), after.table()
    old = {name: value for name, value in first.items() if not name.startswith("new.")}
    return {
        **old,
        **context.table(),
        "new.understanding.before": first["new.understanding"],
        "new.generation.before": first["new.generation"],
        "new.understanding": last["new.understanding"],
        "new.generation": last["new.generation"],
        "old_drop": max(first[name] - last[name] for name in ("understanding", "generation.overall")),
        "minutes": round(minutes, 2),
    }
