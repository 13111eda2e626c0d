"""How a codebook is kept in use: a start from the data, moving averages, and new codes for dead ones.

VQ-16 as released learns its codebook by the gradient alone; a small codebook that is trained for minutes needs the
rest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from janus_jax.models.vq import nearest_codes, normalize


class CodeUse(NamedTuple):
    """Moving averages over batches.

    Attributes:
      counts: latents that chose each code, in a batch.
      sums: of those latents, on the unit sphere.
    """

    counts: Float[Array, " V"]
    sums: Float[Array, "V C"]


def start_use(codebook: Float[Array, "V C"], latents_per_batch: int) -> CodeUse:
    """As if every code had been chosen equally often, by latents like itself."""
    counts = jnp.full(codebook.shape[0], latents_per_batch / codebook.shape[0], jnp.float32)
    return CodeUse(counts, counts[:, None] * normalize(codebook))


def count_use(latents: Float[Array, "M C"], ids: Int[Array, " M"], codebook_size: int) -> CodeUse:
    """The use of one batch."""
    counts = jnp.zeros(codebook_size, jnp.float32).at[ids].add(1.0)
    sums = jnp.zeros((codebook_size, latents.shape[-1]), jnp.float32).at[ids].add(latents)
    return CodeUse(counts, sums)


def average_use(use: CodeUse, batch: CodeUse, decay: float) -> CodeUse:
    """The moving averages after one more batch (arXiv 1711.00937, appendix A.1)."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, use, batch)


def mean_codes(use: CodeUse) -> Float[Array, "V C"]:
    """The directions in which the latents of each code lie."""
    return normalize(use.sums)


def reseed(use: CodeUse, latents: Float[Array, "M C"], below: float, key: Key[Array, ""]) -> tuple[CodeUse, Array]:
    """Puts each dead code onto a latent of the batch (arXiv 2005.00341, §3.1, random restarts).

    Args:
      below: a code is dead that is chosen less often than this share of the mean.

    Returns:
      The use, in which a new code counts as chosen as often as the mean; and which codes are new, [V] of bool.
    """
    mean = jnp.mean(use.counts)
    dead = use.counts < below * mean
    chosen = latents[jax.random.randint(key, dead.shape, 0, latents.shape[0])]
    return CodeUse(jnp.where(dead, mean, use.counts), jnp.where(dead[:, None], mean * chosen, use.sums)), dead


def kmeans(latents: Float[Array, "M C"], num_codes: int, key: Key[Array, ""], rounds: int = 20) -> Float[Array, "V C"]:
    """Spherical k-means: directions around which the latents lie.

    A centre that no latent is nearest to goes to the latent that is farthest from its own.

    Args:
      latents: on the unit sphere.
    """

    def choose(i: int, chosen: tuple[Array, Array]) -> tuple[Array, Array]:
        # Likelier the farther from those before (k-means++): many a patch is plain background, and rare ones count.
        centres, distances = chosen
        place = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(jnp.maximum(distances, 1e-9)))
        centre = latents[place]
        return centres.at[i].set(centre), jnp.minimum(distances, 1 - latents @ centre)

    nowhere = jnp.zeros((num_codes, latents.shape[-1])), jnp.ones(latents.shape[0])
    start, _ = jax.lax.fori_loop(0, num_codes, choose, nowhere)

    def improve(_: int, centres: Float[Array, "V C"]) -> Float[Array, "V C"]:
        ids = nearest_codes(latents, centres)
        use = count_use(latents, ids, num_codes)
        own = jnp.sum(latents * centres[ids], axis=-1)
        farthest = jax.lax.top_k(-own, min(num_codes, latents.shape[0]))[1]
        order = jnp.cumsum(use.counts == 0) - 1
        instead = latents[farthest[jnp.clip(order, 0, farthest.shape[0] - 1)]]
        return normalize(jnp.where((use.counts == 0)[:, None], instead, use.sums))

    return jax.lax.fori_loop(0, rounds, improve, start)


def perplexity(counts: Float[Array, " V"]) -> Float[Array, ""]:
    """exp of the entropy of the codes' frequencies: how many codes used equally often would be as hard to guess."""
    share = counts / jnp.maximum(jnp.sum(counts), 1e-12)
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))
