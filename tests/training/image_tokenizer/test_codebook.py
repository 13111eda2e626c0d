"""What keeps a codebook in use."""

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.vq import nearest_codes, normalize
from janus_jax.training.image_tokenizer import codebook


def directions(count, dimensions=4):
    return normalize(jax.random.normal(jax.random.key(3), (count, dimensions)))


def test_kmeans_finds_the_directions_there_are():
    centres = jnp.eye(4)
    noise = 0.05 * jax.random.normal(jax.random.key(0), (40, 4))
    latents = normalize(jnp.repeat(centres, 10, axis=0) + noise)
    found = codebook.kmeans(latents, 4, jax.random.key(1))
    assert sorted(nearest_codes(centres, found).tolist()) == [0, 1, 2, 3]
    np.testing.assert_allclose(jnp.max(centres @ found.T, axis=1), 1, atol=0.01)


def test_kmeans_leaves_no_code_unused():
    latents = directions(64)
    found = codebook.kmeans(latents, 32, jax.random.key(0))
    assert len(set(nearest_codes(latents, found).tolist())) == 32


def test_moving_averages_end_at_the_mean_direction():
    latents, ids = directions(6), jnp.array([0, 0, 0, 1, 1, 1])
    use = codebook.start_use(jnp.eye(4)[:2], 6)
    batch = codebook.count_use(latents, ids, 2)
    for _ in range(40):
        use = codebook.average_use(use, batch, 0.5)
    expected = normalize(jnp.stack([latents[:3].sum(0), latents[3:].sum(0)]))
    np.testing.assert_allclose(codebook.mean_codes(use), expected, atol=1e-5)


def test_a_dead_code_goes_onto_a_latent_and_a_living_one_stays():
    latents = directions(8)
    use = codebook.CodeUse(jnp.array([1.0, 0.0, 1.0]), jnp.eye(4)[:3])
    new, dead = codebook.reseed(use, latents, 0.1, jax.random.key(0))
    assert dead.tolist() == [False, True, False]
    np.testing.assert_array_equal(new.sums[0], use.sums[0])
    assert float(jnp.max(latents @ normalize(new.sums[1]))) > 0.9999
    _, dead = codebook.reseed(new, latents, 0.1, jax.random.key(1))
    assert not dead.any()


def test_perplexity_counts_codes_in_even_use():
    assert np.isclose(codebook.perplexity(jnp.array([5.0, 5.0, 0.0, 5.0])), 3)
    assert np.isclose(codebook.perplexity(jnp.array([7.0, 0.0])), 1)
