"""Samplers reproduce memorized answers, image tokens and latents."""

import jax
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.packing import Budget
from janus_jax.generation.image_tokens import sample_image_tokens
from janus_jax.generation.rectified_flow import FlowSampler, sample_latents
from janus_jax.generation.sampling import SamplingConfig
from janus_jax.models.backbone import apply, unroll_params
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained
from janus_jax.training.losses.rectified_flow import ALIGNER
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer
from janus_jax.training.param_paths import merge, partition
from janus_jax.training.setup import abstract_train_state
from janus_jax.training.state import state_from_params
from janus_jax.training.train_step import make_train_step, put_batch
from tests import tiny
from tests.training import batches, stages

SAMPLES, STEPS, FLOW_STEPS = 8, 400, 1200
WORDS = ["boat", "bird", "tree", "lake", "ink", "small", "red", "quiet"]


def question(number, about_a_picture):
    asked = "<image_placeholder>\nWhat is in the picture?" if about_a_picture else f"Say word {number}."
    answered = f"A {WORDS[number]} and a {WORDS[-1 - number]}."
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def pictures(number, about_a_picture):
    return [tiny.picture(number)] if about_a_picture else []


def samples():
    make = tiny.processor()
    for number in range(SAMPLES):
        for seen in (True, False):
            row = make.understanding_sequence(question(number, seen), pictures(number, seen), system_prompt="")
            yield batches.sample(row, Supervision.ANSWERS)
        yield batches.sample(make.generation_sequence(f"A {WORDS[number]}.", tiny.picture(number)))


def learn(batch, kind, trained, steps, learning_rate=2e-3):
    """Trains on one batch; returns the last metrics and the model."""
    config = stages.CONFIGS[kind]
    optimizer = make_optimizer(OptimizerConfig(learning_rate, schedule="cosine", warmup_steps=20), steps)
    abstract = abstract_train_state(stages.OBJECTIVES[kind], trained, optimizer, None, frozen_dtype="float32")
    state = state_from_params(*partition(stages.params(kind), trained), optimizer, abstract)
    step = make_train_step(stages.OBJECTIVES[kind], optimizer, stages.CUTS[kind], abstract, None)
    for _ in range(steps):
        state, metrics = step(state, put_batch(batch, None))
    tree = merge(state.params, state.frozen)
    tree.pop(ALIGNER, None)
    model = make_model(config, Execution(layers="unrolled"))
    return metrics, Pretrained(config, unroll_params(tree, config), tiny.processor(config), model)


@pytest.fixture(scope="module")
def learnt():
    """The batch, the last metrics, and the trained model."""
    batch = batches.batch([(sample,) for sample in samples()], Budget(96, und_images=1, gen_images=1, text_targets=24))
    return batch, *learn(batch, "janus", stages.TRAINED["III"], STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text", "understanding", "generation"])
def test_loss_nearly_vanishes(learnt, task):
    assert float(learnt[1][f"loss/{task}"]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seen", [True, False])
def test_memorized_answers_are_reproduced(learnt, seen):
    for number in range(SAMPLES):
        asked, answered = question(number, seen)
        said = learnt[2].chat([asked], pictures(number, seen), max_new_tokens=24, system_prompt="")
        assert said == answered["content"]


@pytest.mark.slow
def test_memorized_image_tokens_are_reproduced(learnt):
    batch, _, pretrained = learnt
    prompts = pretrained.processor.left_pad(
        [pretrained.processor.generation_prompt(f"A {WORDS[number]}.") for number in range(SAMPLES)]
    )
    keys = jax.random.split(jax.random.key(0), (SAMPLES, 1))
    drawn = sample_image_tokens(pretrained.model, pretrained.params, prompts, keys, SamplingConfig(), guidance_scale=1)
    expected = batch.gen_ids[batch.gen_starts[:, 0] >= 0, 0]
    assert (np.asarray(drawn) == expected).mean() >= 0.99


@pytest.mark.slow
def test_memorized_latents_are_reproduced():
    make = tiny.processor(tiny.FLOW)
    rows = [make.generation_sequence(f"A {word}.", tiny.picture(number)) for number, word in enumerate(WORDS[:4])]
    # Repeated, because each sequence gets one flow time per step.
    batch = batches.flow_batch([[batches.sample(row)] for row in rows * 4], Budget(112, 0, 1, 0))
    _, model = learn(batch, "flow", stages.FLOW_TRAINED["II"], FLOW_STEPS, learning_rate=4e-3)
    prompts = make.left_pad([make.generation_prompt(f"A {word}.") for word in WORDS[:4]])
    keys = jax.random.split(jax.random.key(0), (4, 1))
    drawn = np.asarray(sample_latents(model.model, model.params, prompts, keys, FlowSampler(guidance_scale=1)))
    known = jax.jit(lambda params: apply(model.model.target_latents, params, batch).values)(model.params)
    known = np.asarray(known)[:4, 0]
    errors = np.square(drawn[:, None] - known).mean(axis=(2, 3, 4)) / known.var()
    np.testing.assert_array_equal(errors.argmin(axis=1), range(4))
    assert errors.diagonal().max() < 0.1
