"""What samples, compiled for a mesh whose devices need not be here: the prompts' pass, and the loop that follows."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from janus_jax.aot.compile import Compiled, batch_of_rows, compile_lowered, placed
from janus_jax.batch import Batch
from janus_jax.config import Execution, JanusConfig
from janus_jax.data.pipeline.packing import Budget, ImageShapes, empty_batch
from janus_jax.generation import image_tokens as images
from janus_jax.generation import rectified_flow as flow
from janus_jax.generation import text
from janus_jax.generation.padding import CACHE_STEP, round_up
from janus_jax.generation.sampling import SamplingConfig
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.llama import KVCache
from janus_jax.models.target_platform import Platform, compiling_for
from janus_jax.sharding import batch_sharding, check_mesh, param_shardings, use_mesh
from janus_jax.training.recipe import Recipe

SamplingJob = Literal["generate", "chat", "evaluate"]


@dataclass(frozen=True)
class Sizes:
    """Of what is sampled.

    Attributes:
      rows: prompts on each of the devices that share them.
      prompt: places of one.
      und_images: images in one.
      new: places that follow.
    """

    rows: int
    prompt: int
    und_images: int
    new: int


# A caption; a question about a picture and an answer to read; a benchmark's question and a short answer, as many at a
# time as janus-evaluate asks.
SAMPLED: Mapping[SamplingJob, Sizes] = {
    "generate": Sizes(rows=1, prompt=64, und_images=0, new=576),
    "chat": Sizes(rows=1, prompt=768, und_images=1, new=512),
    "evaluate": Sizes(rows=16, prompt=704, und_images=1, new=16),
}


def compile_sampling(recipe: Recipe, mesh: Mesh, platform: Platform, job: SamplingJob) -> Iterator[Compiled]:
    """The programs of the job, one after the other; the second is missing where the first does not fit.

    Raises:
      JanusError: the mesh does not divide the model.
    """
    check_mesh(recipe.model_config, mesh)
    asked = _asked(recipe, mesh, SAMPLED[job])
    draws = _drawing_ids if isinstance(recipe.model_config, JanusConfig) else _drawing_flow
    way = draws if job == "generate" else _writing
    loop = way(asked)
    with compiling_for(platform), use_mesh(mesh):
        traced = loop.begin.trace(*loop.arguments)
        inputs = {"weights": asked.params, "batch": loop.arguments[2]}
        first, executable = compile_lowered("prompts", traced.lower(), platform, inputs)
    yield first
    if executable is None:
        return
    left = jax.tree.map(placed, traced.out_info, executable.output_shardings)
    with compiling_for(platform), use_mesh(mesh):
        lowered, state = loop.go_on(left)
        yield compile_lowered(loop.unit, lowered, platform, {"weights": asked.params, "cache": state})[0]


@dataclass(frozen=True)
class _Asked:
    """What all ways to sample are given: a model, its abstract parameters and prompts.

    Attributes:
      count: of prompts, on all devices.
    """

    model: Backbone
    params: Params
    mesh: Mesh
    sizes: Sizes
    count: int

    def prompts(self, rows: int) -> Batch:
        """So many, abstract."""
        config = self.model.config
        budget = Budget(self.sizes.prompt, self.sizes.und_images, 0, 0)
        one = empty_batch(1, budget, ImageShapes(config.und_encoder.image_size, config.gen_image_size))
        return batch_of_rows(one._replace(text_targets=None, gen_starts=None), rows, self.mesh)

    @property
    def first_slots(self) -> int:
        """Of the cache that the prompts' pass leaves."""
        return round_up(self.sizes.prompt + 1, CACHE_STEP)

    @property
    def last_slots(self) -> int:
        """Of the cache in the end."""
        return round_up(self.sizes.prompt + self.sizes.new, CACHE_STEP)


class _Loop(NamedTuple):
    """A way to sample.

    Attributes:
      unit: what the second program makes.
      begin, arguments: the first program.
      go_on: from what that leaves to the second program, lowered, and what goes from turn to turn of its loop.
    """

    unit: str
    begin: Any
    arguments: tuple[Any, ...]
    go_on: Callable[[Any], tuple[Any, Any]]


def _asked(recipe: Recipe, mesh: Mesh, sizes: Sizes) -> _Asked:
    dtype = recipe.current.precision.compute
    execution = Execution(dtype, dtype, recipe.resources.attention, layers="unrolled")
    boxed = abstract_params(recipe.model_config, execution)
    params = jax.tree.map(placed, nn.unbox(boxed), param_shardings(boxed, mesh))
    count = sizes.rows * mesh.shape["data"] * mesh.shape["fsdp"]
    return _Asked(make_model(recipe.model_config, execution), params, mesh, sizes, count)


def _writing(asked: _Asked) -> _Loop:
    model, params, sampling = asked.model, asked.params, SamplingConfig()
    stops = jax.ShapeDtypeStruct((1,), jnp.int32)
    prompts, keys = asked.prompts(asked.count), _keys(asked.count)

    def go_on(left: text.TextDecodeState) -> tuple[Any, Any]:
        state = left._replace(cache=_grown(left.cache, asked.last_slots))
        chunk = 16
        return text.advance.lower(model, params, state, sampling.params, stops, chunk, chunk, sampling.strategy), state

    arguments = (model, params, prompts, keys, sampling.params, stops, asked.first_slots, sampling.strategy)
    return _Loop("ids", text.start, arguments, go_on)


def _drawing_ids(asked: _Asked) -> _Loop:
    model, params, drawing = asked.model, asked.params, images.TokenSampler()
    knobs, strategy, scale = drawing.sampling.params, drawing.sampling.strategy, drawing.guidance_scale
    # Each prompt has its unconditional twin.
    prompts, keys = asked.prompts(2 * asked.count), _keys(asked.count, 1)

    def go_on(left: images.ImageDecodeState) -> tuple[Any, Any]:
        state = left._replace(cache=_grown(left.cache, asked.last_slots))
        return images.advance.lower(model, params, state, knobs, scale, CACHE_STEP, strategy), state

    arguments = (model, params, prompts, keys, knobs, scale, asked.first_slots, strategy)
    return _Loop("ids", images.start, arguments, go_on)


def _drawing_flow(asked: _Asked) -> _Loop:
    model, params, drawing = asked.model, asked.params, flow.FlowSampler()
    assert isinstance(model, JanusFlow)
    shape = (asked.count, *model.config.gen_encoder.latent_shape)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(asked.mesh))

    def go_on(left: flow.Prompted) -> tuple[Any, Any]:
        steps, scale = drawing.steps, drawing.guidance_scale
        lowered = flow.advance.lower(model, params, left, latents, scale, 0, steps, steps, drawing.sampler)
        return lowered, (left, latents)

    return _Loop("steps", flow.prefill, (model, params, asked.prompts(asked.count), 1, True), go_on)


def _keys(count: int, *each: int) -> jax.ShapeDtypeStruct:
    kind = jax.eval_shape(functools.partial(jax.random.split, num=count), jax.random.key(0))
    return jax.ShapeDtypeStruct((count, *each), kind.dtype)


def _grown(cache: KVCache, slots: int) -> Any:
    def longer(leaf: Any, axis: int) -> jax.ShapeDtypeStruct:
        shape = (*leaf.shape[:axis], slots, *leaf.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    layers = jax.tree.map(lambda leaf: longer(leaf, 2), cache.layers)
    return KVCache(layers, longer(cache.segment_ids, 1), cache.length)  # type: ignore[arg-type]
