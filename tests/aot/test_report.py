"""What is told of a recipe on a machine, here on this one's devices."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from janus_jax.aot.collectives import Collective
from janus_jax.aot.compile import Compiled, abstract_batch, held
from janus_jax.aot.report import Report, report
from janus_jax.aot.roofline import operations, traffic_seconds
from janus_jax.aot.topologies import find_topology
from janus_jax.data.pipeline.packing import Example, pack
from janus_jax.models.target_platform import compiling_for, platform
from janus_jax.sharding import make_mesh
from janus_jax.training.setup import set_up_stage
from tests import tiny
from tests.aot.test_plan import recipe
from tests.training.jaxprs import flops

GB = 10**9


@pytest.fixture
def mesh():
    return make_mesh(1, 8, 1)


def made_up(program, mesh, job="train", **resources):
    """A report of a program that nobody compiled."""
    asked = recipe(1, 8, 1)
    asked = replace(asked, resources=replace(asked.resources, **resources))
    return Report(asked, find_topology("cpu:1x8"), job, mesh, [program], [[]], None)


def test_what_fits_says_so_in_its_last_line(mesh):
    one = made_up(Compiled("step", {"weights that train": 3 * GB}, 2 * GB, 3 * GB, "text"), mesh)
    assert one.to_text().splitlines()[-1] == "fits"
    assert one.to_json()["fits"] is True


@pytest.mark.parametrize(
    ("program", "resources", "words"),
    [
        (Compiled("step", {"weights that train": 7 * GB}, 4 * GB, 7 * GB, "text"), {"remat": "none"}, ["remat=full"]),
        (Compiled("step", {"weights that train": 9 * GB}, 1 * GB, 9 * GB, "text"), {}, ["moments_dtype=bfloat16"]),
        (
            Compiled("step", {"weights that train": 1 * GB}, 9 * GB, None, "", "no room"),
            {},
            ["no room", "more devices"],
        ),
    ],
)
def test_what_does_not_fit_says_why_and_what_to_change(mesh, program, resources, words):
    verdict = made_up(program, mesh, **resources).to_text().splitlines()[-1]
    assert verdict.startswith("does not fit: step: 1")
    assert all(word in verdict for word in words), verdict


def test_microbatches_are_advised_as_far_as_there_are_rows(mesh):
    asked = made_up(Compiled("step", {"weights that train": GB}, 9 * GB, GB, "text"), mesh)
    stage = replace(asked.recipe.current, batch_size=24)
    asked = replace(asked, recipe=replace(asked.recipe, stages=(asked.recipe.stages[0], stage)))
    assert "microbatches=3" in asked.verdict


@pytest.mark.parametrize("precomputed_image_tokens", [True, False])
@pytest.mark.parametrize("kind", ["janus", "flow"])
def test_the_shapes_are_those_of_the_batches_that_training_gets(mesh, kind, precomputed_image_tokens):
    asked = replace(recipe(1, 8, 1, kind), precomputed_image_tokens=precomputed_image_tokens)
    laid = pack(
        [list[Example]()] * 8, asked.current.budget, tiny.processor(asked.model_config), precomputed_image_tokens
    )
    ours, theirs = (jax.tree.map(lambda x: (x.shape, x.dtype), one) for one in (abstract_batch(asked, mesh), laid))
    assert ours == theirs


def test_bytes_are_a_devices_own(mesh):
    state = set_up_stage(recipe(1, 8, 1), mesh).abstract
    arrays = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), state.params)
    first = jax.devices()[0]
    on_first = sum(
        shard.data.nbytes
        for array in jax.tree.leaves(arrays)
        for shard in array.addressable_shards
        if shard.device == first
    )
    assert held(state.params) == on_first


@pytest.mark.parametrize("trained", ["llm", "und_encoder"])
@pytest.mark.parametrize("kind", ["janus", "flow"])
def test_what_is_computed_again_is_done_and_not_useful(kind, trained):
    useful, done, traced = [], [], []
    for remat in ("none", "dots", "full"):
        asked = recipe(1, 1, 1, kind)
        stage = replace(asked.current, trained=(f"{trained}/*",))
        asked = replace(asked, stages=(asked.stages[0], stage), resources=replace(asked.resources, remat=remat))
        ready = set_up_stage(asked, None)
        needed, all_ = operations(asked, flatten_dict(ready.abstract.params, sep="/"))
        useful.append(needed)
        done.append(all_)
        traced.append(flops(ready.step, ready.abstract, abstract_batch(asked, make_mesh(1, 8, 1))))
    assert len(set(useful)) == 1
    assert done[0] > useful[0]
    assert np.diff(done).tolist() == np.diff(traced).tolist()


def test_networks_take_time_by_what_is_sent():
    chip = find_topology("v5e:4x4").chip
    far = Collective("all-gather", 10**9, "bf16", ("data",), 2, 2, 0)
    near = Collective("all-gather", 10**9, "bf16", ("fsdp",), 16, 1, 2, (24,))
    seconds = traffic_seconds([far, near], chip)
    assert seconds == pytest.approx((24 * 15 / 16 / 200, 0.5 / 3.1))


def test_kernels_are_those_of_the_machine_that_is_compiled_for():
    assert platform() == "cpu"
    with compiling_for("tpu"):
        assert platform() == "tpu"
    assert platform() == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "unit"), [("janus", "ids"), ("flow", "steps")])
def test_the_whole_of_it_on_this_machine(kind, unit):
    asked = recipe(1, 8, 1, kind)
    asked = replace(asked, resources=replace(asked.resources, peak_flops=1e11))
    told = report(asked, find_topology("cpu:2x4"))
    whole = json.loads(json.dumps(told.to_json()))
    assert whole["fits"]
    (program,) = whole["programs"]
    assert {"weights that train", "weights that do not", "optimizer", "batch"} <= set(program["inputs"])
    assert any(one["far"] > 0 for one in program["collectives"])
    assert 0 < whole["roofline"]["mfu"]["at worst"] <= whole["roofline"]["mfu"]["at best"] < 1
    for job, loop in (("generate", unit), ("chat", "ids")):
        sampled = report(asked, find_topology("cpu:1x8"), job)
        assert [one.name for one in sampled.programs] == ["prompts", loop]
        assert sampled.verdict == "fits"
