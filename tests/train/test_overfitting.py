"""The step against the sampler: what was learnt by heart comes back word for word, and id for id."""

import jax
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.data.packing import Budget
from janus_jax.data.tasks import Supervision
from janus_jax.models.backbone import unroll_params
from janus_jax.models.janus import Janus
from janus_jax.pretrained import Pretrained
from janus_jax.sample.images import draw_images
from janus_jax.sample.sampling import Sampling
from janus_jax.train.optimizers import OptimizerConfig, make_optimizer
from janus_jax.train.partition import merge, partition
from janus_jax.train.state import adopted_state
from janus_jax.train.step import Cut, abstract_train_state, put_batch, train_step
from tests import tiny
from tests.train import batches, stages

SAMPLES, STEPS = 8, 400
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
            row = make.understanding_row(question(number, seen), pictures(number, seen), system_prompt="")
            yield batches.sample(row, Supervision.ANSWERS)
        yield batches.sample(make.generation_row(f"A {WORDS[number]}.", tiny.picture(number)))


@pytest.fixture(scope="module")
def learnt():
    """The batch, the last step's metrics, and the model that came of it."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=20), STEPS)
    abstract = abstract_train_state(stages.MODEL, stages.TRAINED["III"], optimizer, None)
    state = adopted_state(*partition(tiny.stacked_params(), stages.TRAINED["III"]), optimizer, abstract)
    step = train_step(stages.MODEL, optimizer, Cut(), abstract, None)
    batch = batches.batch([(sample,) for sample in samples()], Budget(96, und_images=1, gen_images=1, text_targets=24))
    for _ in range(STEPS):
        state, metrics = step(state, put_batch(batch, None))
    params = unroll_params(merge(state.params, state.frozen), tiny.CONFIG)
    model = Janus(tiny.CONFIG, Execution(layers="unrolled"))
    return batch, metrics, Pretrained(tiny.CONFIG, params, tiny.processor(), model)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text", "understanding", "generation"])
def test_the_loss_nearly_vanishes(learnt, task):
    assert float(learnt[1][f"loss/{task}"]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seen", [True, False])
def test_answers_come_back_word_for_word(learnt, seen):
    for number in range(SAMPLES):
        asked, answered = question(number, seen)
        said = learnt[2].chat([asked], pictures(number, seen), max_new_tokens=24, system_prompt="")
        assert said == answered["content"]


@pytest.mark.slow
def test_images_come_back_id_for_id(learnt):
    batch, _, pretrained = learnt
    prompts = pretrained.processor.left_padded(
        [pretrained.processor.generation_prompt(f"A {WORDS[number]}.") for number in range(SAMPLES)]
    )
    keys = jax.random.split(jax.random.key(0), (SAMPLES, 1))
    drawn = draw_images(pretrained.model, pretrained.params, prompts, keys, Sampling(), guidance_scale=1)
    expected = batch.gen_ids[batch.gen_starts[:, 0] >= 0, 0]
    assert (np.asarray(drawn) == expected).mean() >= 0.99
