"""What the demo finds of a model, and what it reports of two: the shipped one and what fine-tuning made of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from examples.shapes.evaluation import Generation, Understanding


@dataclass(frozen=True)
class DemoScores:
    """A model's answers and drawings, with their scores: about what it was trained on, and about the new words."""

    understanding: "Understanding"
    generation: "Generation"
    new_understanding: "Understanding"
    new_generation: "Generation"

    def figures(self) -> dict[str, float]:
        """By name, as in report.json."""
        from examples.shapes.evaluation import figures

        return {
            **figures(self.understanding, self.generation),
            "new.understanding": self.new_understanding.scores.overall,
            "new.generation": self.new_generation.scores.geneval.overall,
            "chance.new.understanding": self.new_understanding.chance.overall,
            "chance.new.generation": self.new_generation.chance.geneval.overall,
        }


def report(before: DemoScores, after: DemoScores, minutes: float) -> dict[str, float]:
    """The shipped model's scores, those of the new words after fine-tuning, and what the old ones lost by it."""
    first, last = before.figures(), after.figures()
    kept = {name: value for name, value in first.items() if not name.startswith("new.")}
    return {
        **kept,
        "new.understanding.before": first["new.understanding"],
        "new.generation.before": first["new.generation"],
        "new.understanding": last["new.understanding"],
        "new.generation": last["new.generation"],
        "old_drop": max(first[name] - last[name] for name in ("understanding", "generation.overall")),
        "minutes": round(minutes, 2),
    }
