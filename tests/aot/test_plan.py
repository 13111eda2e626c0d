"""Which parameter is split over which axis of a mesh, against what is stored: no layout changes unseen.

`python -m tests.aot.test_plan` stores what the rules now say.
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
from janus_jax.config import PRESETS, Execution
from janus_jax.models.factory import abstract_model, abstract_params
from janus_jax.models.uvit import _by_convolution
from janus_jax.sharding import MESH_AXES, batch_sharding, make_mesh, param_shardings, use_mesh
from janus_jax.training.config_dicts import from_config
from janus_jax.training.objectives import training_model
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage
from tests.training import runs

STORED = Path(__file__).parent / "plans"
MESHES = {"fsdp": (1, 8, 1), "data_fsdp": (2, 4, 1), "fsdp_tensor": (1, 4, 2), "data_fsdp_tensor": (2, 2, 2)}
CASES = list(itertools.product(("janus_1.3b", "janus_pro_1b", "janus_pro_7b", "janusflow_1.3b"), MESHES))


def plan(model, mesh):
    """One line a parameter: its shape, and the axes that split it."""
    boxed = abstract_model(training_model(PRESETS[model], Execution()))
    shardings = flatten_dict(param_shardings(boxed, make_mesh(*MESHES[mesh])), sep="/")
    for name, leaf in sorted(flatten_dict(nn.unbox(boxed), sep="/").items()):
        axes = (*shardings[name].spec, *(None,) * leaf.ndim)[: leaf.ndim]
        sides = " ".join(f"{side}{f'/{axis}' if axis else ''}" for side, axis in zip(leaf.shape, axes, strict=True))
        yield f"{name}: {sides}"


def printed(model, mesh):
    return "\n".join(plan(model, mesh)) + "\n"


def stored(model, mesh):
    return STORED / f"{model}.{mesh}.txt"


@pytest.mark.parametrize(("model", "mesh"), CASES)
def test_parameters_are_split_as_is_stored(model, mesh):
    assert printed(model, mesh) == stored(model, mesh).read_text(encoding="utf-8")


def test_nothing_is_stored_of_what_is_gone():
    assert sorted(STORED.iterdir()) == sorted(stored(*case) for case in CASES)


def recipe(data, fsdp, tensor, kind="janus", **resources):
    """Of stage II, rematerialised, in float32 as CPUs like it."""
    whole = from_config(Recipe, runs.get_config(kind))
    stages = (whole.stages[0], replace(whole.stages[1], batch_size=8))
    laid = replace(whole.resources, data=data, fsdp=fsdp, tensor=tensor, remat="full", **resources)
    return replace(whole, stage=2, stages=stages, resources=laid)


def moved(sizes, **resources):
    mesh, asked = make_mesh(*sizes), recipe(*sizes, **resources)
    text = compile_training(asked, set_up_stage(asked, mesh), mesh, "cpu").text
    return read_collectives(text, mesh, find_topology("cpu:1x8"))


def largest_matrix():
    """Bytes of the largest parameter of one layer, and of any that is in no stack."""
    params = flatten_dict(set_up_stage(recipe(1, -1, 1), make_mesh(1, -1, 1)).abstract.params, sep="/")
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in params.items()}
    in_layers = [size // runs.MODEL.llm.depth for name, size in sizes.items() if name.startswith("llm/layers/")]
    return max(in_layers), max(size for name, size in sizes.items() if not name.startswith("llm/layers/"))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp", "fsdp_tensor"])
def test_a_layer_gathers_its_own_matrices_and_no_step_gathers_a_stack(mesh):
    """An accidental all-gather of all layers, or of the whole model, is larger than anything that is allowed here."""
    depth, (of_layer, alone) = runs.MODEL.llm.depth, largest_matrix()
    gathered = [one for one in moved(MESHES[mesh]) if one.kind == "all-gather" and one.dtype == "f32"]
    rows = 8 // MESHES[mesh][1] * recipe(1, 1, 1).current.budget.tokens * runs.MODEL.llm.width * 4
    layers = [one for one in gathered if one.loops == (depth,)]
    assert layers
    assert {one.axes for one in layers} <= {("fsdp",), ("fsdp", "tensor"), ("tensor",)}
    assert max(one.payload for one in layers) <= max(of_layer, rows)
    assert max(one.payload for one in gathered) <= max(alone, rows)
    # Once on the way there, once on the way back: each matrix of a layer, and not more.
    matrices = sum(one.payload for one in layers if one.axes == ("fsdp",))
    weights = sum(
        leaf.dtype.itemsize * math.prod(leaf.shape)
        for name, leaf in flatten_dict(nn.unbox(abstract_params(runs.MODEL)), sep="/").items()
        if name.startswith("llm/layers/")
    )
    assert matrices * depth <= 2.1 * weights


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp", "fsdp_tensor"])
def test_a_head_is_gathered_once_however_many_chunks_there_are(mesh):
    few, many = (moved(MESHES[mesh], logits_chunk=chunk) for chunk in (512, 16))
    sent = [sum(one.times * one.near for one in found) for found in (few, many)]
    assert sent[1] <= 1.02 * sent[0]
    # How many chunks there are only the data says: what they send would be counted once.
    in_chunks = [one for found in (few, many) for one in found if None in one.loops]
    assert not {"data", "fsdp"} & {axis for one in in_chunks for axis in one.axes}
    assert bool(in_chunks) == ("tensor" in mesh)


@pytest.mark.parametrize("mesh", ["fsdp", "data_fsdp", "data_fsdp_tensor"])
def test_a_depthwise_convolution_gathers_its_kernel_and_no_rows(mesh):
    """Left to itself, the compiler splits it by channels as the kernel lies, and sends all rows there."""
    mesh = make_mesh(*MESHES[mesh])
    rows, split = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec(None, None, None, "fsdp"))
    x = jax.ShapeDtypeStruct((16, 8, 8, 32), jnp.float32, sharding=rows)
    kernel = jax.ShapeDtypeStruct((7, 7, 1, 32), jnp.float32, sharding=split)
    # By what accelerators run; a CPU has other means.
    gradient = jax.grad(lambda x, kernel: jnp.square(_by_convolution(x, kernel)).sum(), (0, 1))
    with use_mesh(mesh):
        text = jax.jit(gradient, out_shardings=(rows, split)).lower(x, kernel).compile().as_text()
    found = read_collectives(text, mesh, find_topology("cpu:1x8"))
    assert {one.kind for one in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert max(one.payload for one in found) == kernel.size * 4


def test_the_axes_are_those_of_the_table():
    named = {word.split("/")[1] for model, mesh in CASES for word in printed_words(stored(model, mesh))}
    assert named <= {*MESH_AXES}
    assert "fsdp" in named


def printed_words(file):
    return [word for line in file.read_text().splitlines() for word in line.split(": ")[1].split() if "/" in word]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    STORED.mkdir(exist_ok=True)
    for case in CASES:
        stored(*case).write_text(printed(*case), encoding="utf-8")
