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
from janus_jax.training.state import abstract_train_state, state_from_params
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
            sequence = make.understanding_sequence(question(number, seen), pictures(number, seen), system_prompt="")
            yield batches.example(sequence, Supervision.ANSWERS)
        yield batches.example(make.generation_sequence(f"A {WORDS[number]}.", tiny.picture(number)))


def train(batch, kind, patterns, steps, learning_rate=2e-3):
    """Trains on one batch; returns the last metrics and the model."""
    config = stages.CONFIGS[kind]
    optimizer = make_optimizer(OptimizerConfig(learning_rate, schedule="cosine", warmup_steps=20), steps)
    abstract = abstract_train_state(stages.OBJECTIVES[kind], patterns, optimizer, None, frozen_dtype="float32")
    state = state_from_params(*partition(stages.params(kind), patterns), optimizer, abstract)
    step = make_train_step(stages.OBJECTIVES[kind], optimizer, stages.MICROBATCHING[kind], abstract, None)
    for _ in range(steps):
        state, metrics = step(state, put_batch(batch, None))
    tree = merge(state.params, state.frozen)
    tree.pop(ALIGNER, None)
    model = make_model(config, Execution(layers="unrolled"))
    return metrics, Pretrained(config, unroll_params(tree, config), tiny.processor(config), model)


@pytest.fixture(scope="module")
def trained():
    """The batch, the last metrics, and the trained model."""
    batch = batches.batch([(sample,) for sample in samples()], Budget(96, und_images=1, gen_images=1, text_targets=24))
    return batch, *train(batch, "janus", stages.TRAINED["III"], STEPS)


@pytest.mark.nightly
@pytest.mark.parametrize("task", ["text", "understanding", "generation"])
def test_loss_nearly_vanishes(trained, task):
    assert float(trained[1][f"loss/{task}"]) < 0.02


@pytest.mark.nightly
@pytest.mark.parametrize("seen", [True, False])
def test_memorized_answers_are_reproduced(trained, seen):
    for number in range(SAMPLES):
        asked, answered = question(number, seen)
        answer = trained[2].chat([asked], pictures(number, seen), max_new_tokens=24, system_prompt="")
        assert answer == answered["content"]


@pytest.mark.nightly
def test_memorized_image_tokens_are_reproduced(trained):
    batch, _, pretrained = trained
    prompts = pretrained.processor.left_pad(
        [pretrained.processor.generation_prompt(f"A {WORDS[number]}.") for number in range(SAMPLES)]
    )
    keys = jax.random.split(jax.random.key(0), (SAMPLES, 1))
    generated = sample_image_tokens(
        pretrained.model, pretrained.params, prompts, keys, SamplingConfig(), guidance_scale=1
    )
    expected = batch.gen_ids[batch.gen_starts[:, 0] >= 0, 0]
    assert (np.asarray(generated) == expected).mean() >= 0.99


@pytest.mark.nightly
def test_memorized_latents_are_reproduced():
    make = tiny.processor(tiny.FLOW)
    sequences = [make.generation_sequence(f"A {word}.", tiny.picture(number)) for number, word in enumerate(WORDS[:4])]
    # Repeated, because each sequence gets one flow time per step.
    batch = batches.flow_batch([[batches.example(sequence)] for sequence in sequences * 4], Budget(112, 0, 1, 0))
    _, model = train(batch, "flow", stages.FLOW_TRAINED["II"], FLOW_STEPS, learning_rate=4e-3)
    prompts = make.left_pad([make.generation_prompt(f"A {word}.") for word in WORDS[:4]])
    keys = jax.random.split(jax.random.key(0), (4, 1))
    generated = np.asarray(sample_latents(model.model, model.params, prompts, keys, FlowSampler(guidance_scale=1)))
    latents = jax.jit(lambda params: apply(model.model.target_latents, params, batch).values)(model.params)
    latents = np.asarray(latents)[:4, 0]
    errors = np.square(generated[:, None] - latents).mean(axis=(2, 3, 4)) / latents.var()
    np.testing.assert_array_equal(errors.argmin(axis=1), range(4))
    assert errors.diagonal().max() < 0.1
