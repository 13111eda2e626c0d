"""Compiles the two programs of sampling, prefill and decode, for devices that need not be attached."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from janus_jax.aot.compile import (
    RL_PROMPT_LENGTH,
    Program,
    abstract_batch,
    bytes_per_device,
    compile_lowered,
    with_sharding,
)
from janus_jax.aot.topologies import Topology
from janus_jax.batch import Batch
from janus_jax.config import Execution, Quantization
from janus_jax.data.pipeline.packing import Budget, ImageShapes, empty_batch
from janus_jax.generation import rectified_flow
from janus_jax.generation.decode import DecodeParams, DecodeSpec, DecodeState, decode, prefill
from janus_jax.generation.image_tokens import TokenSampler
from janus_jax.generation.padding import CACHE_STEP, round_up
from janus_jax.generation.sampling import SamplingConfig
from janus_jax.generation.stochastic_flow import integrate_path
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.janus import Janus
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.llama import KVCache
from janus_jax.models.target_platform import target_platform
from janus_jax.sharding import batch_sharding, check_mesh, num_data_shards, param_shardings, use_mesh
from janus_jax.training.param_paths import merge
from janus_jax.training.recipe import Recipe
from janus_jax.training.rl.config import PolicyOptimization
from janus_jax.training.rl.objective import REFERENCE
from janus_jax.training.rl.rollouts import gathered_shardings, rollout_execution
from janus_jax.training.setup import StageSetup

SamplingWorkload = Literal["generate", "chat", "evaluate"]

_TEXT_CHUNK = 16


@dataclass(frozen=True)
class SamplingShape:
    """Size of a sampling workload.

    Attributes:
      prompts: Number of prompts per data shard.
      prompt_length: Number of tokens in a prompt.
      und_images: Number of input images in a prompt.
      new_tokens: Number of tokens generated after a prompt.
    """

    prompts: int
    prompt_length: int
    und_images: int
    new_tokens: int


SAMPLING_SHAPES: Mapping[SamplingWorkload, SamplingShape] = {
    # An image for a caption.
    "generate": SamplingShape(prompts=1, prompt_length=64, und_images=0, new_tokens=576),
    # A long answer to a question about an image.
    "chat": SamplingShape(prompts=1, prompt_length=768, und_images=1, new_tokens=512),
    # Short answers to questions of a benchmark, in batches of the size that janus-evaluate uses.
    "evaluate": SamplingShape(prompts=16, prompt_length=704, und_images=1, new_tokens=16),
}


class _Sampler(NamedTuple):
    """Prefill and decode of one sampling method.

    Attributes:
      prefill: Jitted prefill function.
      arguments: Positional arguments of `prefill`; the third one is the batch of prompts.
      options: Keyword arguments of `prefill`.
      lower_decode: Takes the shapes of the prefill's outputs; returns the lowered decode loop and the shapes of its
        state.
    """

    prefill: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    lower_decode: Callable[[Any], tuple[Any, Any]]


def compile_sampling(
    recipe: Recipe, mesh: Mesh, topology: Topology, workload: SamplingWorkload, quantization: Quantization = "none"
) -> list[Program]:
    """Compiles prefill and decode. If prefill needs more memory than a device has, decode is not compiled.

    Raises:
      JanusError: The mesh does not fit the model (`sharding.check_mesh`).
    """
    check_mesh(recipe.model_config, mesh)
    dtype = recipe.execution.dtype
    attention = recipe.resources.attention
    execution = Execution(dtype, dtype, attention, layers="unrolled", quantization=quantization)
    boxed = abstract_params(make_model(recipe.model_config, execution))
    params = jax.tree.map(with_sharding, nn.unbox(boxed), param_shardings(boxed, mesh))
    model, shape = make_model(recipe.model_config, execution), SAMPLING_SHAPES[workload]
    if workload != "generate":
        make_sampler = _text_sampler
    else:
        make_sampler = _flow_sampler if isinstance(model, JanusFlow) else _token_sampler
    return _compile_sampler(make_sampler(model, params, shape, mesh), params, mesh, topology)


def _compile_sampler(
    sampler: "_Sampler", params: Params, mesh: Mesh, topology: Topology, *, prefix: str = ""
) -> list[Program]:
    with target_platform(topology.accelerator.platform), use_mesh(mesh):
        traced = sampler.prefill.trace(*sampler.arguments, **sampler.options)
        inputs = {"parameters": params, "batch": sampler.arguments[2]}
        prefill_program, executable = compile_lowered(f"{prefix}prefill", traced.lower(), inputs, mesh, topology)
        if executable is None:
            return [prefill_program]
        outputs = jax.tree.map(with_sharding, traced.out_info, executable.output_shardings)
        lowered, state = sampler.lower_decode(outputs)
        inputs = {"parameters": params, "state": state}
        decode_program, _ = compile_lowered(f"{prefix}decode", lowered, inputs, mesh, topology)
        return [prefill_program, decode_program]


def compile_rollout(recipe: Recipe, setup: StageSetup, mesh: Mesh, topology: Topology) -> list[Program]:
    """Compiles the rollout of reinforcement learning: prefill and decode of all images that are sampled at a time.

    The inputs include the state of training, which stays on the devices. Each image has its own copy of its prompt.
    """
    rl, state = recipe.current.rl, setup.abstract
    assert rl is not None
    count = (rl.rollout_size or recipe.current.batch_size) // num_data_shards(mesh)
    shape = SamplingShape(count, RL_PROMPT_LENGTH, 0, recipe.model_config.num_gen_tokens)
    model = make_model(recipe.model_config, rollout_execution(recipe.execution, rl))
    if rl.rollout_params == "copied":
        boxed = abstract_params(model)
        params = jax.tree.map(with_sharding, nn.unbox(boxed), gathered_shardings(boxed, mesh))
    else:
        frozen = {name: part for name, part in state.frozen.items() if name != REFERENCE}
        params = merge(state.params, frozen)
    if isinstance(model, JanusFlow):
        sampler = _path_sampler(model, params, shape, mesh, rl)
    else:
        sampler = _token_sampler(model, params, shape, mesh, TokenSampler(rl.guidance_scale, rl.temperature))
    programs = _compile_sampler(sampler, params, mesh, topology, prefix="rollout ")
    others = {"optimizer state": state.opt_state, "parameter average": state.ema}
    if rl.rollout_params == "copied":
        others |= {"parameters of training": state.params, "frozen parameters": state.frozen}
    else:
        others |= {"reference": state.frozen.get(REFERENCE, {})}
    resident = {name: size for name, tree in others.items() if (size := bytes_per_device(tree))}
    return [
        replace(
            program,
            inputs={**program.inputs, **resident},
            arguments=program.arguments and program.arguments + sum(resident.values()),
        )
        for program in programs
    ]


def _text_sampler(model: Backbone, params: Params, shape: SamplingShape, mesh: Mesh) -> _Sampler:
    config = SamplingConfig()
    spec = DecodeSpec(Backbone.embed_text, Backbone.text_logits, config.strategy)
    settings = DecodeParams(config.params, stop_tokens=np.zeros(1, np.int32))
    prompts = _prompts(model, shape, mesh)
    arguments = (model, params, prompts, _keys(prompts.shape[0]), settings)
    return _decoder(arguments, spec, shape, _TEXT_CHUNK)


def _token_sampler(
    model: Backbone, params: Params, shape: SamplingShape, mesh: Mesh, sampler: TokenSampler | None = None
) -> _Sampler:
    sampler = sampler or TokenSampler()
    spec = DecodeSpec(Janus.embed_image_tokens, Janus.image_logits, sampler.sampling.strategy)
    settings = DecodeParams(sampler.sampling.params, sampler.guidance_scale)
    # With guidance, each prompt has an unconditional sequence.
    per_prompt = 1 if sampler.guidance_scale == 1 else 2
    prompts = _prompts(model, shape, mesh, per_prompt=per_prompt)
    arguments = (model, params, prompts, _keys(prompts.shape[0] // per_prompt), settings)
    return _decoder(arguments, spec, shape, CACHE_STEP)


def _decoder(arguments: tuple[Any, ...], spec: DecodeSpec, shape: SamplingShape, steps: int) -> _Sampler:
    model, params, _, _, settings = arguments
    # The cache is largest at the last tokens.
    slots = round_up(shape.prompt_length + shape.new_tokens, CACHE_STEP)

    def with_slots(leaf: Any, axis: int) -> Any:
        sizes = (*leaf.shape[:axis], slots, *leaf.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(sizes, leaf.dtype, sharding=leaf.sharding)

    def lower_decode(state: DecodeState) -> tuple[Any, Any]:
        layers = jax.tree.map(lambda leaf: with_slots(leaf, 2), state.cache.layers)
        cache = KVCache(layers, with_slots(state.cache.segment_ids, 1), state.cache.length)
        state = state._replace(tokens=with_slots(state.tokens, 1), cache=cache)
        return decode.lower(model, params, state, settings, steps, spec=spec), state

    options = {"slots": round_up(shape.prompt_length + 1, CACHE_STEP), "spec": spec}
    return _Sampler(prefill, arguments, options, lower_decode)


def _flow_sampler(model: Backbone, params: Params, shape: SamplingShape, mesh: Mesh) -> _Sampler:
    assert isinstance(model, JanusFlow)
    sampler, prompts = rectified_flow.FlowSampler(), _prompts(model, shape, mesh)
    latents_shape = (prompts.shape[0], *model.config.gen_encoder.latent_shape)
    latents = jax.ShapeDtypeStruct(latents_shape, jnp.float32, sharding=batch_sharding(mesh))

    def lower_decode(prompt_cache: rectified_flow.PromptCache) -> tuple[Any, Any]:
        interval = (0, sampler.steps, sampler.steps)
        lowered = rectified_flow.integrate.lower(
            model,
            params,
            prompt_cache,
            latents,
            interval,
            guidance_scale=sampler.guidance_scale,
            solver=sampler.sampler,
        )
        return lowered, (prompt_cache, latents)

    return _Sampler(rectified_flow.prefill, (model, params, prompts, 1, True), {}, lower_decode)


def _path_sampler(
    model: JanusFlow, params: Params, shape: SamplingShape, mesh: Mesh, rl: PolicyOptimization
) -> _Sampler:
    """Returns the sampler of the rollouts of a JanusFlow model."""
    prompts = _prompts(model, shape, mesh)
    keys = jax.ShapeDtypeStruct(prompts.tokens.shape[:1], jax.random.key(0).dtype)

    def lower_decode(prompt_cache: rectified_flow.PromptCache) -> tuple[Any, Any]:
        lowered = integrate_path.lower(
            model,
            params,
            prompt_cache,
            keys,
            steps=rl.flow.rollout,
            guidance_scale=rl.guidance_scale,
            noise_level=rl.flow.noise_level,
        )
        return lowered, prompt_cache

    return _Sampler(rectified_flow.prefill, (model, params, prompts, 1, rl.guidance_scale != 1), {}, lower_decode)


def _prompts(model: Backbone, shape: SamplingShape, mesh: Mesh, per_prompt: int = 1) -> Batch:
    """Returns the shapes of a batch of prompts with `per_prompt` sequences each."""
    config = model.config
    budget = Budget(shape.prompt_length, shape.und_images, 0, 0)
    example = empty_batch(1, budget, ImageShapes(config.und_encoder.image_size, config.gen_image_size))
    batch_size = per_prompt * shape.prompts * num_data_shards(mesh)
    return abstract_batch(example._replace(text_targets=None, gen_starts=None), batch_size, mesh)


def _keys(count: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of random keys for `count` prompts with one sample each."""
    return jax.ShapeDtypeStruct((count, 1), jax.random.key(0).dtype)
