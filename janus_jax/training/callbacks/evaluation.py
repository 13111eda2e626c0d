"""Benchmarks on the model as it stands at a step, where it is trained.

WORKDIR/stage_N/benchmarks/step_N/NAME/answers.json   answers by question
WORKDIR/stage_N/benchmarks/step_N/NAME/predictions/   the same as the official scorer reads them

TensorBoard and metrics.jsonl have the scores: `benchmarks/NAME/FIGURE`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Benchmark, Options, Question, limited
from janus_jax.evaluation.registry import find_benchmark
from janus_jax.evaluation.results import check_pictures
from janus_jax.evaluation.runner import answering
from janus_jax.generation.padding import round_up
from janus_jax.models.backbone import Params
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Processor
from janus_jax.sharding import batch_multiple
from janus_jax.storage import write_json, writing
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.recipe import Recipe


class _Chosen(NamedTuple):
    benchmark: Benchmark[Any]
    options: Options
    questions: Sequence[Question]


class Evaluator:
    """Asks the model what the recipe's benchmarks ask, and tells of the scores.

    Unlike `janus-evaluate` it keeps no journal: a run that is interrupted in the middle asks all again.

    Args:
      recipe: its `evaluation` is made.
      processor: of its model.
      folder: the stage's, `WORKDIR/stage_N`.

    Raises:
      JanusError: there is no such benchmark, it draws, or its data will not do. No device is asked for.
    """

    def __init__(self, recipe: Recipe, processor: Processor, folder: Path) -> None:
        self._recipe, self._processor, self._folder = recipe, processor, folder / "benchmarks"
        self._chosen = [self._read(*pair) for pair in recipe.evaluation.benchmarks]

    def _read(self, name: str, data: str) -> _Chosen:
        one = find_benchmark(name)
        options = one.settled({})
        questions = limited(one.read(Path(data), options), self._recipe.evaluation.limit or None, self._recipe.seed)
        if not all(isinstance(question, Question) for question in questions):
            raise JanusError(
                f"config.evaluation.benchmarks names {name}, which draws; export the model and run launch.evaluate."
            )
        check_pictures(questions)
        return _Chosen(one, options, questions)

    def tell(self, step: int, params: Params, mesh: Mesh | None, reports: MetricWriter) -> None:
        """Runs the benchmarks; every process takes part. Parameters that give no numbers give a message.

        Args:
          params: the whole tree, in the form of training.
          mesh: that they lie on.

        Raises:
          StorageFull: the disk is full.
        """
        config = self._recipe.model_config
        execution = Execution(self._recipe.current.precision.compute, layers="scanned")
        model = Pretrained(config, params, self._processor, make_model(config, execution), mesh)
        rows = round_up(self._recipe.evaluation.batch_size, batch_multiple(mesh))
        for chosen in self._chosen:
            name = chosen.benchmark.name
            answers: dict[str, str] = {}
            try:
                for batch in answering(model, rows)(chosen.questions):
                    answers |= batch
            except JanusError as error:
                reports.message(f"step {step}: {name} has no scores: {error}")
                continue
            scores = chosen.benchmark.score(chosen.questions, answers, chosen.options)
            reports.scalars(step, {f"benchmarks/{name}/{figure}": value for figure, value in scores.items()})
            if scores:
                figure, value = next(iter(scores.items()))
                reports.message(f"step {step}: {name} {figure} {value:.4g}")
            if jax.process_index() == 0:
                self._write(self._folder / f"step_{step}" / name, chosen, answers)

    def _write(self, folder: Path, chosen: _Chosen, answers: dict[str, str]) -> None:
        predictions = folder / "predictions"
        with writing(predictions):
            predictions.mkdir(parents=True, exist_ok=True)
        write_json(folder / "answers.json", answers)
        chosen.benchmark.write_predictions(chosen.questions, answers, predictions)
