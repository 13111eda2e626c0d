"""Scores of a model in the demo, and the report on them before and after fine-tuning."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from examples.shapes.evaluation import GenerationResult, UnderstandingResult


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


def report(before: DemoScores, after: DemoScores, minutes: float) -> dict[str, float]:
    """Returns the scores before fine-tuning, and those of the new words after it.

    The entry `old_drop` is the larger drop of the two overall scores on old words.
    """
    first, last = before.table(), after.table()
    old = {name: value for name, value in first.items() if not name.startswith("new.")}
    return {
        **old,
        "new.understanding.before": first["new.understanding"],
        "new.generation.before": first["new.generation"],
        "new.understanding": last["new.understanding"],
        "new.generation": last["new.generation"],
        "old_drop": max(first[name] - last[name] for name in ("understanding", "generation.overall")),
        "minutes": round(minutes, 2),
    }
