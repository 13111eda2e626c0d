import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE
from janus_jax.config import Execution
from janus_jax.models.backbone import apply, to_images, to_pixels
from janus_jax.models.factory import init_params, make_model
from janus_jax.models.janus import Janus
from janus_jax.models.layers import WEIGHT_FIRST_MAX_ROWS, project
from tests import tiny


def conversation():
    question = {"role": "user", "content": "<image_placeholder>\nWhat is it?", "images": [tiny.picture(0)]}
    processor = tiny.processor()
    return processor.left_pad([processor.understanding_sequence([question]), processor.text_sequence("Two birds")])


def text_logits(execution, params):
    model = Janus(tiny.CONFIG, execution)
    batch = conversation()
    run = jax.jit(lambda params: apply(model.text_logits, params, model.apply({"params": params}, batch)))
    return np.asarray(run(params))[batch.is_token]


def test_unrolled_layers_equal_scanned_layers():
    scanned = text_logits(Execution(), tiny.stacked_params())
    np.testing.assert_allclose(text_logits(Execution(layers="unrolled"), tiny.unrolled_params()), scanned, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("layers", ["scanned", pytest.param("unrolled", marks=pytest.mark.nightly)])
def test_remat_keeps_value_and_gradient(remat, layers):
    params = tiny.stacked_params() if layers == "scanned" else tiny.unrolled_params()
    batch = conversation()

    def loss(params, policy):
        model = Janus(tiny.CONFIG, Execution(layers=layers, remat=policy))
        return jnp.square(model.apply({"params": params}, batch)).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, "none")
    other_value, other_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, remat)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other_gradient, gradient)


def test_bfloat16_logits_are_close_and_float32():
    params = tiny.stacked_params()
    exact = text_logits(Execution(), params)
    rounded = text_logits(Execution(dtype="bfloat16"), params)
    assert rounded.dtype == np.float32
    assert np.abs(rounded - exact).max() < 5e-2 * np.abs(exact).max()
    assert (rounded != exact).any()


def test_parameter_and_computation_dtypes_are_independent():
    execution = Execution(dtype="float32", param_dtype="bfloat16")
    shapes = jax.eval_shape(lambda key: init_params(make_model(tiny.CONFIG, execution), key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nn.unbox(shapes))} == {jnp.dtype("bfloat16")}
    hidden = jax.eval_shape(lambda p: Janus(tiny.CONFIG, execution).apply({"params": p}, conversation()), shapes)
    assert hidden.dtype == jnp.float32


def test_examples_in_a_sequence_are_independent():
    batch = conversation()
    first = batch.shape[1] // 2
    segments = np.ones_like(batch.segment_ids)
    segments[:, first:] = 2
    batch = batch._replace(segment_ids=segments)
    changed = batch._replace(tokens=batch.tokens.copy())
    changed.tokens[:, :first] = 3
    model = Janus(tiny.CONFIG)
    run = jax.jit(lambda batch: model.apply({"params": tiny.stacked_params()}, batch))
    np.testing.assert_array_equal(run(batch)[:, first:], run(changed)[:, first:])


def test_image_positions_depend_on_their_image_only():
    batch = conversation()
    model, params = Janus(tiny.CONFIG), tiny.stacked_params()
    embed = jax.jit(lambda batch: apply(model.embed, params, batch))
    images = np.array(batch.und_images)
    images[0] = 255 - images[0]
    differs = (embed(batch) != embed(batch._replace(und_images=images))).any(axis=-1)
    np.testing.assert_array_equal(differs, batch.und_patch_index != NO_IMAGE)


@pytest.mark.slow
def test_target_images_are_embedded_as_their_tokens():
    processor = tiny.processor()
    batch = processor.left_pad([processor.generation_sequence("A red boat", tiny.picture(3))])
    model, params = Janus(tiny.CONFIG), tiny.stacked_params()
    ids = apply(model.tokenize, params, to_pixels(jnp.asarray(batch.gen_images[:, 0])))
    precomputed = apply(model.embed, params, batch._replace(gen_ids=ids[:, None]))
    np.testing.assert_allclose(apply(model.embed, params, batch), precomputed, atol=1e-6)
    embedded = precomputed[0, batch.gen_token_index[0] != NO_IMAGE]
    np.testing.assert_allclose(embedded, apply(model.embed_image_tokens, params, ids[0]), atol=1e-6)


def test_to_images_inverts_to_pixels():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    # Adds half a step, because `to_images` truncates.
    np.testing.assert_array_equal(to_images(to_pixels(images) + 1 / 255), images)


@pytest.mark.parametrize("rows", [1, WEIGHT_FIRST_MAX_ROWS, WEIGHT_FIRST_MAX_ROWS + 1])
def test_both_product_orders_agree(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 4, 8))
    weight = jax.random.normal(jax.random.key(1), (3, 5, 4, 8))
    np.testing.assert_allclose(project(x, weight, 2), np.einsum("rab,cdab->rcd", x, weight), atol=1e-5)


def test_program_size_is_independent_of_depth():
    def operations(depth):
        config = dataclasses.replace(tiny.CONFIG, llm=dataclasses.replace(tiny.CONFIG.llm, depth=depth))
        shapes = nn.unbox(jax.eval_shape(lambda key: init_params(make_model(config), key), jax.random.key(0)))
        model = Janus(config)
        return jax.jit(lambda p: model.apply({"params": p}, conversation())).lower(shapes).as_text().count("\n")

    assert operations(24) == operations(3)


def equal_encoders(understanding_encoder="gen_encoder"):
    """Returns a config with as many patches per input image as tokens per target image."""
    patches = dataclasses.replace(tiny.CONFIG.und_encoder, patch_size=4)
    return dataclasses.replace(tiny.CONFIG, und_encoder=patches, understanding_encoder=understanding_encoder)


@pytest.mark.slow
def test_image_tokenizer_can_serve_understanding():
    config = equal_encoders()
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    model, params = Janus(config, Execution(layers="unrolled")), tiny.unrolled_params()
    ids = apply(model.tokenize, params, pixels)
    assert len(np.unique(ids)) > 1
    np.testing.assert_array_equal(
        apply(model.embed_input_images, params, pixels), apply(model.embed_image_tokens, params, ids)
    )


def test_parameters_do_not_depend_on_the_understanding_encoder():
    shapes = [
        jax.eval_shape(lambda config=config: init_params(make_model(config), jax.random.key(0)))
        for config in (equal_encoders(), equal_encoders("und_encoder"))
    ]
    assert shapes[0] == shapes[1]


def test_unrolled_scan_equals_plain_scan():
    scanned = text_logits(Execution(), tiny.stacked_params())
    np.testing.assert_allclose(text_logits(Execution(scan_unroll=2), tiny.stacked_params()), scanned, atol=1e-5)
