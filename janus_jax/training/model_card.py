"""Model cards: the README.md of a model on the Hugging Face hub."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints_convert.hub import is_hub_id
from janus_jax.files import read_lines
from janus_jax.training.checkpoint_files import absolute_path, read_run
from janus_jax.training.config_dicts import from_config
from janus_jax.training.init_from import checkpoints_folder
from janus_jax.training.recipe import Recipe
from janus_jax.training.stage_config import Stage

_PIPELINE_TAG = "any-to-any"
_TAGS = ["janus", "janus_jax", "jax", "image-text-to-text", "text-to-image"]


def model_card(workdir: Path, stage: int, step: int, name: str, *, license_id: str, adapter: bool = False) -> str:
    """Returns the card of an exported stage: base models, recipe, scores and how to load it.

    Paths of the run are left out, because the card is public.

    Args:
      workdir: Workdir of the run.
      stage: Number of the stage.
      step: Step of the exported checkpoint.
      name: Id of the model on the hub.
      license_id: License identifier of the hub, such as "mit".
      adapter: Whether the folder holds a LoRA adapter.
    """
    from huggingface_hub import EvalResult, ModelCardData

    recipe = _recipe(workdir, stage, step)
    scores = _scores(checkpoints_folder(workdir, stage).parent / "metrics.jsonl", step)
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=benchmark,
            dataset_name=benchmark,
            metric_type=score,
            metric_value=value,
        )
        for (benchmark, score), value in scores.items()
    ]
    bases = list(dict.fromkeys(_base_models(recipe, workdir)))
    data = ModelCardData(
        license=license_id,
        library_name="peft" if adapter else "janus_jax",
        pipeline_tag=_PIPELINE_TAG,
        tags=[*_TAGS, "lora"] if adapter else _TAGS,
        base_model=bases or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    what = "LoRA adapter" if adapter else "model"
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.partition('/')[2]}",
        f"A {recipe.model_config.name} {what}, trained with janus_jax.",
        f'```python\nimport janus_jax\n\nmodel = janus_jax.load("{name}")\n```',
        "## Training",
        _table(("setting", "value"), _settings(recipe, step, bases)),
    ]
    if scores:
        rows = {f"{benchmark} {score}": f"{value:.2f}" for (benchmark, score), value in scores.items()}
        limit = recipe.evaluation.limit
        questions = f"on {limit} questions per benchmark, " if limit else ""
        sections += [
            "## Scores",
            f"Measured during training, {questions}at the exported step or the last one before it.",
            _table(("score", "value"), rows),
        ]
    return "\n\n".join(sections) + "\n"


def _recipe(workdir: Path, stage: int, step: int) -> Recipe:
    run = read_run(absolute_path(checkpoints_folder(workdir, stage)) / str(step))
    return from_config(Recipe, run["config"])


def _base_models(recipe: Recipe, workdir: Path) -> Iterator[str]:
    """Yields the hub ids that the stage, or the stages before it, started from."""
    while recipe.current.initialisation.source == "stage" and recipe.stage > 1:
        recipe = replace(recipe, stage=recipe.stage - 1)
    for path in recipe.current.initialisation.folders(recipe.model_config).values():
        if is_hub_id(path):
            yield path.partition("@")[0]


def _settings(recipe: Recipe, step: int, bases: list[str]) -> Mapping[str, Any]:
    stage, optimizer = recipe.current, recipe.current.optimizer
    settings: dict[str, Any] = {
        "initial parameters": ", ".join(bases) or stage.initialisation.source,
        "stage": f"{recipe.stage} of {len(recipe.stages)}",
        "step": f"{step:,} of {stage.steps:,}",
        "batch": f"{stage.batch_size} images" if stage.rl else _batch_of_data(stage),
        "learning rate": f"{optimizer.learning_rate:g}",
        "weight decay": f"{optimizer.weight_decay:g}",
        "trained parameters": ", ".join(f"`{pattern}`" for pattern in stage.trained) or "adapters only",
        "seed": recipe.seed,
    }
    if stage.rl:
        settings["rewards of reinforcement learning"] = ", ".join(reward.curve for reward in stage.rl.rewards)
        settings["images per prompt"] = stage.rl.group_size
    else:
        weights = sorted(stage.phases[-1].weights.items())
        settings["data, by weight"] = ", ".join(f"{name} {weight:g}" for name, weight in weights if weight)
    if stage.lora.rank:
        settings["LoRA"] = f"rank {stage.lora.rank}, alpha {stage.lora.alpha:g}"
    if stage.ema_decay:
        settings["moving average"] = f"decay {stage.ema_decay:g}"
    return settings


def _batch_of_data(stage: Stage) -> str:
    return f"{stage.batch_size} sequences of {stage.budget.tokens:,} tokens"


def _scores(metrics: Path, step: int) -> dict[tuple[str, str], float]:
    """Returns the newest scores up to a step, by benchmark and name of the score."""
    scores: dict[tuple[str, str], float] = {}
    for line in read_lines(metrics) if metrics.exists() else []:
        values = json.loads(line)
        for name, value in values.items():
            if name.startswith("benchmarks/") and values["step"] <= step:
                _, benchmark, score = name.split("/", 2)
                scores[benchmark, score] = value
    return scores


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)
