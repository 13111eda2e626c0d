"""Steps of policy optimization: rollouts, updates, resume and meshes."""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from janus_jax.errors import JanusError, Preempted, RewardUnavailable
from janus_jax.processing import Processor
from janus_jax.rewards import RewardConfig, RewardValues
from janus_jax.training.lora import Lora
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.preemption import Preemption
from janus_jax.training.rl.config import FlowSteps, PolicyLoss
from janus_jax.training.rl.objective import REFERENCE
from janus_jax.training.rl.prompts import read_prompts
from janus_jax.training.rl.rollouts import RolloutSampler, step_keys
from janus_jax.training.rl.task import reward_metrics
from janus_jax.training.stage import stage_task, train_stage
from tests import tiny
from tests.training import runs
from tests.training.rl import recipes
from tests.training.test_trainer import assert_equal, logged

LORA = Lora(4, 8.0)
VARIANTS = {
    "one update": {},
    "guided, four updates": {"log_probs": "guided", "minibatches": 2, "epochs": 2, "rollout_size": 8},
    "adapters": {"trained": (), "lora": LORA, "rollout_params": "copied"},
    "flow": recipes.FLOW,
    "flow, four updates": recipes.FLOW
    | {
        "minibatches": 2,
        "epochs": 2,
        "rollout_size": 8,
        "guidance_scale": 1.0,
        "loss": PolicyLoss(beta=0.1, clip=1e-3),
    },
    "flow, adapters": recipes.FLOW | {"trained": (), "lora": LORA, "rollout_params": "copied"},
}
NAMES = ("loss", "kl", "entropy", "clip_share", "reward", "grad_norm")


@functools.cache
def finished(variant):
    """Workdir and last state of a run on one device."""
    workdir = runs._kept_folder()
    return workdir, runs.run(recipes.recipe(**VARIANTS[variant]), workdir)


def reference_of(state):
    return flatten_dict(state.frozen[REFERENCE])


def check(variant):
    workdir, state = finished(variant)
    lines = logged(workdir, *NAMES)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["reward"] == line["reward/brightness"] for line in lines)
    # The policy starts as the reference, and its updates move it away. The metric is a mean over the updates of a step.
    if VARIANTS[variant].get("minibatches", 1) == 1:
        assert lines[0]["kl"] < 1e-8
    assert lines[-1]["kl"] > 1e-5
    return lines, state


@pytest.mark.slow
def test_a_run_has_metrics_and_pictures():
    lines, _ = check("one update")
    assert all(line["clip_share"] == 0 for line in lines)
    workdir, _ = finished("one update")
    size = tiny.CONFIG.gen_image_size
    with Image.open(workdir / "stage_1" / "samples" / "step_2" / "groups.png") as sheet:
        assert sheet.size == (2 * size, 4 * size)
    captions = (workdir / "stage_1" / "samples" / "step_2" / "groups.txt").read_text().splitlines()
    best, worst = (float(caption.split("reward ")[1].split(":")[0]) for caption in captions[:2])
    assert best >= worst


@pytest.mark.nightly
def test_a_flow_model_is_trained():
    lines, state = check("flow")
    assert all(line["clip_share"] == 0 for line in lines)
    changed = {
        path[0] for path, value in flatten_dict(state.params).items() if np.any(value != reference_of(state)[path])
    }
    assert changed == {"llm", "gen_decoder"}


@pytest.mark.nightly
@pytest.mark.parametrize("variant", ["guided, four updates", "flow, four updates"])
def test_a_run_with_several_updates_per_step_clips_ratios(variant):
    lines, state = check(variant)
    assert any(line["clip_share"] > 0 for line in lines)
    assert int(state.step) == 4 * recipes.STEPS


@pytest.mark.nightly
@pytest.mark.parametrize("variant", ["adapters", "flow, adapters"])
def test_adapters_have_the_model_as_reference(variant):
    _, state = check(variant)
    assert REFERENCE not in state.frozen
    assert all("lora" in "/".join(path) for path in flatten_dict(state.params))


def test_the_reference_keeps_its_initial_values():
    _, state = finished("one update")
    initial, reference = flatten_dict(tiny.stacked_params()), reference_of(state)
    assert reference.keys() == flatten_dict(state.params).keys()
    for path, value in reference.items():
        np.testing.assert_array_equal(value, initial[path])
    changed = [not np.array_equal(value, initial[path]) for path, value in flatten_dict(state.params).items()]
    assert np.mean(changed) > 0.9


@pytest.mark.nightly
@pytest.mark.parametrize("variant", VARIANTS)
def test_preempted_run_resumes_bit_for_bit(variant, tmp_path, monkeypatch):
    workdir, state = finished(variant)
    recipe = recipes.recipe(**VARIANTS[variant])
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", lambda self, step: step == 3)
        with pytest.raises(Preempted):
            runs.run(recipe, tmp_path)
    assert_equal(runs.run(recipe, tmp_path), state)
    assert logged(tmp_path, *NAMES) == logged(workdir, *NAMES)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("variant", "sizes"),
    [("one update", (8, 1, 1)), ("one update", (1, 8, 1)), ("one update", (2, 2, 2)), ("flow", (2, 2, 2))],
)
def test_meshes_agree_to_rounding(variant, sizes, tmp_path):
    workdir, _ = finished(variant)
    recipe = recipes.recipe(**VARIANTS[variant], steps=2)
    names = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    # The steps of a flow divide differences of latents by the noise, which enlarges rounding.
    atol = 2e-5 if variant == "flow" else 2e-6
    train_stage(replace(recipe, resources=replace(recipe.resources, **names)), tmp_path)
    for one, other in zip(logged(tmp_path, *NAMES), logged(workdir, *NAMES), strict=False):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-4, atol=atol, err_msg=name)


@pytest.mark.nightly
def test_the_reward_rises(tmp_path):
    recipe = recipes.recipe(steps=25, optimizer=OptimizerConfig(learning_rate=5e-3), loss=PolicyLoss(beta=0.0))
    runs.run(recipe, tmp_path)
    rewards = [line["reward"] for line in logged(tmp_path, "reward")]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05


@pytest.mark.nightly
def test_a_dead_service_loses_no_step(tmp_path, monkeypatch):
    """The service dies in step 2, and no checkpoint is due before step 4."""
    calls = 0

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RewardUnavailable("The service at http://host does not answer.")
        return recipes.brightness(*arguments)

    monkeypatch.setattr(recipes, "dying", dying, raising=False)
    recipe = recipes.recipe(rewards=(RewardConfig("tests.training.rl.recipes:dying", label="brightness"),))
    recipe = replace(recipe, intervals=replace(recipe.intervals, save=0))
    with pytest.raises(RewardUnavailable):
        runs.run(recipe, tmp_path)
    assert [path.name for path in (tmp_path / "stage_1" / "checkpoints").iterdir()] == ["1"]
    workdir, state = finished("one update")
    assert_equal(runs.run(recipe, tmp_path), state)
    assert logged(tmp_path, *NAMES) == logged(workdir, *NAMES)


def sampler(mesh=None, **settings):
    recipe = recipes.recipe(**settings)
    processor = Processor.from_directory(recipe.tokenizer, tiny.CONFIG)
    on_cpu = replace(recipe, architecture=tiny.CONFIG).on_platform("cpu")
    return RolloutSampler(tiny.CONFIG, on_cpu.execution, processor, recipe.current.rl, mesh, 32)


def sample(count=2, mesh=None, **settings):
    prompts = read_prompts(recipes.RL.prompts, "prompts")[:count]
    return sampler(mesh, **settings)(tiny.stacked_params(), prompts, step_keys(0, 3, count, 4))


@pytest.mark.nightly
def test_rollouts_do_not_depend_on_their_division():
    whole, parts = sample(), sample(rollout_size=4)
    np.testing.assert_array_equal(whole.images, parts.images)
    jax.tree.map(np.testing.assert_array_equal, whole.trajectories, parts.trajectories)


@pytest.mark.nightly
def test_copied_parameters_sample_the_same_images():
    one, other = sample().trajectories.gen_ids, sample(rollout_params="copied").trajectories.gen_ids
    # Both sum in another order, which may change a token and those after it.
    assert np.mean(np.asarray(one) == np.asarray(other)) > 0.9


@pytest.mark.slow
def test_guided_sequences_have_an_unconditional_sequence():
    rollout = sample(log_probs="guided")
    tokens, pad = np.asarray(rollout.trajectories.tokens), sampler().processor.tokenizer.special.pad
    assert tokens.shape[:2] == (8, 2)
    for conditional, unconditional, segments in zip(
        tokens[:, 0], tokens[:, 1], np.asarray(rollout.trajectories.segment_ids)[:, 0], strict=True
    ):
        prompt = np.flatnonzero(segments)[: -tiny.CONFIG.num_gen_tokens]
        assert (unconditional[prompt[1:-1]] == pad).all()
        assert not (conditional[prompt[1:-1]] == pad).any()
    ids = np.asarray(rollout.trajectories.gen_ids)
    np.testing.assert_array_equal(ids[:, 0], ids[:, 1])


@pytest.mark.nightly
def test_guided_log_probabilities_are_those_of_the_sampled_distribution():
    """At a low temperature every sampled token is almost certain."""
    settings = {"log_probs": "guided", "temperature": 1e-4}
    rollout, recipe = sample(**settings), recipes.recipe(**settings)
    from janus_jax.training.rl.objective import make_policy_objective

    objective = make_policy_objective(tiny.CONFIG, sampler().execution, recipe.current.rl)
    certain = np.asarray(jax.jit(objective.score)(tiny.stacked_params(), rollout.trajectories).log_probs)
    assert np.exp(certain).mean() > 0.95
    conditional = make_policy_objective(tiny.CONFIG, sampler().execution, replace(recipes.RL, temperature=1e-4))
    single = jax.tree.map(lambda x: x[:, :1], rollout.trajectories)
    assert np.asarray(jax.jit(conditional.score)(tiny.stacked_params(), single).log_probs).mean() < -0.5


def test_metrics_of_rewards():
    total = np.array([1, 1, 0, 2], np.float32)
    found = reward_metrics(RewardValues(total, {"clip": total * 2}), 2)
    spread = float(np.sqrt(2) / 2)
    expected = {"reward": 1.0, "reward/clip": 2.0, "reward_spread": spread, "equal_groups": 0.5}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ""}, r"config\.stages\.stage_1\.rl\.prompts is empty"),
        ({"rewards": (RewardConfig(),)}, r"rl\.rewards\.reward_1\.name is empty"),
        ({"rewards": (RewardConfig("tests.training.rl.recipes:none"),)}, "none"),
        ({"batch_size": 18}, r"batch_size is 18; it must be a multiple of rl\.group_size, 4"),
        ({"rollout_size": 6}, "must be a multiple of group_size 4"),
        ({"group_size": 1}, "group_size is 1"),
        (recipes.FLOW | {"temperature": 0.5}, r"rl\.temperature is 0\.5, but it has no effect without a Janus model"),
        ({"flow": FlowSteps(noise_level=0.5)}, r"rl\.flow\.noise_level is 0\.5, .* without a JanusFlow model"),
    ],
)
def test_unusable_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(JanusError, match=message):
        stage_task(recipes.recipe(**settings), tmp_path)


def test_long_prompts_are_refused(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("short\n" + "boat " * tiny.CONFIG.llm.max_positions)
    with pytest.raises(JanusError, match=r"rl\.prompts, number 2, has \d+ tokens"):
        stage_task(recipes.recipe(prompts=str(file)), tmp_path)


@pytest.mark.nightly
def test_held_out_reward_is_that_of_the_same_images(tmp_path):
    recipe = recipes.recipe(held_out=recipes.RL.prompts, optimizer=OptimizerConfig(learning_rate=1e-9), steps=2)
    runs.run(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "stage_1" / "metrics.jsonl").read_text().splitlines()]
    values = [line["held_out/reward"] for line in lines if "held_out/reward" in line]
    assert len(values) == 2
    assert values[0] == pytest.approx(values[1], abs=0.02)
