"""Prompts and the reward of reinforcement learning on the shapes dataset."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from examples.shapes.configs import flow_grpo
from examples.shapes.dataset import Split, render, sample_prompts
from examples.shapes.dataset.scene import Category, held_out
from examples.shapes.evaluation import ShapesProtocol
from examples.shapes.rewards import held_out_prompts, training_prompts
from janus_jax.rewards import RewardConfig, WeightedRewards
from janus_jax.training.stage import train_stage

JANUSFLOW = Path(__file__).parents[3] / "examples" / "shapes" / "models" / "JanusFlow-shapes"


def score(prompts, images, **options):
    config = RewardConfig("examples.shapes.rewards:shapes", options=tuple(f"{k}={v}" for k, v in options.items()))
    texts = [one["prompt"] for one in prompts]
    return WeightedRewards((config,))(texts, np.stack(images), prompts).total


def test_images_of_the_scene_have_reward_one():
    prompts = training_prompts()[::100]
    images = [render(one["requirements"].scene, 48) for one in prompts]
    np.testing.assert_array_equal(score(prompts, images), 1)
    np.testing.assert_array_equal(score(prompts, [np.full_like(image, 255) for image in images]), 0)


def test_additional_objects_have_their_own_reward():
    prompts = [one for one in training_prompts() if one["requirements"].category is Category.TWO_OBJECT][:1]
    single = [one for one in training_prompts() if one["requirements"].category is Category.SINGLE_OBJECT]
    shapes = {required.shape for required in prompts[0]["requirements"].requirements}
    asked = next(one for one in single if one["requirements"].requirements[0].shape in shapes)
    image = render(prompts[0]["requirements"].scene, 48)
    assert score([asked], [image]) == 0
    assert score([asked], [image], additional=0.25) == np.float32(0.25)


def test_training_prompts_ask_for_no_held_out_combination():
    for one in training_prompts():
        scene, category = one["requirements"].scene, one["requirements"].category
        assert category not in held_out([(obj.shape, obj.color) for obj in scene.objects])


def test_prompts_of_the_curve_are_not_those_of_the_evaluation():
    protocol = ShapesProtocol()
    evaluated = sample_prompts(Split.TEST, protocol.per_category, protocol.sample_seed)
    assert [prompt.text for prompt in evaluated] != [one["prompt"] for one in held_out_prompts()][: len(evaluated)]


@pytest.mark.nightly
def test_two_steps_of_the_small_janusflow(tmp_path):
    stage = flow_grpo.STAGE
    flow = replace(stage.rl.flow, rollout=4, evaluation=4, trained=2)
    stage = replace(
        stage,
        steps=2,
        batch_size=8,
        optimizer=replace(stage.optimizer, warmup_steps=1),
        initialisation=replace(stage.initialisation, model=str(JANUSFLOW)),
        rl=replace(stage.rl, held_out="", group_size=4, flow=flow),
    )
    recipe = replace(flow_grpo.RECIPE, stages=(stage,))
    train_stage(recipe, tmp_path, jax.devices()[:1])
    lines = [json.loads(line) for line in (tmp_path / "stage_1" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "reward" in line]
    assert len(found) == 2
    assert found[0]["kl"] == pytest.approx(0, abs=1e-8)
    assert found[1]["kl"] > 0
    assert all(0 <= line["reward"] <= 1 and line["grad_norm"] > 0 for line in found)
