"""Recipes of the tiny models that run in seconds, their data, and finished runs."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from checkpoints_convert import save_checkpoint
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.processing import Task, make_byte_level_tokenizer
from janus_jax.training.config_dicts import from_config, to_config
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import Intervals, PreparedDataset, Recipe, Resources
from janus_jax.training.stage import train_stage
from janus_jax.training.stage_config import Initialisation, Precision, Stage
from janus_jax.training.trained_params import (
    ADAPTORS_AND_HEAD,
    ALL_BUT_ENCODERS,
    ALL_BUT_TOKENIZER,
    FLOW_ALL_BUT_ENCODER,
    LINEAR_LAYERS_AND_FLOW,
)
from tests import tiny
from tests.data import prepared
from tests.training import stages

MODEL = tiny.CONFIG
CONFIGS = stages.CONFIGS
STEPS = 4
STAGE = Stage(
    trained=ADAPTORS_AND_HEAD,
    optimizer=OptimizerConfig(learning_rate=1e-3),
    steps=STEPS,
    batch_size=2,
    phases=(Phase(None, {"understanding": 1, "generation": 1}),),
    budget=Budget(256, und_images=2, gen_images=2, text_targets=192),
    precision=Precision("float32", "float32", "float32"),
    initialisation=Initialisation("random"),
)

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []

TRAINED = {"janus": (ADAPTORS_AND_HEAD, ALL_BUT_ENCODERS), "flow": (LINEAR_LAYERS_AND_FLOW, FLOW_ALL_BUT_ENCODER)}
SOURCES = {"understanding": Task.UNDERSTANDING, "generation": Task.GENERATION, "edits": Task.EDITING}


def get_config(kind="janus"):
    """Returns the recipe as a config.

    `runs.py:flow` is a JanusFlow recipe with a moving average. `runs.py:edit` trains on captions and edits, whose image
    tokens the step computes.
    """
    if kind == "edit":
        return _editing_config()
    sources = {name: PreparedDataset(task=SOURCES[name]) for name in ("understanding", "generation")}
    first, second = (replace(STAGE, trained=trained) for trained in TRAINED[kind])
    if kind == "flow":
        first, second = (replace(stage, ema_decay=0.9) for stage in (first, second))
    return to_config(
        Recipe(
            (first, replace(second, initialisation=Initialisation("stage"))),
            sources,
            resources=Resources(remat="none", data_workers=0),
            intervals=Intervals(report=1, evaluate=2, save=2, evaluate_batches=1),
            precomputed_image_tokens=kind == "janus",
            architecture=CONFIGS[kind],
            flow=stages.FLOW_LOSS if kind == "flow" else None,
        )
    )


def _editing_config():
    stage = replace(
        STAGE,
        trained=ALL_BUT_TOKENIZER,
        phases=(Phase(None, {"generation": 1, "edits": 1}),),
        budget=Budget(256, und_images=2, gen_images=3, text_targets=0, context_images=2),
    )
    recipe = from_config(Recipe, get_config())
    sources = {name: PreparedDataset(task=SOURCES[name]) for name in ("generation", "edits")}
    return to_config(replace(recipe, stages=(stage,), sources=sources, precomputed_image_tokens=False))


@functools.cache
def data():
    """A folder with prepared datasets and a tokenizer."""
    folder = _kept_folder()
    prepared.write(folder / "understanding", [prepared.understanding(number) for number in range(12)])
    ids = np.random.default_rng(0).integers(0, MODEL.gen_encoder.codebook_size, (12, MODEL.gen_encoder.num_tokens))
    prepared.write(
        folder / "generation", [prepared.generation(number, tokens=tokens) for number, tokens in enumerate(ids)]
    )
    prepared.write(folder / "edits", [prepared.edit(number, sources=1 + number % 2) for number in range(12)])
    make_byte_level_tokenizer(
        folder / "tokenizer",
        tiny.CORPUS,
        MODEL.llm.vocab_size,
        MODEL.conversation,
        image_size=MODEL.und_encoder.image_size,
        num_image_tokens=MODEL.und_encoder.num_patches,
    )
    return folder


def flags(kind="janus"):
    """Command-line flags for the data."""
    return (
        *(f"--config.sources.{name}.directory={data() / name}" for name in get_config(kind).sources),
        f"--config.tokenizer={data() / 'tokenizer'}",
    )


def recipe(stage=1, kind="janus", **fields):
    """The recipe with data, starting from a model folder, with changed fields of the current stage."""
    whole = from_config(Recipe, get_config(kind))
    sources = {name: replace(source, directory=str(data() / name)) for name, source in whole.sources.items()}
    folder = models() / ("model" if kind == "janus" else kind)
    all_stages = [replace(whole.stages[0], initialisation=Initialisation("model", model=str(folder))), whole.stages[1]]
    all_stages[stage - 1] = replace(all_stages[stage - 1], **fields)
    return replace(whole, sources=sources, stages=tuple(all_stages), stage=stage, tokenizer=str(data() / "tokenizer"))


def held_out(recipe):
    """The recipe with held-out data."""
    sources = {name: replace(source, held_out="train[:4]") for name, source in recipe.sources.items()}
    return replace(recipe, sources=sources)


@functools.cache
def models():
    """A folder with checkpoints of `tests.tiny`: `model`, `flow`, the parts of `model`, and `spoiled` with a NaN."""
    folder, tree = _kept_folder(), tiny.stacked_params()
    save_checkpoint(folder / "model", tree, MODEL)
    for part in ("llm", "und_encoder", "gen_encoder"):
        save_checkpoint(folder / part, {part: tree[part]}, getattr(MODEL, part))
    save_checkpoint(folder / "flow", tiny.stacked_params(tiny.FLOW), tiny.FLOW)
    spoiled = jax.tree.map(np.copy, tree)
    spoiled["gen_head"]["fc2"]["bias"][0] = np.nan
    save_checkpoint(folder / "spoiled", spoiled, MODEL)
    return folder


def run(recipe, workdir):
    """Trains a recipe on one device and returns the last state."""
    return train_stage(recipe, workdir, jax.devices()[:1])


@functools.cache
def finished(kind="janus"):
    """Workdir and last state of a finished stage 1."""
    workdir = _kept_folder()
    return workdir, run(held_out(recipe(kind=kind)), workdir)


def _kept_folder():
    """Creates a folder that is deleted after the tests."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    return Path(_FOLDERS[-1].name)
