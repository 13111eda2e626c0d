"""Losses of image tokenizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.training.image_tokenizer import losses

LATENTS = jnp.array([[3.0, 1.0], [-1.0, 2.0]]).reshape(1, 1, 2, 2)
CODEBOOK = jnp.array([[2.0, 0.0], [0.0, 0.5]])


def test_latents_take_the_code_with_the_nearest_direction():
    quantized = losses.quantize(LATENTS, CODEBOOK)
    assert quantized.ids.tolist() == [[[0, 1]]]
    np.testing.assert_allclose(quantized.decoded[0, 0], [[1, 0], [0, 1]], atol=1e-6)


def test_gradient_is_straight_through_to_the_latents():
    weights = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(LATENTS.shape)

    def through_codes(latents):
        return jnp.sum(losses.quantize(latents, CODEBOOK).decoded * weights)

    def through_latents(latents):
        return jnp.sum(losses.quantize(latents, CODEBOOK).latents * weights)

    np.testing.assert_allclose(jax.grad(through_codes)(LATENTS), jax.grad(through_latents)(LATENTS), rtol=1e-6)


@pytest.mark.parametrize(("loss", "moves"), [(losses.codebook_loss, "codebook"), (losses.commitment_loss, "latents")])
def test_codebook_loss_moves_codes_and_commitment_loss_latents(loss, moves):
    by_latents, by_codebook = jax.grad(lambda *both: loss(losses.quantize(*both)), argnums=(0, 1))(LATENTS, CODEBOOK)
    assert bool(jnp.any(by_latents != 0)) == (moves == "latents")
    assert bool(jnp.any(by_codebook != 0)) == (moves == "codebook")


def test_entropy_loss_is_smallest_for_certain_and_even_assignments():
    codebook = jnp.eye(4)
    even = jnp.eye(4).reshape(1, 2, 2, 4)
    same = jnp.broadcast_to(codebook[0], (1, 2, 2, 4))
    unsure = jnp.ones((1, 2, 2, 4))
    best, collapsed, undecided = (float(losses.entropy_loss(x, codebook, 0.01)) for x in (even, same, unsure))
    assert best == pytest.approx(-np.log(4), abs=1e-4)
    assert collapsed == pytest.approx(0, abs=1e-4)
    assert undecided == pytest.approx(0, abs=1e-4)


def test_hinge_loss_is_zero_beyond_the_margin():
    sure, unsure = jnp.full((1, 2, 2), 1.5), jnp.zeros((1, 2, 2))
    assert float(losses.discriminator_hinge(sure, -sure)) == 0
    assert float(losses.discriminator_hinge(unsure, unsure)) == 1
    assert float(losses.generator_hinge(sure)) == -1.5


def test_edge_loss_ignores_brightness():
    image = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    assert float(losses.edge_loss(image, image + 0.5)) == pytest.approx(0, abs=1e-6)
    step = jnp.zeros((1, 2, 2, 3)).at[:, 1].set(1.0)
    assert float(losses.edge_loss(jnp.zeros_like(step), step)) == pytest.approx(1)
