"""Tests of compile reports, for the CPU devices of this machine."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from checkpoints_convert import convert
from janus_jax.aot.collectives import Collective
from janus_jax.aot.compile import Program, bytes_per_device, training_batch
from janus_jax.aot.report import compile_report, memory_problem, remedies, report_text
from janus_jax.aot.roofline import step_flops, traffic_seconds
from janus_jax.aot.topologies import find_topology
from janus_jax.data.pipeline.packing import Example, pack
from janus_jax.sharding import make_mesh
from janus_jax.training.flops import traced_flops
from janus_jax.training.setup import set_up_stage
from janus_jax.training.stage_config import Initialisation
from tests import tiny
from tests.aot.test_plan import recipe
from tests.training import runs
from tests.training.rl import recipes

GB = 10**9
CPUS = find_topology("cpu:1x8")


@pytest.fixture
def mesh():
    return make_mesh(1, 8, 1)


def program(parameters, temporaries):
    """Returns an invented program with these sizes in GB."""
    return Program("step", {"trained parameters": parameters * GB}, temporaries * GB, parameters * GB)


@pytest.mark.parametrize(
    ("one", "remat", "reason", "remedy"),
    [
        (program(7, 4), "none", "step: 11", "--config.resources.remat=full"),
        (program(9, 1), "full", "step: 10", "--config.stages.stage_2.optimizer.moments_dtype=bfloat16"),
        (
            Program("step", {"trained parameters": GB}, 9 * GB, None, error="no room"),
            "full",
            "step: 10.000 GB needed (no room)",
            "more devices",
        ),
    ],
)
def test_program_above_the_limit_has_a_reason_and_remedies(mesh, one, remat, reason, remedy):
    assert memory_problem([one], CPUS.accelerator.usable_memory).startswith(reason)
    assert remedy in remedies(recipe(1, 8, 1, remat=remat), CPUS, mesh, [one], "train")


def test_suggested_microbatches_divide_the_sequences_of_a_device(mesh):
    stage = recipe(1, 8, 1)
    stage = replace(stage, stages=(stage.stages[0], replace(stage.current, batch_size=24)))
    assert "--config.resources.microbatches=3" in remedies(stage, CPUS, mesh, [program(1, 9)], "train")


@pytest.mark.parametrize("precomputed_image_tokens", [True, False])
@pytest.mark.parametrize("kind", ["janus", "flow"])
def test_abstract_batch_has_the_shapes_of_a_packed_batch(mesh, kind, precomputed_image_tokens):
    stage = replace(recipe(1, 8, 1, kind), precomputed_image_tokens=precomputed_image_tokens)
    if kind == "janus":
        stage = stage.replace_current(budget=replace(stage.current.budget, context_images=2))
    packed = pack(
        [list[Example]()] * 8, stage.current.budget, tiny.processor(stage.model_config), precomputed_image_tokens
    )
    abstract, actual = (
        jax.tree.map(lambda x: (x.shape, x.dtype), one) for one in (training_batch(stage, mesh), packed)
    )
    assert abstract == actual


def test_bytes_per_device_are_those_of_its_shards(mesh):
    state = set_up_stage(recipe(1, 8, 1), mesh).abstract
    arrays = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), state.params)
    first = jax.devices()[0]
    on_first = sum(
        shard.data.nbytes
        for array in jax.tree.leaves(arrays)
        for shard in array.addressable_shards
        if shard.device == first
    )
    assert bytes_per_device(state.params) == on_first


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["llm", "und_encoder"])
@pytest.mark.parametrize("kind", ["janus", pytest.param("flow", marks=pytest.mark.nightly)])
def test_recomputation_counts_as_hardware_flops_only(kind, trained):
    model, hardware, traced = [], [], []
    for remat in ("none", "dots", "full"):
        stage = recipe(1, 1, 1, kind)
        current = replace(stage.current, trained=(f"{trained}/*",))
        stage = replace(stage, stages=(stage.stages[0], current), resources=replace(stage.resources, remat=remat))
        setup = set_up_stage(stage, None)
        model_flops, hardware_flops = step_flops(stage, flatten_dict(setup.abstract.params, sep="/"), "xla")
        model.append(model_flops)
        hardware.append(hardware_flops)
        traced.append(traced_flops(setup.step, setup.abstract, training_batch(stage, make_mesh(1, 8, 1))))
    assert len(set(model)) == 1
    assert hardware[0] > model[0]
    assert np.diff(hardware).tolist() == np.diff(traced).tolist()


def test_traffic_seconds_follow_the_bandwidths():
    between = Collective("all-gather", 10**9, "bf16", ("data",), 2, 2, 0)
    within = Collective("all-gather", 10**9, "bf16", ("fsdp",), 16, 1, 2, (24,))
    seconds = traffic_seconds([between, within], find_topology("v5e:4x4").accelerator)
    assert seconds == pytest.approx((24 * 15 / 16 / 200, 0.5 / 3.1))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["janus", "flow"])
def test_report_of_training_and_sampling(kind):
    stage = recipe(1, 8, 1, kind)
    stage = replace(stage, resources=replace(stage.resources, peak_flops=1e11))
    training = compile_report(stage, find_topology("cpu:2x4"))
    assert report_text(training).splitlines()[-1] == "fits"
    report = json.loads(json.dumps(training))
    assert report["fits"]
    (step,) = report["programs"]
    assert {"trained parameters", "frozen parameters", "optimizer state", "batch"} <= set(step["inputs"])
    assert any(one["dcn_bytes"] > 0 for one in step["traffic"])
    assert 0 < report["roofline"]["mfu"]["serial"] <= report["roofline"]["mfu"]["overlapped"] < 1
    for workload in ("generate", "chat"):
        sampling = compile_report(stage, CPUS, workload)
        assert [one["name"] for one in sampling["programs"]] == ["prefill", "decode"]
        assert sampling["verdict"] == "fits"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("settings", "rollout_params"),
    [({"log_probs": "guided"}, "shared"), ({"log_probs": "guided"}, "copied"), (recipes.FLOW, "copied")],
)
def test_report_of_reinforcement_learning(settings, rollout_params):
    stage = recipes.recipe(**settings, minibatches=2, rollout_params=rollout_params)
    stage = replace(stage, resources=replace(stage.resources, peak_flops=1e11))
    report = compile_report(stage, CPUS)
    update, prefill, decode = report["programs"]
    assert [one["name"] for one in (update, prefill, decode)] == ["step", "rollout prefill", "rollout decode"]
    assert {"trained parameters", "reference", "optimizer state", "batch"} <= set(update["inputs"])
    # The state of training stays on the devices.
    assert decode["inputs"]["optimizer state"] == update["inputs"]["optimizer state"]
    assert ("parameters of training" in decode["inputs"]) == (rollout_params == "copied")
    assert report["verdict"] == "fits"
    tokens = tiny.FLOW.num_gen_tokens if settings is recipes.FLOW else tiny.CONFIG.num_gen_tokens
    assert f"{64 + tokens} tokens" in report_text(report)


@pytest.mark.nightly
def test_a_folder_with_weights_of_8_bits_is_compiled_as_such(tmp_path):
    convert(runs.recipe().current.initialisation.model, tmp_path / "int8", quantization="int8")
    stored = replace(
        runs.recipe(initialisation=Initialisation("model", model=str(tmp_path / "int8"))), architecture=None
    )
    reports = [compile_report(stored, find_topology("cpu:1x1"), "generate")]
    reports += [
        compile_report(runs.recipe(), find_topology("cpu:1x1"), "generate", quantization=one)
        for one in ("int8", "none")
    ]
    assert [report["quantization"] for report in reports] == ["int8", "int8", "none"]
    small, same, full = (report["programs"][1]["inputs"]["parameters"] for report in reports)
    # Half of the tiny model is its image tokenizer, which keeps its dtype.
    assert small == same < 0.75 * full
    assert "weights in int8" in report_text(reports[0])
