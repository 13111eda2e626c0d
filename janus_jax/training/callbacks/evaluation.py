"""Benchmark scores at intervals during training.

    WORKDIR/stage_N/benchmarks/step_N/NAME/answers.json   answers by question id
    WORKDIR/stage_N/benchmarks/step_N/NAME/predictions/   the same answers in the format of the official scorer

Metrics: `benchmarks/NAME/SCORE`. Trackers also show the first answers, as `benchmarks/NAME/answers`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from janus_jax.buckets import staged_folder
from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Benchmark, Options, Question
from janus_jax.evaluation.registry import find_benchmark
from janus_jax.evaluation.runner import answer_questions
from janus_jax.generation.padding import round_up
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Processor
from janus_jax.sharding import num_data_shards
from janus_jax.storage import write_json, writing
from janus_jax.training.callbacks.base import Callback, TrainingRun
from janus_jax.training.param_paths import merge
from janus_jax.training.recipe import Recipe

_SHOWN = 20  # answers in trackers


class _Selected(NamedTuple):
    benchmark: Benchmark[Any]
    options: Options
    questions: Sequence[Question]


class RunBenchmarks(Callback):
    """Runs the benchmarks of `recipe.evaluation` on the current parameters.

    Unlike `janus-evaluate` it does not save partial answers: a resumed run repeats an interrupted benchmark.

    Args:
      recipe: Provides `evaluation`, its interval and the model.
      processor: Processor of the model.
      folder: Folder of the stage, `WORKDIR/stage_N`.

    Raises:
      JanusError: A benchmark is unknown, generates images, or its data cannot be used. No device is used.
    """

    def __init__(self, recipe: Recipe, processor: Processor, folder: Path) -> None:
        self._recipe, self._processor, self._folder = recipe, processor, folder / "benchmarks"
        self._selected = [self._read(name, data) for name, data in recipe.evaluation.benchmarks]

    def _read(self, name: str, data: str) -> _Selected:
        selected = find_benchmark(name, "config.evaluation.benchmarks")
        options = selected.resolve_options({})
        limit = self._recipe.evaluation.limit or None
        questions = selected.load_items(Path(data), options, limit, self._recipe.seed)
        if not all(isinstance(question, Question) for question in questions):
            raise JanusError(
                f"config.evaluation.benchmarks names {name}, which generates images; export the model and run "
                f"janus-evaluate."
            )
        return _Selected(selected, options, questions)

    def after_step(self, run: TrainingRun) -> None:
        """Runs the benchmarks at each interval and after the last step.

        If the logits are not finite, prints a message instead of the scores.

        Raises:
          StorageFull: The disk is full.
        """
        if not run.is_due(self._recipe.intervals.benchmark):
            return
        config, params = self._recipe.model_config, merge(run.state.params, run.state.frozen)
        execution = Execution(self._recipe.on_platform(jax.default_backend()).execution.dtype, layers="scanned")
        model = Pretrained(config, params, self._processor, make_model(config, execution), run.mesh)
        batch_size = round_up(self._recipe.evaluation.batch_size, num_data_shards(run.mesh))
        for selected in self._selected:
            name = selected.benchmark.name
            answers: dict[str, str] = {}
            try:
                for batch in answer_questions(model, selected.questions, batch_size):
                    answers |= {id: text for id, text in batch.items() if text is not None}
            except JanusError as error:
                run.writer.message(f"step {run.step}: no scores of {name}: {error}")
                continue
            scores = selected.benchmark.score(selected.questions, answers, selected.options)
            run.writer.scalars(run.step, {f"benchmarks/{name}/{score}": value for score, value in scores.items()})
            shown = [(_text_of(one), answers[one.id]) for one in selected.questions[:_SHOWN] if one.id in answers]
            run.writer.answers(run.step, f"benchmarks/{name}/answers", shown)
            if scores:
                score, value = next(iter(scores.items()))
                run.writer.message(f"step {run.step}: {name} {score} {value:.4g}")
            if jax.process_index() == 0:
                self._write(self._folder / f"step_{run.step}" / name, selected, answers)

    def _write(self, folder: Path, selected: _Selected, answers: dict[str, str]) -> None:
        predictions = folder / "predictions"
        with writing(predictions), staged_folder(predictions) as staged:
            selected.benchmark.write_predictions(selected.questions, answers, staged)
        write_json(folder / "answers.json", answers)


def _text_of(question: Question) -> str:
    return "\n".join(message["content"] for message in question.messages if message["content"])
