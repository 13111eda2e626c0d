"""Floating-point operations of a step: by formula, as the program has them, and as XLA reckons them."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from checkpoints_convert.tree import leaves
from janus_jax.config import Execution, JanusConfig, LlamaConfig, SiglipConfig, VQConfig, preset
from janus_jax.models.backbone import unroll_params
from janus_jax.models.factory import init_params
from janus_jax.models.janus import Janus
from janus_jax.training.flops import PEAK_FLOPS, Amounts, amounts, peak_flops, step_costs
from janus_jax.training.param_paths import partition, unbox
from janus_jax.training.train_step import Microbatching, gradients
from tests import tiny
from tests.training import batches, stages
from tests.training.jaxprs import flops

CONFIG = tiny.CONFIG


def names(stage):
    return flatten_dict(stages.parts(stage)[0], sep="/")


def computed(batch, config=CONFIG):
    """What the program computes, padding and masked places too: a head's places are fewer than a chunk."""
    rows, length = batch.shape
    gen_images = batch.gen_starts.size
    return Amounts(
        places=rows * length,
        pairs=rows * length**2,
        und_images=rows * batch.und_images.shape[1],
        gen_images=gen_images,
        tokenized_images=gen_images if batch.gen_ids is None else 0,
        text_targets=batch.text_targets.size,
    )


PARTS = {**stages.TRAINED, "heads": ("llm/head/*", "gen_head/*"), "values": ("llm/layers/attn/v/weight", "gen_embed/*")}


@pytest.mark.parametrize("stage", PARTS)
def test_a_step_costs_what_its_program_computes(stage):
    batch = batches.batch([(batches.understanding(1), batches.generation(2)), (batches.text(),)])
    trained, frozen = partition(tiny.stacked_params(), PARTS[stage])
    held = computed(batch)
    in_program = flops(functools.partial(gradients, stages.MODEL, Microbatching()), trained, frozen, batch)
    reckoned = held.at(step_costs(CONFIG, flatten_dict(trained, sep="/")))
    assert reckoned == in_program


def test_understanding_by_the_tokenizer_costs_the_tokenizer_and_the_generation_adaptor():
    two_encoders = replace(CONFIG, und_encoder=replace(CONFIG.und_encoder, patch_size=4))
    one_encoder = replace(two_encoders, understands_by="gen_encoder")
    one, two = (step_costs(config, ()) for config in (one_encoder, two_encoders))
    vq, width = CONFIG.gen_encoder, CONFIG.llm.width
    adaptor = 2 * vq.num_tokens * (vq.code_dim * width + width * width)
    assert one.und_images == vq.encode_flops_per_image + adaptor
    assert one._replace(und_images=0) == two._replace(und_images=0)


def test_the_tokenizer_is_counted_where_it_runs():
    batch = batches.batch([(batches.generation(2),)])
    side = CONFIG.gen_encoder.image_size
    pictures = np.zeros((*batch.gen_ids.shape[:2], side, side, 3), np.uint8)
    unknown = amounts(batch._replace(gen_images=pictures, gen_ids=None), CONFIG)
    known = amounts(batch, CONFIG)
    costs = step_costs(CONFIG, names("II"))
    assert unknown.at(costs) - known.at(costs) == CONFIG.gen_encoder.encode_flops_per_image


def test_a_batch_holds_what_its_samples_do():
    und, gen = batches.understanding(1), batches.generation(2)
    lengths = [len(und.row), len(gen.row)]
    assert amounts(batches.batch([(und, gen), ()]), CONFIG) == Amounts(
        places=sum(lengths),
        pairs=sum(n * (n + 1) / 2 for n in lengths),
        und_images=1,
        gen_images=1,
        tokenized_images=0,
        text_targets=len(und.text_targets) + len(gen.text_targets),
    )


def test_a_later_stage_costs_more():
    held = amounts(batches.mixed(), CONFIG)
    first, second, third = (held.at(step_costs(CONFIG, names(stage))) for stage in stages.TRAINED)
    assert first < second < third


@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
def test_a_place_of_a_model_that_trains_costs_six_operations_a_weight(name):
    llm = preset(name).llm
    weights = llm.depth * (llm.num_layer_params - 2 * llm.width)
    trained = [leaf.path for leaf in leaves(llm)]
    assert step_costs(preset(name), trained).places == 6 * weights
    # Factors beside the weights let the gradient through, and the weights themselves have none.
    assert step_costs(preset(name), ["llm/layers/attn/q/lora_a"]).places == 4 * weights


WIDE = JanusConfig(
    name="wide",
    und_encoder=SiglipConfig(image_size=32, patch_size=8, width=256, depth=1, num_heads=2, mlp_dim=1024),
    gen_encoder=VQConfig(32, 256, 8, 16, (1, 2), 1, 32, 8),
    llm=LlamaConfig(512, 256, 2, 2, 2, 128, 1024, max_positions=512),
    gen_head_width=256,
)


def test_xla_reckons_the_same():
    # Numbers do not matter, shapes do.
    batch = batches.batch([(batches.understanding(1),)])._replace(
        und_images=np.zeros((1, 2, 32, 32, 3), np.uint8),
        gen_starts=np.array([[8]]),
        gen_ids=np.zeros((1, 1, WIDE.gen_encoder.num_tokens), np.int32),
    )
    model = Janus(WIDE, Execution(layers="unrolled"))
    make = functools.partial(init_params, WIDE, execution=replace(model.execution, layers="scanned"))
    params = jax.eval_shape(lambda key: unroll_params(unbox(make(key)), WIDE), jax.random.key(0))
    trained, frozen = partition(params, stages.TRAINED["III"])
    compiled = jax.jit(functools.partial(gradients, model, Microbatching())).lower(trained, frozen, batch).compile()
    held = computed(batch)
    scanned = jax.eval_shape(lambda key: unbox(make(key)), jax.random.key(0))
    costs = step_costs(WIDE, flatten_dict(partition(scanned, stages.TRAINED["III"])[0], sep="/"))
    assert compiled.cost_analysis()["flops"] == pytest.approx(held.at(costs), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "float16", 989e12),
        ("NVIDIA A100-SXM4-40GB", "float32", 19.5e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        ("TPU v4", "float32", None),
        ("cpu", "float32", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", None),
    ],
)
def test_a_device_s_peak_is_known_by_its_kind(kind, dtype, peak):
    assert peak_flops(kind, dtype) == peak


def test_no_row_of_the_peaks_hides_another():
    kinds = [kind for kind, _ in PEAK_FLOPS]
    assert all(peak_flops(kind, "bfloat16") == peaks["bfloat16"] for kind, peaks in PEAK_FLOPS)
    assert len(set(kinds)) == len(kinds)
