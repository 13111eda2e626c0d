"""Fields without an effect are rejected. The message names the field and the condition for an effect."""

import re
from dataclasses import replace

import pytest

from examples.emoji.configs import janus as emoji_janus
from examples.emoji.configs import tokenizer as emoji_tokenizer
from examples.shapes.configs import finetune as shapes_finetune
from examples.shapes.configs import janus as shapes_janus
from examples.shapes.configs import janusflow as shapes_janusflow
from examples.shapes.configs import tokenizer as shapes_tokenizer
from janus_jax import load_recipe
from janus_jax.commands.recipe_flag import recipe_class
from janus_jax.config import PRESETS
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.image_tokenizer.recipe import VQRecipe
from janus_jax.training.recipe import Recipe
from janus_jax.training.recipe_files import recipe_names
from janus_jax.training.siglip import SiglipRecipe
from janus_jax.training.unused_fields import check_unused_fields
from tests.training import runs
from tests.training.image_tokenizer import recipes

STAGE = "config.stages.stage_1"


def janus(**values):
    return changed("janus_pro_1b", Recipe, values)


def flow(**values):
    return changed("janusflow_1_3b", Recipe, values)


def finetune(**values):
    return changed("finetune", Recipe, values)


def tokenizer(**values):
    return changed("vq_16", VQRecipe, values)


def changed(name, cls, values):
    config = load_recipe(name)
    for path, value in values.items():
        path = path.replace("S__", "stages__stage_1__")
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return from_config(cls, config)


@pytest.mark.parametrize(
    ("recipe", "field", "needs"),
    [
        (janus(S__initialisation__model="m"), f"{STAGE}.initialisation.model", "initialisation.source=model"),
        (
            janus(S__initialisation__source="model", S__initialisation__gen_encoder="vq"),
            f"{STAGE}.initialisation.gen_encoder",
            f"{STAGE}.initialisation.source=parts",
        ),
        (janus(S__initialisation__vae="v"), f"{STAGE}.initialisation.vae", "a model with the part vae"),
        (flow(S__initialisation__gen_encoder="v"), f"{STAGE}.initialisation.gen_encoder", "with the part gen_encoder"),
        (replace(janus(), architecture=PRESETS["tiny"]), "config.model", "an empty config.architecture"),
        (flow(flow__align_weight=0.0, flow__align_width=9), "config.flow.align_width", "flow.align_weight above 0"),
        (janus(keep__best_by="x"), "config.keep.best_by", "config.keep.best above 0"),
        (janus(S__lora__alpha=8.0), f"{STAGE}.lora.alpha", f"{STAGE}.lora.rank above 0"),
        (janus(S__optimizer__floor=0.1), f"{STAGE}.optimizer.floor", f"{STAGE}.optimizer.schedule=cosine"),
        (janus(S__optimizer__no_decay=("*",)), f"{STAGE}.optimizer.no_decay", "weight_decay above 0"),
        (
            janus(S__trained=(), S__lora__rank=4, S__optimizer__muon_learning_rate=0.1),
            f"{STAGE}.optimizer.muon_learning_rate",
            f"{STAGE}.trained",
        ),
        (tokenizer(losses__entropy_temperature=1.0), "config.losses.entropy_temperature", "losses.entropy above 0"),
        (
            tokenizer(losses__codebook=0.5, codebook__update="moving_average"),
            "config.losses.codebook",
            "config.codebook.update=gradient",
        ),
        (tokenizer(optimizer__floor=0.1), "config.optimizer.floor", "config.optimizer.schedule=cosine"),
    ],
)
def test_contradicting_fields_are_refused(recipe, field, needs):
    with pytest.raises(JanusError, match=f"{re.escape(field)} is .* has no effect without .*{re.escape(needs)}"):
        check_unused_fields(recipe)


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (janus(S__supervision="answers", S__phases__phase_1__weights__understanding=0.0), f"{STAGE}.supervision"),
        (janus(S__budget__und_images=9, S__phases__phase_1__weights__understanding=0.0), f"{STAGE}.budget.und_images"),
        (janus(S__drop_condition=0.2, S__phases__phase_1__weights__imagenet=0.0), f"{STAGE}.drop_condition"),
        (janus(S__random_crop=True, precomputed_image_tokens=True), f"{STAGE}.random_crop"),
        (janus(S__precision__tokenizer="float32", precomputed_image_tokens=True), f"{STAGE}.precision.tokenizer"),
        (
            janus(precomputed_image_tokens=True, S__phases__phase_1__weights__imagenet=0.0),
            "config.precomputed_image_tokens",
        ),
        (
            changed("finetune", Recipe, {"model": "tiny", "sources__text__directory": "t"}),
            "config.sources.text.directory",
        ),
        (janus(intervals__evaluate=5), "config.intervals.evaluate"),
        (janus(intervals__evaluate_batches=5), "config.intervals.evaluate_batches"),
        (janus(samples__prompts=(), intervals__sample=5), "config.intervals.sample"),
        (janus(samples__prompts=(), samples__guidance_scale=2.0), "config.samples.guidance_scale"),
        (janus(samples__steps=9), "config.samples.steps"),
        (finetune(model="tiny", flow__time_mean=1.0), "config.flow.time_mean"),
        (flow(samples__temperature=0.5), "config.samples.temperature"),
        (janus(samples__max_new_tokens=9), "config.samples.max_new_tokens"),
        (janus(evaluation__limit=9), "config.evaluation.limit"),
        (janus(intervals__benchmark=9), "config.intervals.benchmark"),
        (tokenizer(losses__perceptual=0.5), "config.losses.perceptual"),
        (tokenizer(losses__adversarial=0.0, discriminator__base_channels=8), "config.discriminator.base_channels"),
    ],
)
def test_a_recipe_may_set_fields_in_advance_but_a_flag_may_not(recipe, field):
    check_unused_fields(recipe)
    with pytest.raises(JanusError, match=re.escape(field)):
        check_unused_fields(recipe, [field])


def test_flags_of_other_stages_and_default_values_are_accepted():
    given = [f"{STAGE}.initialisation.llm", "config.samples.max_new_tokens", "config.stage"]
    check_unused_fields(janus(stage=2, S__initialisation__llm="x"), given)


@pytest.mark.parametrize("name", recipe_names())
def test_our_recipes_have_an_effect_in_every_stage(name):
    config = load_recipe(name)
    recipe = from_config(recipe_class(config), config)
    if not isinstance(recipe, Recipe):
        check_unused_fields(recipe)
        return
    preset = "janusflow_1.3b" if name.startswith("janusflow") else "janus_pro_1b"
    model = recipe.model or (preset if recipe.architecture is None else "")
    for stage in range(1, len(recipe.stages) + 1):
        check_unused_fields(replace(recipe, model=model, stage=stage))


def test_an_encoder_recipe_with_an_unused_field_is_refused():
    recipe = from_config(SiglipRecipe, load_recipe("siglip_small"))
    with pytest.raises(JanusError, match=r"config\.optimizer\.no_decay .* no effect without .*weight_decay above 0"):
        check_unused_fields(replace(recipe, optimizer=replace(recipe.optimizer, no_decay=("*/bias",))))


def test_an_evaluation_without_images_is_refused():
    recipe = replace(from_config(SiglipRecipe, load_recipe("siglip_small")), evaluate_every=5)
    check_unused_fields(recipe)
    with pytest.raises(JanusError, match=r"evaluate_every .* no effect without config\.data\.eval_directories"):
        check_unused_fields(recipe, given=["config.evaluate_every"])


EXAMPLES = [
    shapes_tokenizer.RECIPE,
    shapes_janusflow.TOKENIZER,
    emoji_tokenizer.RECIPE,
    *(
        replace(recipe, stage=stage)
        for recipe in (
            emoji_janus.RECIPE,
            shapes_janus.RECIPE,
            shapes_janusflow.RECIPE,
            from_config(Recipe, shapes_finetune.get_config()),
        )
        for stage in range(1, len(recipe.stages) + 1)
    ),
    *(runs.recipe(stage, kind) for stage in (1, 2) for kind in ("janus", "flow")),
    recipes.VQ,
    recipes.VAE,
]


@pytest.mark.parametrize("recipe", EXAMPLES)
def test_the_recipes_of_the_example_and_of_the_tests_have_an_effect(recipe):
    check_unused_fields(recipe)
