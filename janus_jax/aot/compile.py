"""A recipe's training step, compiled for a mesh whose devices need not be here."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from janus_jax.batch import Batch
from janus_jax.data.pipeline.packing import ImageShapes, empty_batch
from janus_jax.models.target_platform import Platform, compiling_for
from janus_jax.sharding import batch_sharding
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import StageSetup


@dataclass(frozen=True)
class Compiled:
    """A program, or why there is none.

    Attributes:
      name: what it does.
      inputs: bytes of what it is given, on each device, by what that is.
      temporaries: bytes beside these on each device, results that take no input's place included; where the compiler
        gave up for want of memory, what it says it needed.
      arguments: bytes of all inputs as they lie in memory; None where the compiler gave up.
      text: the compiled program; "" where the compiler gave up.
      failure: what the compiler said then.
      checkpoint: bytes of all that a checkpoint holds, on all devices together.
    """

    name: str
    inputs: Mapping[str, int]
    temporaries: int
    arguments: int | None
    text: str
    failure: str = ""
    checkpoint: int = 0

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return (sum(self.inputs.values()) if self.arguments is None else self.arguments) + self.temporaries


def compile_training(recipe: Recipe, assembly: StageSetup, mesh: Mesh, platform: Platform) -> Compiled:
    """The recipe's training step, as it is assembled on the mesh."""
    abstract, batch = assembly.abstract, abstract_batch(recipe, mesh)
    with compiling_for(platform):
        lowered = assembly.step.lower(abstract, batch)
    inputs = {
        "weights that train": abstract.params,
        "weights that do not": abstract.frozen,
        "optimizer": abstract.opt_state,
        "average": abstract.ema,
        "batch": batch,
    }
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    return replace(compile_lowered("step", lowered, platform, inputs)[0], checkpoint=whole)


def abstract_batch(recipe: Recipe, mesh: Mesh) -> Batch:
    """The shapes of the batches that the recipe's current stage trains on."""
    config, stage = recipe.model_config, recipe.current
    sides = config.und_encoder.image_size, config.gen_image_size
    pictures = ImageShapes.of(sides, config.gen_tokens, config.latent_shape, recipe.precomputed_image_tokens)
    return batch_of_rows(empty_batch(1, stage.budget, pictures), stage.batch_size, mesh)


def held(tree: Any) -> int:
    """Bytes of a tree's arrays on each device."""
    return sum(
        leaf.dtype.itemsize * functools.reduce(int.__mul__, leaf.sharding.shard_shape(leaf.shape), 1)
        for leaf in jax.tree.leaves(tree)
    )


def batch_of_rows(one: Batch, rows: int, mesh: Mesh) -> Batch:
    """The shapes of a batch of rows like the one of `one`."""
    sharding = batch_sharding(mesh)
    abstract: Batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=sharding), one
    )
    return abstract


def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array that lies so."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


# Without a device nobody can measure which kernel of a product is the quickest, and a guess may be one that XLA cannot
# make: cuBLAS has all of them.
_OPTIONS: Mapping[Platform, dict[str, bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_lowered(name: str, lowered: Any, platform: Platform, inputs: Mapping[str, Any]) -> tuple[Compiled, Any]:
    """A lowered program, compiled, and the executable; None where the compiler gave up for want of memory.

    Args:
      inputs: shapes and shardings of what it is given, by what that is.
    """
    parts = {part: size for part, tree in inputs.items() if (size := held(tree))}
    try:
        executable = lowered.compile(compiler_options=_OPTIONS.get(platform))
    except jax.errors.JaxRuntimeError as error:
        told = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in told:
            raise
        needed = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT]?)", told)
        temporaries = int(float(needed[1]) * _SIZES[needed[2]]) if needed else 0
        return Compiled(name, parts, temporaries, None, "", told[:300]), None
    memory = executable.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + new + memory.generated_code_size_in_bytes
    return Compiled(name, parts, temporaries, memory.argument_size_in_bytes, executable.as_text()), executable
