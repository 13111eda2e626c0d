"""Compiles a program for a mesh of devices that need not be attached, and reads how much memory it uses."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from janus_jax.accelerators import Platform
from janus_jax.aot.collectives import Collective, read_collectives
from janus_jax.aot.topologies import Topology
from janus_jax.batch import Batch
from janus_jax.data.pipeline.packing import Budget, ImageShapes, empty_batch
from janus_jax.models.target_platform import target_platform
from janus_jax.sharding import batch_sharding
from janus_jax.training.recipe import Recipe
from janus_jax.training.rl.config import PolicyOptimization
from janus_jax.training.rl.objective import REFERENCE, PolicyBatch, make_policy
from janus_jax.training.setup import StageSetup


@dataclass(frozen=True)
class Program:
    """Memory and collectives of a compiled program. All sizes are bytes on each device.

    The compiler may find that the program needs more memory than a device has, and refuse it.

    Attributes:
      name: Short name for reports.
      inputs: Size of each group of inputs.
      temporaries: Size of everything but the inputs, including results that do not reuse an input's buffer. Of a
        refused program: the size that the compiler reports.
      arguments: Size of all inputs with the compiler's padding; None for a refused program.
      collectives: Collectives in program order; none for a refused program.
      error: Message of the compiler that refused the program, or "".
    """

    name: str
    inputs: Mapping[str, int]
    temporaries: int
    arguments: int | None
    collectives: Sequence[Collective] = ()
    error: str = ""

    @property
    def padding(self) -> int:
        """Size that the compiler's memory layouts add to the inputs."""
        return 0 if self.arguments is None else max(0, self.arguments - sum(self.inputs.values()))

    @property
    def total(self) -> int:
        """Size of the program's memory."""
        return (sum(self.inputs.values()) if self.arguments is None else self.arguments) + self.temporaries


RL_PROMPT_LENGTH = 64
"""Tokens of the prompts that reinforcement learning is compiled for."""


def compile_training(recipe: Recipe, setup: StageSetup, mesh: Mesh, topology: Topology) -> Program:
    """Compiles the training step of the recipe's current stage."""
    state, batch = setup.abstract, training_batch(recipe, mesh)
    with target_platform(topology.accelerator.platform):
        lowered = setup.step.lower(state, batch)
    inputs = {
        "trained parameters": state.params,
        "frozen parameters": {name: part for name, part in state.frozen.items() if name != REFERENCE},
        "reference": state.frozen.get(REFERENCE, {}),
        "optimizer state": state.opt_state,
        "parameter average": state.ema,
        "batch": batch,
    }
    return compile_lowered("step", lowered, inputs, mesh, topology)[0]


def training_batch(recipe: Recipe, mesh: Mesh) -> Any:
    """Returns the shapes and shardings of a batch of the recipe's current stage."""
    config, stage = recipe.model_config, recipe.current
    if stage.rl is not None:
        return _policy_batch(recipe, stage.rl, mesh)
    sizes = config.und_encoder.image_size, config.gen_image_size
    images = ImageShapes.of(sizes, config.num_gen_tokens, config.latent_shape, recipe.precomputed_image_tokens)
    return abstract_batch(empty_batch(1, stage.budget, images), stage.batch_size, mesh)


def _policy_batch(recipe: Recipe, rl: PolicyOptimization, mesh: Mesh) -> PolicyBatch:
    """Returns the shapes of the images of one update, with prompts of `RL_PROMPT_LENGTH` tokens."""
    config, count, sharding = recipe.model_config, recipe.current.batch_size // rl.minibatches, batch_sharding(mesh)
    sizes = ImageShapes(config.und_encoder.image_size, config.gen_image_size)

    def make() -> PolicyBatch:
        prompt = empty_batch(1, Budget(RL_PROMPT_LENGTH, 0, 0, 0), sizes)._replace(text_targets=None, gen_starts=None)
        policy = make_policy(config, rl)
        trajectories, distributions = policy.example(config, jax.tree.map(jnp.asarray, prompt), count)
        if rl.updates == 1:
            return PolicyBatch(trajectories, jnp.zeros(count))
        old = jnp.zeros((count, policy.num_actions(trajectories)))
        return PolicyBatch(trajectories, jnp.zeros(count), old, distributions if rl.loss.beta else None)

    batch: PolicyBatch = jax.tree.map(lambda leaf: with_sharding(leaf, sharding), jax.eval_shape(make))
    return batch


def abstract_batch(example: Batch, batch_size: int, mesh: Mesh) -> Batch:
    """Returns the shapes and shardings of `batch_size` sequences. `example` is a batch of one such sequence."""
    sharding = batch_sharding(mesh)
    batch: Batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype, sharding=sharding), example
    )
    return batch


def with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array together with a sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that a tree of sharded arrays, or of their shapes, takes on each device."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


# Without a device XLA cannot measure which kernel is fastest. Its default may then be a Triton kernel that does not
# compile, so cuBLAS computes all products.
_COMPILER_OPTIONS: Mapping[Platform, dict[str, bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_lowered(
    name: str, lowered: Any, inputs: Mapping[str, Any], mesh: Mesh, topology: Topology
) -> tuple[Program, Any]:
    """Compiles a lowered program (a `jax.stages.Lowered`).

    Args:
      name: Short name for reports.
      inputs: Shapes and shardings of the program's inputs, by group.

    Returns:
      The program, and its executable; None if the compiler refused the program for its memory.
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
