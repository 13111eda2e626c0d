"""Trains a small Janus or JanusFlow from scratch on the shapes dataset and evaluates it.

    python -m examples.shapes.train --budget 25min --workdir runs/shapes
    python -m examples.shapes.train --model janusflow --budget 25min --workdir runs/shapes_janusflow

The command trains the image tokenizer (VAE for JanusFlow), a text tokenizer and the understanding encoder, prepares the
data, trains stages 1 to 3, exports the model, and scores it on held-out combinations. The same command continues an
interrupted run and skips completed steps. Results:

    WORKDIR/converted       the model, for `janus_jax.load`
    WORKDIR/Janus-shapes    the model in the released layout (JanusFlow-shapes for JanusFlow)
    WORKDIR/report.json     scores and minutes

--ablation also trains, with the same budget, a Janus that uses its image tokenizer for understanding too (arXiv
2410.13848, table 5, A and D). The README of this example has the scores.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from examples.shapes.budgets import (
    MODELS,
    TEXTS,
    Budget,
    SmallModel,
    architecture,
    stage_recipe,
    text_tokenizer_folder,
    tokenizer_folder,
    with_steps,
)
from examples.shapes.dataset import FULL_VOCABULARY, ShapesDataset, render, sample_scene
from examples.shapes.dataset.captions import inventory
from examples.shapes.source import prepare_shards
from janus_jax.commands import cli
from janus_jax.config import VisualEncoder
from janus_jax.errors import JanusError
from janus_jax.processing import Processor, Task, make_byte_level_tokenizer
from janus_jax.progress import progress_bar

_BUDGET = flags.DEFINE_enum("budget", "25min", ["smoke", "25min", "full"], "Training time on two CPU cores.")
_MODEL = flags.DEFINE_enum("model", "janus", list(MODELS), "Model to train.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/shapes", "Folder of the run; each model needs its own.")
_ABLATION = flags.DEFINE_boolean(
    "ablation", False, "Also train a Janus that uses its image tokenizer for understanding, and compare."
)

_PAIRS_SEED = 7


def main(_: Sequence[str]) -> None:
    """Trains the model that the flags name."""
    model = MODELS[_MODEL.value]
    if _ABLATION.value and model.tokenizer_part != "gen_encoder":
        raise JanusError(f"--ablation needs an image tokenizer, which --model {_MODEL.value} does not have; omit it.")
    cli.enable_compilation_cache()
    run(Path(_WORKDIR.value), model.budgets[_BUDGET.value], ablation=_ABLATION.value, model=model)


def run(
    workdir: Path, budget: Budget, *, ablation: bool = False, model: SmallModel = MODELS["janus"]
) -> dict[str, Any]:
    """Trains and evaluates a model.

    Args:
      ablation: Whether to also train a Janus that uses its image tokenizer for understanding.

    Returns:
      The content of report.json.

    Raises:
      JanusError: The folder contains another model.
    """
    for other in MODELS.values():
        if other != model and (workdir / other.released).exists():
            raise JanusError(f"--workdir {workdir} contains {other.released}; choose another folder for this model.")
    minutes: dict[str, float] = {}

    def timed(name: str, action: Callable[..., Any], *args: Any) -> Any:
        # Minutes are stored, so that the report of an interrupted run includes its earlier part.
        file = workdir / "minutes" / f"{name}.json"
        print(f"\n{name}", flush=True)
        start = time.monotonic()
        result = action(*args)
        before = json.loads(file.read_text()) if file.exists() else 0.0
        minutes[name] = round(before + (time.monotonic() - start) / 60, 2)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(minutes[name]))
        return result

    timed("image tokenizer", _train_image_tokenizer, workdir, budget, model)
    timed("text tokenizer", _train_text_tokenizer, workdir, model, "und_encoder")
    timed("data", _prepare_data, workdir, budget, model)
    timed("understanding encoder", _train_encoder, workdir, budget, model)

    def train_stages(home: Path, understanding_encoder: VisualEncoder, prefix: str = "") -> dict[str, float]:
        """Returns the scores of a model after training all its stages in the folder `home`."""
        for stage in (1, 2, 3):
            recipe = stage_recipe(workdir, budget, stage, understanding_encoder, model)
            timed(f"{prefix}stage {stage}", _train_stage, recipe, home)
        timed(f"{prefix}export", _export, home)
        scores: dict[str, float] = timed(f"{prefix}evaluation", _evaluate, home, budget)
        return scores

    scores = train_stages(workdir, "und_encoder")
    if not (workdir / model.released).exists():
        from checkpoints_convert import convert

        convert(workdir / "converted", workdir / model.released, "released", progress=True)
    report: dict[str, Any] = scores | {"minutes": round(sum(minutes.values()), 1), "minutes by part": dict(minutes)}
    columns = {"two encoders": scores}
    if ablation:
        timed("one encoder: text tokenizer", _train_text_tokenizer, workdir, model, "gen_encoder")
        one_encoder = train_stages(workdir / "one_encoder", "gen_encoder", "one encoder: ")
        columns["one encoder"] = report["one encoder"] = one_encoder
    (workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(" " * 28 + "".join(f"{title:>15}" for title in columns))
    for name in scores:
        print(f"{name:28}" + "".join(f"{column[name]:15.3f}" for column in columns.values()))
    print(f"{report['minutes']:.0f} minutes")
    return report


def _train_image_tokenizer(workdir: Path, budget: Budget, model: SmallModel) -> None:
    from examples.shapes import tokenizers

    folder = tokenizer_folder(workdir, model)
    if not folder.exists():
        tokenizers.train(with_steps(model.module.TOKENIZER, budget.tokenizer_steps), folder.parent)


def _train_text_tokenizer(workdir: Path, model: SmallModel, understanding_encoder: VisualEncoder) -> None:
    config, folder = architecture(understanding_encoder, model), text_tokenizer_folder(workdir, understanding_encoder)
    if not (folder / "tokenizer.json").exists():
        make_byte_level_tokenizer(
            folder,
            # The texts include the words for fine-tuning, because the tokenizer is not fine-tuned.
            ShapesDataset(vocabulary=FULL_VOCABULARY).texts(TEXTS),
            config.llm.vocab_size,
            config.conversation,
            config.und_encoder.image_size,
            config.und_encoder.num_patches,
            system_prompt="",
        )


def _prepare_data(workdir: Path, budget: Budget, model: SmallModel) -> None:
    # Image tokens are precomputed. Latents of a VAE are large and are computed in training.
    tokenizer = tokenizer_folder(workdir, model) if model.tokenizer_part == "gen_encoder" else None
    single, hard = "categories=single_object+colors", "categories=counting+position"

    def prepare(name: str, task: Task, count: int, settings: str = "") -> None:
        records = ",".join(filter(None, (f"train:{max(count, 64)}", settings)))
        prepare_shards(workdir / "data" / name, records, task, tokenizer if task is Task.GENERATION else None)

    prepare("understanding", Task.UNDERSTANDING, budget.understanding)
    prepare("single_objects", Task.UNDERSTANDING, budget.understanding // 5, single)
    prepare("positions", Task.UNDERSTANDING, budget.understanding // 3, "focus=positions")
    prepare("relations", Task.UNDERSTANDING, budget.understanding // 3, "focus=relations")
    prepare("text", Task.TEXT, TEXTS)
    prepare("imagenet", Task.GENERATION, budget.generation // 5, single)
    prepare("generation", Task.GENERATION, budget.generation)
    prepare("hard_prompts", Task.GENERATION, budget.generation // 2, hard)


def _train_encoder(workdir: Path, budget: Budget, model: SmallModel) -> None:
    if (workdir / "und_encoder").exists():
        return
    from checkpoints_convert import save_checkpoint
    from janus_jax.training.array_batches import ArrayBatches, BatchSplit
    from janus_jax.training.siglip import siglip_task
    from janus_jax.training.trainer import train

    processor = Processor.from_directory(workdir / "text", model.module.MODEL)
    recipe = with_steps(model.module.ENCODER, budget.encoder_steps)
    images = np.empty((budget.pairs, *[recipe.encoder.image_size] * 2, 3), np.uint8)
    captions = np.zeros((budget.pairs, recipe.caption_length), np.int32)
    for index in progress_bar(iterable=range(budget.pairs), unit=" pairs", desc="images with captions"):
        scene = sample_scene(np.random.default_rng((_PAIRS_SEED, index)))
        # The captions describe the whole image, so that few images match the same caption.
        ids = processor.tokenizer.encode(inventory(scene))[: recipe.caption_length]
        images[index], captions[index, : len(ids)] = render(scene, recipe.encoder.image_size), ids
    split = BatchSplit(recipe.batch_size, recipe.seed)
    task = siglip_task(recipe, lambda start: ArrayBatches((images, captions), split))
    params = train(task, workdir / "runs" / "und_encoder").state.params
    save_checkpoint(workdir / "und_encoder", {"und_encoder": params["und_encoder"]}, recipe.encoder)


def _train_stage(recipe: Any, home: Path) -> None:
    from janus_jax.training.stage import train_stage

    if not (home / "converted").exists():
        train_stage(recipe, home / "janus")


def _export(home: Path) -> None:
    from janus_jax.training.export import export

    if not (home / "converted").exists():
        export(home / "janus", 3, home / "converted", "bfloat16", progress=True)


def _evaluate(home: Path, budget: Budget) -> dict[str, float]:
    import janus_jax
    from examples.shapes.evaluation import ShapesProtocol, evaluate_generation, evaluate_understanding, score_table
    from janus_jax.evaluation.results import model_fingerprint
    from janus_jax.progress import count_bar

    model = janus_jax.load(home / "converted", "float32")
    per_topic, per_category = budget.evaluation
    protocol = ShapesProtocol(per_topic=per_topic, per_category=per_category)
    name, folder = model_fingerprint(home / "converted"), home / "evaluation"
    with count_bar("answering") as report:
        answers = evaluate_understanding(
            model, folder / "understanding", protocol, fingerprint=name, on_progress=report
        )
    with count_bar("generating", "images") as report:
        images = evaluate_generation(model, folder / "generation", protocol, fingerprint=name, on_progress=report)
    return dict(score_table(answers, images))


if __name__ == "__main__":
    cli.run(main)
