"""Tests of the estimated memory of a step, compared with XLA's memory analysis."""

import pytest
from flax.traverse_util import flatten_dict

from benchmarks import memory
from benchmarks.batches import equal_sequences, make_batch
from checkpoints_convert.parameters import model_parameters
from janus_jax.config import Execution, JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.data.pipeline.packing import Budget
from janus_jax.models.janus import Janus
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.state import abstract_train_state
from janus_jax.training.train_step import Microbatching, make_train_step
from tests.training import stages

# A single wide head keeps the scores small. Attention stores them on CPUs, and the estimate excludes them.
CONFIG = JanusConfig(
    name="wide",
    und_encoder=SiglipConfig(image_size=64, patch_size=8, width=128, depth=2, num_heads=1, mlp_dim=512),
    gen_encoder=VQConfig(64, 256, 8, 16, (1, 1, 1), 1, 16, 8),
    llm=LlamaConfig(2048, 256, 4, 1, 1, 256, 1024, max_positions=1024),
    gen_head_width=256,
)


def xla_bytes(stage, sequences):
    """Returns the bytes of XLA's temporaries on a CPU in float32, and the trained parameters by path."""
    model = Janus(CONFIG, Execution(remat="full"))
    abstract = abstract_train_state(
        TokenObjective(model), stages.TRAINED[stage], stages.OPTIMIZER, None, frozen_dtype="float32"
    )
    packed = equal_sequences(CONFIG, sequences, 512, und_images=1, gen_images=0, prompt=16, answer=32)
    batch = make_batch(CONFIG, packed, 512)
    step = make_train_step(TokenObjective(model), stages.OPTIMIZER, Microbatching(logits_chunk=128), abstract, None)
    compiled = step.lower(abstract, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes, flatten_dict(abstract.params, sep="/")


@pytest.mark.nightly
@pytest.mark.parametrize("stage", ["II", "III"])
def test_activations_of_a_sequence_match_xla(stage):
    (few, trained), (many, _) = (xla_bytes(stage, sequences) for sequences in (4, 12))
    budget = Budget(512, und_images=1, gen_images=0, text_targets=512)
    estimate = memory.activation_bytes(CONFIG, trained, budget, chunk=128, dtype="float32")
    assert (many - few) / 8 == pytest.approx(estimate, rel=0.35)


@pytest.mark.slow
def test_state_is_parameters_and_two_moments():
    recipe = memory.stage_recipe("Janus-Pro-1B", stage=1)
    one = memory.memory_needs(recipe, devices=1)
    frozen = sum(parameter.size for parameter in model_parameters(recipe.model_config)) - one.gradients // 4
    assert one.state == pytest.approx(3 * one.gradients + 2 * frozen, rel=1e-6)


def test_sequences_that_fit_are_a_power_of_two():
    needs = memory.MemoryNeeds(state=30, gradients=10, gathered=0, sequence=7)
    assert [needs.max_sequences(bytes_ / 0.9 / 1e9) for bytes_ in (49, 57.5, 64.5, 78.5)] == [0, 1, 2, 4]
