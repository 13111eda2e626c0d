"""Rejects recipes that set fields without an effect.

A table for each kind of recipe states which fields have an effect only under a condition on other fields.
"""

import dataclasses
import fnmatch
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from janus_jax.config import JanusConfig
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.training.image_tokenizer.recipe import AutoencoderRecipe, VQRecipe
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.recipe import Recipe
from janus_jax.training.siglip import SiglipRecipe


class Rule(NamedTuple):
    """Fields that have an effect only under a condition.

    Attributes:
      fields: Pattern of the fields' paths, without "config.".
      has_effect: Whether the condition holds.
      needs: Description of the condition, for the message.
      in_advance: Whether a recipe may set the fields while they have no effect, for example the interval of an
        evaluation without held-out data. Such fields are rejected on the command line only.
    """

    fields: str
    has_effect: bool
    needs: str
    in_advance: bool = False


def check_unused_fields(recipe: Recipe | AutoencoderRecipe | SiglipRecipe, given: Collection[str] = ()) -> None:
    """Checks that every field that differs from its default has an effect.

    Only the current stage is checked, not the other stages.

    Args:
      recipe: The recipe, with a model (`init_from.open_initialisation`).
      given: Paths of the fields that were set on the command line, such as "config.stage".

    Raises:
      JanusError: A field has no effect.
    """
    changed = dict(_changed_fields(recipe))
    for rule in _rules(recipe):
        if rule.has_effect:
            continue
        for path in fnmatch.filter(changed, f"config.{rule.fields}"):
            if path in given or not rule.in_advance:
                raise JanusError(
                    f"{path} is {changed[path]!r:.80}, but it has no effect without {rule.needs}; omit it, or "
                    f"meet this condition."
                )


def _rules(recipe: Recipe | AutoencoderRecipe | SiglipRecipe) -> Iterable[Rule]:
    if isinstance(recipe, Recipe):
        return _stage_rules(recipe)
    return _tokenizer_rules(recipe) if isinstance(recipe, AutoencoderRecipe) else _encoder_rules(recipe)


def _encoder_rules(recipe: SiglipRecipe) -> Iterator[Rule]:
    yield from _optimizer_rules("optimizer", recipe.optimizer)
    for name in ("data.eval_split", "evaluate_every", "eval_images"):
        yield Rule(name, bool(recipe.data.eval_directories), "config.data.eval_directories", in_advance=True)


def _stage_rules(recipe: Recipe) -> Iterator[Rule]:
    stage, stage_name = recipe.current, f"stages.stage_{recipe.stage}"
    is_janus = isinstance(recipe.model_config, JanusConfig)
    tasks = {source.task for source in recipe.used_sources.values()}
    edits, interleaves = bool(tasks & {Task.EDITING, None}), bool(tasks & {Task.INTERLEAVED, None})
    prompts = bool(tasks & {Task.GENERATION, None})
    generates = prompts or edits or interleaves
    reads_features = edits and stage.editing.format.features
    understands = bool(tasks & {Task.UNDERSTANDING, Task.INTERLEAVED, None}) or reads_features
    reads_text = bool(tasks & {Task.TEXT, Task.UNDERSTANDING, Task.INTERLEAVED, None})
    samples, evaluation, start = recipe.samples, recipe.evaluation, stage.initialisation
    held_out = [
        name
        for name, source in recipe.sources.items()
        if source.held_out and stage.phases and stage.phases[-1].weights.get(name)
    ] or (stage.rl is not None and stage.rl.held_out)

    yield Rule("model", recipe.architecture is None, "an empty config.architecture")
    yield Rule("flow*", not is_janus, "a JanusFlow model", in_advance=True)
    is_aligned = recipe.flow is None or recipe.flow.align_weight > 0
    for name in ("flow.align_block", "flow.align_width"):
        yield Rule(name, is_aligned, "config.flow.align_weight above 0")
    yield Rule("keep.best_*", recipe.keep.best > 0, "config.keep.best above 0")

    where = f"{stage_name}.initialisation"
    yield Rule(f"{where}.model", start.source == "model", f"config.{where}.source=model")
    for name in ("llm", "und_encoder", "gen_encoder", "vae"):
        yield Rule(f"{where}.{name}", start.source == "parts", f"config.{where}.source=parts")
        yield Rule(f"{where}.{name}", name in recipe.model_config.pretrained_parts, f"a model with the part {name}")

    for name in ("temperature", "log_probs"):
        yield Rule(f"{stage_name}.rl.{name}", is_janus, "a Janus model")
    yield Rule(f"{stage_name}.rl.flow.*", not is_janus, "a JanusFlow model")

    where = f"{stage_name}.lora"
    yield Rule(f"{where}.*", stage.lora.rank > 0, f"config.{where}.rank above 0")
    yield from _optimizer_rules(f"{stage_name}.optimizer", stage.optimizer)
    muon = f"{stage_name}.optimizer.muon_learning_rate"
    yield Rule(muon, bool(stage.trained), f"config.{stage_name}.trained, because adapters use Adam")

    generation, text = "data of the task generation", "data of the task text or understanding"
    yield Rule(f"{stage_name}.supervision", reads_text, text, in_advance=True)
    yield Rule(f"{stage_name}.budget.text_targets", reads_text, text, in_advance=True)
    yield Rule(f"{stage_name}.budget.und_images", understands, "data of the task understanding", in_advance=True)
    for name in ("drop_condition", "first_sentence", "random_crop"):
        yield Rule(f"{stage_name}.{name}", prompts, generation, in_advance=True)
    for name in ("budget.gen_images", "precision.tokenizer"):
        yield Rule(f"{stage_name}.{name}", generates, generation, in_advance=True)
    editing = "data of the task editing"
    for name in ("budget.context_images", "editing.style", "editing.drop_source", "editing.drop_instruction"):
        yield Rule(f"{stage_name}.{name}", edits, editing, in_advance=True)
    interleaved = "data of the task interleaved"
    yield Rule(f"{stage_name}.editing.interleaved_features", interleaves, interleaved, in_advance=True)
    yield Rule("precomputed_image_tokens", generates, generation, in_advance=True)
    pixels = "config.precomputed_image_tokens=False"
    yield Rule(f"{stage_name}.random_crop", not recipe.precomputed_image_tokens, pixels, in_advance=True)
    encodes = not (is_janus and recipe.precomputed_image_tokens)
    yield Rule(f"{stage_name}.precision.tokenizer", encodes, pixels, in_advance=True)

    all_phases = [phase for one in recipe.stages for phase in one.phases]
    for name in recipe.sources:
        is_read = any(phase.weights.get(name) for phase in all_phases)
        needs = f"a weight in config.{stage_name}.phases.phase_1.weights.{name}"
        yield Rule(f"sources.{name}.*", is_read, needs, in_advance=True)
        is_last = any(one.phases[-1].weights.get(name) for one in recipe.stages if one.phases)
        needs = "a weight in the last phase of a stage"
        yield Rule(f"sources.{name}.held_out", is_last, needs, in_advance=True)

    needs = "config.sources.NAME.held_out"
    yield Rule("intervals.evaluate", bool(held_out), needs, in_advance=True)
    yield Rule("intervals.evaluate_batches", bool(held_out), needs, in_advance=True)
    needs = "config.samples.questions or config.samples.prompts"
    is_sampled = bool(samples.questions or samples.prompts or stage.rl)
    yield Rule("intervals.sample", is_sampled, needs, in_advance=True)
    yield Rule("samples.max_new_tokens", bool(samples.questions), "config.samples.questions", in_advance=True)
    for name in ("guidance_scale", "temperature", "steps", "seed"):
        yield Rule(f"samples.{name}", bool(samples.prompts), "config.samples.prompts", in_advance=True)
    yield Rule("samples.temperature", is_janus, "a Janus model", in_advance=True)
    yield Rule("samples.steps", not is_janus, "a JanusFlow model", in_advance=True)
    for name in ("intervals.benchmark", "evaluation.limit", "evaluation.batch_size"):
        yield Rule(name, bool(evaluation.benchmarks), "config.evaluation.benchmarks", in_advance=True)


def _tokenizer_rules(recipe: AutoencoderRecipe) -> Iterator[Rule]:
    losses, has_lpips = recipe.losses, bool(recipe.networks.vgg16)
    yield from _optimizer_rules("optimizer", recipe.optimizer)
    needs = "config.networks.vgg16 and config.networks.lpips"
    yield Rule("losses.perceptual", has_lpips or not losses.perceptual, needs, in_advance=True)
    if not isinstance(recipe, VQRecipe):
        return
    losses = recipe.losses
    yield Rule("losses.codebook", recipe.codebook.update == "gradient", "config.codebook.update=gradient")
    yield Rule("losses.entropy_temperature", losses.entropy > 0, "config.losses.entropy above 0")
    for name in ("losses.adversarial_start", "discriminator.*"):
        yield Rule(name, losses.adversarial > 0, "config.losses.adversarial above 0", in_advance=True)
    yield from _optimizer_rules("discriminator.optimizer", recipe.discriminator.optimizer)


def _optimizer_rules(where: str, optimizer: OptimizerConfig) -> Iterable[Rule]:
    yield Rule(f"{where}.floor", optimizer.schedule == "cosine", f"config.{where}.schedule=cosine")
    yield Rule(f"{where}.no_decay", optimizer.weight_decay > 0, f"config.{where}.weight_decay above 0")


def _changed_fields(value: Any, default: Any = dataclasses.MISSING, where: str = "config") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of each field that differs from its default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if default is None:
            yield where, value
        for field in dataclasses.fields(value):
            of_field = field.default_factory() if callable(field.default_factory) else field.default
            of_field = getattr(default, field.name, of_field)
            yield from _changed_fields(getattr(value, field.name), of_field, f"{where}.{field.name}")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _changed_fields(item, where=f"{where}.{name}")
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        name = where.rpartition(".")[2].removesuffix("s")
        for number, item in enumerate(value, 1):
            yield from _changed_fields(item, where=f"{where}.{name}_{number}")
    elif value != default:
        yield where, value
