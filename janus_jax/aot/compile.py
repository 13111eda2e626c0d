"""Compiles a program for a mesh of devices that need not be attached, and reads its memory use."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from janus_jax.accelerators import Platform
from janus_jax.aot.collectives import Collective, read_collectives
from janus_jax.aot.topologies import Topology
from janus_jax.batch import Batch
from janus_jax.data.pipeline.packing import ImageShapes, empty_batch
from janus_jax.models.target_platform import target_platform
from janus_jax.sharding import batch_sharding
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import StageSetup


@dataclass(frozen=True)
class Program:
    """A compiled program and its memory on each device, or the reason why compilation ran out of memory.

    Attributes:
      name: Short name for reports.
      inputs: Bytes of each group of inputs.
      temporaries: Bytes in addition to the inputs, including results that do not reuse an input's buffer. If
        compilation ran out of memory: the bytes that the compiler asked for.
      arguments: Bytes of all inputs with the compiler's padding; None if compilation ran out of memory.
      collectives: Its collectives, in program order.
      error: Message of the compiler if it ran out of memory.
    """

    name: str
    inputs: Mapping[str, int]
    temporaries: int
    arguments: int | None
    collectives: Sequence[Collective] = ()
    error: str = ""

    @property
    def padding(self) -> int:
        """Bytes that the compiler's layouts add to the inputs."""
        return 0 if self.arguments is None else max(0, self.arguments - sum(self.inputs.values()))

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return (sum(self.inputs.values()) if self.arguments is None else self.arguments) + self.temporaries


def compile_training(recipe: Recipe, setup: StageSetup, mesh: Mesh, topology: Topology) -> Program:
    """Compiles the training step of the recipe's current stage."""
    state, batch = setup.abstract, training_batch(recipe, mesh)
    with target_platform(topology.accelerator.platform):
        lowered = setup.step.lower(state, batch)
    inputs = {
        "trained parameters": state.params,
        "frozen parameters": state.frozen,
        "optimizer state": state.opt_state,
        "parameter average": state.ema,
        "batch": batch,
    }
    return compile_lowered("step", lowered, inputs, mesh, topology)[0]


def training_batch(recipe: Recipe, mesh: Mesh) -> Batch:
    """Shapes and shardings of the batches of the recipe's current stage."""
    config, stage = recipe.model_config, recipe.current
    sizes = config.und_encoder.image_size, config.gen_image_size
    images = ImageShapes.of(sizes, config.num_gen_tokens, config.latent_shape, recipe.precomputed_image_tokens)
    return abstract_batch(empty_batch(1, stage.budget, images), stage.batch_size, mesh)


def abstract_batch(example: Batch, batch_size: int, mesh: Mesh) -> Batch:
    """Shapes and shardings of a batch of `batch_size` sequences like the one in `example`."""
    sharding = batch_sharding(mesh)
    batch: Batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype, sharding=sharding), example
    )
    return batch


def with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """Shape of an array with this sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes, on each device."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


# Without a device XLA cannot measure which kernel is fastest, and its default choice may be a Triton kernel that does
# not compile. cuBLAS supports all products.
_COMPILER_OPTIONS: Mapping[Platform, dict[str, bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_lowered(
    name: str, lowered: Any, inputs: Mapping[str, Any], mesh: Mesh, topology: Topology
) -> tuple[Program, Any]:
    """Compiles a lowered program.

    Args:
      inputs: Shapes and shardings of the program's inputs, by group.

    Returns:
      The program, and the executable or None if the compiler ran out of memory.
    """
    sizes = {group: size for group, tree in inputs.items() if (size := bytes_per_device(tree))}
    try:
        executable = lowered.compile(compiler_options=_COMPILER_OPTIONS.get(topology.accelerator.platform))
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        needed = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT]?)", message)
        temporaries = int(float(needed[1]) * _UNITS[needed[2]]) if needed else 0
        return Program(name, sizes, temporaries, None, error=message[:300]), None
    memory = executable.memory_analysis()
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + new_outputs + memory.generated_code_size_in_bytes
    collectives = read_collectives(executable.as_text(), mesh, topology)
    return Program(name, sizes, temporaries, memory.argument_size_in_bytes, collectives), executable
