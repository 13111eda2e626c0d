"""Trains a small Janus, or JanusFlow, from nothing on the embedded shapes world, and tells what it has learnt.

    python -m examples.shapes.train --budget 25min --workdir runs/shapes
    python -m examples.shapes.train --model janusflow --budget 25min --workdir runs/shapes_janusflow

In turn: the image tokenizer (a JanusFlow's VAE), a text tokenizer, the data, the understanding encoder, stages I to III
by the trainer of janus-train, the export, and the scores on combinations that none of it has seen. What is finished
stays: the same command goes on where it was interrupted. WORKDIR/converted is what `janus_jax.load` reads,
WORKDIR/Janus-shapes (JanusFlow-shapes) the same in the released layout; WORKDIR/report.json has the figures.
docs/shapes.md has those of the shipped model.

--ablation trains, under the same budget, the model that the papers compare with: one whose image tokenizer serves
understanding too (Janus, arXiv 2410.13848, table 5, A against D).
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import flags

from examples.shapes.budgets import MODELS, TEXTS, Plan, SmallModel, architecture, of_steps, recipe, text_tokenizer
from examples.shapes.dataset import EVERYTHING, World, draw, images, inventory, sample_scene
from examples.shapes.source import prepare_shards
from janus_jax.commands import cli
from janus_jax.config import VisualEncoder
from janus_jax.errors import JanusError
from janus_jax.processing import Processor, Task, make_byte_level_tokenizer

_BUDGET = flags.DEFINE_enum("budget", "25min", ["smoke", "25min", "full"], "how long it takes, on two cores")
_MODEL = flags.DEFINE_enum("model", "janus", list(MODELS), "which draws: id after id, or along a flow")
_WORKDIR = flags.DEFINE_string("workdir", "runs/shapes", "folder for everything it makes; each model has its own")
_ABLATION = flags.DEFINE_boolean(
    "ablation", False, "also train the Janus that understands by its image tokenizer, and compare the two"
)


_CAPTION = 48
"""Ids of a caption that the encoder's text tower reads."""

_PAIRS = 7
"""The seed of the encoder's pictures."""

_PICTURES = 0
"""The seed of the VAE's."""


def main(_: Sequence[str]) -> None:
    """All of it."""
    model = MODELS[_MODEL.value]
    if _ABLATION.value and model.pixels_by != "gen_encoder":
        raise JanusError(f"--ablation is of an image tokenizer, which --model {_MODEL.value} has not; leave it out.")
    cli.enable_compilation_cache()
    run(Path(_WORKDIR.value), model.plans[_BUDGET.value], _ABLATION.value, model)


def run(workdir: Path, plan: Plan, ablation: bool = False, model: SmallModel = MODELS["janus"]) -> dict[str, Any]:
    """Trains by a plan; the report.

    Args:
      ablation: whether to train the Janus with one encoder for both tasks too, under the same plan.

    Raises:
      JanusError: the folder is another model's.
    """
    _check_alone(workdir, model)
    minutes: dict[str, float] = {}

    def timed(name: str, action: Callable[[], None]) -> None:
        # Times are kept, so that a run in several goes tells the sum.
        note = workdir / "minutes" / f"{name}.json"
        print(f"\n{name}", flush=True)
        began = time.monotonic()
        action()
        before = json.loads(note.read_text()) if note.exists() else 0.0
        minutes[name] = round(before + (time.monotonic() - began) / 60, 2)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(minutes[name]))

    if model.pixels_by == "vae":
        timed("VAE", lambda: _vae(workdir, plan, model))
    else:
        timed("image tokenizer", lambda: _image_tokenizer(workdir, plan))
    timed("text tokenizer", lambda: _text_tokenizer(workdir, model, "und_encoder"))
    timed("data", lambda: _data(workdir, plan, model))
    timed("understanding encoder", lambda: _encoder(workdir, plan, model))

    def trained(home: Path, understanding_encoder: VisualEncoder, prefix: str = "") -> dict[str, float]:
        """A model in its folder, by all three stages; its scores."""
        for stage in (1, 2, 3):
            one = recipe(workdir, plan, stage, understanding_encoder, model)
            timed(f"{prefix}stage {stage}", functools.partial(_stage, one, home))
        timed(f"{prefix}export", lambda: _export(home))
        figures: dict[str, float] = {}
        timed(f"{prefix}evaluation", lambda: figures.update(_evaluate(home, plan)))
        return figures

    figures = trained(workdir, "und_encoder")
    if not (workdir / model.released).exists():
        _release(workdir, model)
    report: dict[str, Any] = figures | {"minutes": round(sum(minutes.values()), 1), "minutes by part": dict(minutes)}
    rows = {"two encoders": figures}
    if ablation:
        timed("one encoder: text tokenizer", lambda: _text_tokenizer(workdir, model, "gen_encoder"))
        rows["one encoder"] = report["one encoder"] = trained(workdir / "one_encoder", "gen_encoder", "one encoder: ")
    (workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(" " * 28 + "".join(f"{title:>15}" for title in rows))
    for name in figures:
        print(f"{name:28}" + "".join(f"{row[name]:15.3f}" for row in rows.values()))
    print(f"{report['minutes']:.0f} minutes")
    return report


def _check_alone(workdir: Path, model: SmallModel) -> None:
    for other in MODELS.values():
        if other != model and (workdir / other.released).exists():
            raise JanusError(f"--workdir {workdir} holds {other.released}; give --model a folder of its own.")


def _image_tokenizer(workdir: Path, plan: Plan) -> None:
    if (workdir / "gen_encoder").exists():
        return
    from checkpoints_convert import save_checkpoint
    from examples.shapes.configs.tokenizer import RECIPE
    from janus_jax.training.image_tokenizer.trainer import train_tokenizer

    recipe = of_steps(RECIPE, plan.tokenizer_steps)
    trained = train_tokenizer(recipe, workdir / "runs" / "gen_encoder")
    save_checkpoint(workdir / "gen_encoder", {"gen_encoder": trained.params}, recipe.model)


def _vae(workdir: Path, plan: Plan, model: SmallModel) -> None:
    if (workdir / "vae").exists():
        return
    from checkpoints_convert import save_checkpoint
    from janus_jax.training.image_tokenizer.vae import train_vae

    recipe = of_steps(model.module.VAE, plan.tokenizer_steps)
    params, _ = train_vae(recipe, images(_PICTURES, 4096, recipe.image_size), workdir / "runs" / "vae")
    save_checkpoint(workdir / "vae", {"vae": params}, recipe.model)


def _text_tokenizer(workdir: Path, model: SmallModel, understanding_encoder: VisualEncoder) -> None:
    config, folder = architecture(understanding_encoder, model), text_tokenizer(workdir, understanding_encoder)
    if not (folder / "tokenizer.json").exists():
        make_byte_level_tokenizer(
            folder,
            # The kept-out words too: a tokenizer stays as it is when they are taught.
            World(vocabulary=EVERYTHING).texts(TEXTS),
            config.llm.vocab_size,
            config.conversation,
            config.und_encoder.image_size,
            config.und_encoder.num_patches,
            system_prompt="",
        )


def _data(workdir: Path, plan: Plan, model: SmallModel) -> None:
    easy = "categories=single_object+colors"  # Single things.
    # Ids are looked up once; latents, which are many numbers, are computed as they are needed.
    data, tokenizer = workdir / "data", workdir / "gen_encoder" if model.pixels_by == "gen_encoder" else None
    prepare_shards(data / "understanding", f"train:{plan.understanding}", Task.UNDERSTANDING)
    prepare_shards(data / "singles", f"train:{max(plan.understanding // 5, 64)},{easy}", Task.UNDERSTANDING)
    for asked in ("places", "sides"):
        few = f"train:{max(plan.understanding // 3, 64)},asked={asked}"
        prepare_shards(data / asked, few, Task.UNDERSTANDING)
    prepare_shards(data / "text", f"train:{TEXTS}", Task.TEXT)
    prepare_shards(data / "imagenet", f"train:{max(plan.generation // 5, 64)},{easy}", Task.GENERATION, tokenizer)
    prepare_shards(data / "generation", f"train:{plan.generation}", Task.GENERATION, tokenizer)
    hard = "categories=counting+position"  # Learnt last.
    prepare_shards(data / "numbers", f"train:{max(plan.generation // 2, 64)},{hard}", Task.GENERATION, tokenizer)


def _encoder(workdir: Path, plan: Plan, model: SmallModel) -> None:
    if (workdir / "und_encoder").exists():
        return
    from checkpoints_convert import save_checkpoint
    from janus_jax.training.siglip import train_encoder

    processor, config = Processor.from_directory(workdir / "text", model.module.MODEL), model.module.ENCODER
    pictures = np.empty((plan.pairs, *[config.encoder.image_size] * 2, 3), np.uint8)
    captions = np.zeros((plan.pairs, _CAPTION), np.int32)
    for index in tqdm.trange(plan.pairs, unit=" pairs", desc="pictures with captions"):
        scene = sample_scene(np.random.default_rng((_PAIRS, index)))
        # Captions that tell all, so that of two pictures one does not fit both.
        ids = processor.tokenizer.encode(inventory(scene))[:_CAPTION]
        pictures[index], captions[index, : len(ids)] = draw(scene, config.encoder.image_size), ids
    params, _ = train_encoder(
        of_steps(config, plan.encoder_steps), pictures, captions, workdir / "runs" / "und_encoder"
    )
    save_checkpoint(workdir / "und_encoder", {"und_encoder": params}, config.encoder)


def _stage(recipe: Any, home: Path) -> None:
    from janus_jax.training.stage import train_stage

    if not (home / "converted").exists():
        train_stage(recipe, home / "janus")


def _export(home: Path) -> None:

    from janus_jax.training.export import export

    if not (home / "converted").exists():
        export(home / "janus", 3, home / "converted", "bfloat16", progress=True)


def _release(home: Path, model: SmallModel) -> None:

    from checkpoints_convert import convert

    convert(home / "converted", home / model.released, "released", progress=True)


def _evaluate(home: Path, plan: Plan) -> dict[str, float]:
    import janus_jax
    from examples.shapes.evaluation import ShapesProtocol, evaluate_generation, evaluate_understanding, figures
    from janus_jax.evaluation.results import model_fingerprint
    from janus_jax.progress import count_bar

    model = janus_jax.load(home / "converted", "float32")
    protocol, named = (
        ShapesProtocol(per_topic=plan.asked[0], per_category=plan.asked[1]),
        model_fingerprint(home / "converted"),
    )
    with count_bar("answering") as report:
        understanding = evaluate_understanding(model, home / "evaluation" / "understanding", protocol, named, report)
    with count_bar("drawing", "pictures") as report:
        generation = evaluate_generation(model, home / "evaluation" / "generation", protocol, named, report)
    return dict(figures(understanding, generation))


if __name__ == "__main__":
    cli.run(main)
