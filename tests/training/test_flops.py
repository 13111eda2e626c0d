"""Tests of the FLOPs of a step, compared with the traced program and with XLA's cost analysis."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from checkpoints_convert.parameters import model_parameters
from janus_jax.config import Execution, JanusConfig, LlamaConfig, SiglipConfig, VQConfig, preset
from janus_jax.models.backbone import unroll_params
from janus_jax.models.factory import init_params, make_model
from janus_jax.models.janus import Janus
from janus_jax.training.flops import ItemCounts, count_items, flops_per_item, traced_flops
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.param_paths import partition, unbox
from janus_jax.training.train_step import Microbatching, compute_gradients
from tests import tiny
from tests.training import batches, stages

CONFIG = tiny.CONFIG
TRAINED = {
    **stages.TRAINED,
    "heads": ("llm/head/*", "gen_head/*"),
    "values": ("llm/layers/attn/v/weight", "gen_embed/*"),
}


def computed_items(batch):
    """Returns the number of items that the program computes, including padding and masked positions."""
    sequences, length = batch.shape
    gen_images = batch.gen_starts.size
    return ItemCounts(
        tokens=sequences * length,
        pairs=sequences * length**2,
        und_images=sequences * batch.und_images.shape[1],
        gen_images=gen_images,
        encoded_images=gen_images if batch.gen_ids is None else 0,
        text_targets=batch.text_targets.size,
    )


@pytest.mark.parametrize("patterns", TRAINED.values(), ids=TRAINED)
def test_formula_equals_traced_step(patterns):
    batch = batches.batch([(batches.understanding(1), batches.generation(2)), (batches.text(),)])
    trained, frozen = partition(tiny.stacked_params(), patterns)
    traced = traced_flops(
        functools.partial(compute_gradients, stages.OBJECTIVE, Microbatching()), trained, frozen, batch
    )
    assert computed_items(batch).flops(flops_per_item(CONFIG, flatten_dict(trained, sep="/"))) == traced


@pytest.mark.slow
def test_input_image_costs_tokenizer_and_generation_adaptor_if_these_encode_it():
    two_encoders = replace(CONFIG, und_encoder=replace(CONFIG.und_encoder, patch_size=4))
    one_encoder = replace(two_encoders, understanding_encoder="gen_encoder")
    one, two = (flops_per_item(config, ()) for config in (one_encoder, two_encoders))
    vq, width = CONFIG.gen_encoder, CONFIG.llm.width
    adaptor = 2 * vq.num_tokens * (vq.code_dim * width + width * width)
    assert one.und_images == one.encoded_images + adaptor
    assert one._replace(und_images=0) == two._replace(und_images=0)


def test_images_with_precomputed_tokens_are_not_encoded():
    batch = batches.batch([(batches.generation(2),)])
    side = CONFIG.gen_encoder.image_size
    images = np.zeros((*batch.gen_ids.shape[:2], side, side, 3), np.uint8)
    assert count_items(batch, CONFIG).encoded_images == 0
    assert count_items(batch._replace(gen_images=images, gen_ids=None), CONFIG).encoded_images == 1


def test_items_are_counted_without_padding():
    und, gen = batches.understanding(1), batches.generation(2)
    lengths = [len(und.sequence), len(gen.sequence)]
    assert count_items(batches.batch([(und, gen), ()]), CONFIG) == ItemCounts(
        tokens=sum(lengths),
        pairs=sum(n * (n + 1) / 2 for n in lengths),
        und_images=1,
        gen_images=1,
        encoded_images=0,
        text_targets=len(und.text_targets) + len(gen.text_targets),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
def test_token_costs_six_flops_per_trained_weight(name):
    llm = preset(name).llm
    trained = [leaf.path for leaf in model_parameters(llm)]
    matrices = [
        leaf for leaf in model_parameters(llm) if leaf.path.startswith("llm/layers/") and "norm" not in leaf.path
    ]
    weights = sum(leaf.size for leaf in matrices)
    assert flops_per_item(preset(name), trained).tokens == 6 * weights
    # LoRA trains no weights of the model, but the gradient continues to its factors: four FLOPs per weight.
    assert flops_per_item(preset(name), ["llm/layers/attn/q/lora_a"]).tokens == 4 * weights


WIDE = JanusConfig(
    name="wide",
    und_encoder=SiglipConfig(image_size=32, patch_size=8, width=256, depth=1, num_heads=2, mlp_dim=1024),
    gen_encoder=VQConfig(32, 256, 8, 16, (1, 2), 1, 32, 8),
    llm=LlamaConfig(512, 256, 2, 2, 2, 128, 1024, max_positions=512),
    gen_head_width=256,
)


@pytest.mark.slow
def test_formula_agrees_with_xla_cost_analysis():
    # Only shapes matter, not values.
    batch = batches.batch([(batches.understanding(1),)])._replace(
        und_images=np.zeros((1, 2, 32, 32, 3), np.uint8),
        gen_starts=np.array([[8]]),
        gen_ids=np.zeros((1, 1, WIDE.gen_encoder.num_tokens), np.int32),
    )
    model = Janus(WIDE, Execution(layers="unrolled"))
    scanned = jax.eval_shape(lambda key: unbox(init_params(make_model(WIDE), key)), jax.random.key(0))
    unrolled = jax.eval_shape(functools.partial(unroll_params, config=WIDE), scanned)
    trained, frozen = partition(unrolled, stages.TRAINED["III"])
    compiled = (
        jax.jit(functools.partial(compute_gradients, TokenObjective(model), Microbatching()))
        .lower(trained, frozen, batch)
        .compile()
    )
    per_item = flops_per_item(WIDE, flatten_dict(partition(scanned, stages.TRAINED["III"])[0], sep="/"))
    assert compiled.cost_analysis()["flops"] == pytest.approx(computed_items(batch).flops(per_item), rel=0.05)
