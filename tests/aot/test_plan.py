"""Tests of how a mesh splits the parameters, and of the collectives of a training step.

`plans/` holds the mesh axes that split each parameter. `python -m tests.aot.test_plan` stores the current ones.
"""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.aot.collectives import read_collectives
from janus_jax.aot.compile import compile_training
from janus_jax.aot.topologies import find_topology
from janus_jax.config import PRESETS
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.uvit import _by_convolution
from janus_jax.sharding import batch_sharding, make_mesh, param_shardings, use_mesh
from janus_jax.training.config_dicts import from_config
from janus_jax.training.objectives import make_objective
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage
from tests.training import runs

STORED = Path(__file__).parent / "plans"
MESHES = {"fsdp": (1, 8, 1), "data_fsdp": (2, 4, 1), "fsdp_tensor": (1, 4, 2), "data_fsdp_tensor": (2, 2, 2)}
MODELS = ("janus_pro_1b", "janus_pro_7b", "janusflow_1.3b")


def plan(model, mesh):
    """Returns one line per parameter: its shape and the mesh axes that split it."""
    lines, boxed = [], abstract_params(make_objective(PRESETS[model]).model)
    shardings = flatten_dict(param_shardings(boxed, make_mesh(*MESHES[mesh])), sep="/")
    for name, leaf in sorted(flatten_dict(nn.unbox(boxed), sep="/").items()):
        axes = (*shardings[name].spec, *(None,) * leaf.ndim)[: leaf.ndim]
        sides = " ".join(f"{side}{f'/{axis}' if axis else ''}" for side, axis in zip(leaf.shape, axes, strict=True))
        lines.append(f"{name}: {sides}\n")
    return "".join(lines)


@pytest.mark.parametrize(("model", "mesh"), [*itertools.product(MODELS, MESHES)])
def test_parameters_are_split_as_stored_on_every_mesh(model, mesh):
    assert plan(model, mesh) == (STORED / f"{model}.txt").read_text(encoding="utf-8")


def recipe(data, fsdp, tensor, kind="janus", **changes):
    """Returns a recipe of a tiny model at stage 2, with full remat, in float32.

    Args:
      changes: Other settings of `resources`.
    """
    whole = from_config(Recipe, runs.get_config(kind))
    stages = (whole.stages[0], replace(whole.stages[1], batch_size=8))
    resources = replace(whole.resources, data=data, fsdp=fsdp, tensor=tensor, **{"remat": "full"} | changes)
    return replace(whole, stage=2, stages=stages, resources=resources)


def collectives(sizes, **changes):
    mesh, stage = make_mesh(*sizes), recipe(*sizes, **changes)
    return compile_training(stage, set_up_stage(stage, mesh), mesh, find_topology("cpu:1x8")).collectives


def largest_parameters():
    """Returns the bytes of the largest parameter of one layer, and of the largest parameter that is not stacked."""
    params = flatten_dict(set_up_stage(recipe(1, -1, 1), make_mesh(1, -1, 1)).abstract.params, sep="/")
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in params.items()}
    in_layers = [size // runs.MODEL.llm.depth for name, size in sizes.items() if name.startswith("llm/layers/")]
    return max(in_layers), max(size for name, size in sizes.items() if not name.startswith("llm/layers/"))


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", ["fsdp", "fsdp_tensor"])
def test_parameters_are_gathered_layer_by_layer(mesh):
    """The limits exclude an accidental all-gather of all layers or of the whole model."""
    depth, (of_layer, unstacked) = runs.MODEL.llm.depth, largest_parameters()
    gathered = [one for one in collectives(MESHES[mesh]) if one.kind == "all-gather" and one.dtype == "f32"]
    activations = 8 // MESHES[mesh][1] * recipe(1, 1, 1).current.budget.tokens * runs.MODEL.llm.width * 4
    layers = [one for one in gathered if one.trip_counts == (depth,)]
    assert layers
    assert {one.axes for one in layers} <= {("fsdp",), ("fsdp", "tensor"), ("tensor",)}
    assert max(one.size for one in layers) <= max(of_layer, activations)
    assert max(one.size for one in gathered) <= max(unstacked, activations)
    # Gathers each matrix of a layer once in the forward pass and once in the backward pass.
    matrices = sum(one.size for one in layers if one.axes == ("fsdp",))
    weights = sum(
        leaf.dtype.itemsize * math.prod(leaf.shape)
        for name, leaf in flatten_dict(nn.unbox(abstract_params(make_model(runs.MODEL))), sep="/").items()
        if name.startswith("llm/layers/")
    )
    assert matrices * depth <= 2.1 * weights


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", ["fsdp", "fsdp_tensor"])
def test_head_is_gathered_once_for_all_chunks(mesh):
    few, many = (collectives(MESHES[mesh], logits_chunk=chunk) for chunk in (512, 16))
    sent = [sum(one.count * one.ici_bytes for one in found) for found in (few, many)]
    assert sent[1] <= 1.02 * sent[0]
    # The number of chunks depends on the data, so each collective in the loop over chunks counts once above.
    in_chunks = [one for found in (few, many) for one in found if None in one.trip_counts]
    assert not {"data", "fsdp"} & {axis for one in in_chunks for axis in one.axes}
    assert bool(in_chunks) == ("tensor" in mesh)


@pytest.mark.parametrize("mesh", ["fsdp", "data_fsdp", "data_fsdp_tensor"])
def test_depthwise_convolution_gathers_its_kernel_only(mesh):
    """Without a constraint on the kernel, the compiler splits the convolution by channels and sends all activations."""
    mesh = make_mesh(*MESHES[mesh])
    rows, split = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec(None, None, None, "fsdp"))
    x = jax.ShapeDtypeStruct((16, 8, 8, 32), jnp.float32, sharding=rows)
    kernel = jax.ShapeDtypeStruct((7, 7, 1, 32), jnp.float32, sharding=split)
    # Tests the implementation for accelerators; CPUs use another one.
    gradient = jax.grad(lambda x, kernel: jnp.square(_by_convolution(x, kernel)).sum(), (0, 1))
    with use_mesh(mesh):
        text = jax.jit(gradient, out_shardings=(rows, split)).lower(x, kernel).compile().as_text()
    found = read_collectives(text, mesh, find_topology("cpu:1x8"))
    assert {one.kind for one in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert max(one.size for one in found) == kernel.size * 4


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    STORED.mkdir(exist_ok=True)
    for model in MODELS:
        (STORED / f"{model}.txt").write_text(plan(model, "fsdp"), encoding="utf-8")
