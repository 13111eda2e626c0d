"""Codebook updates other than the gradient: k-means initialization, moving averages, replacement of unused codes.

The released VQ-16 uses the gradient only. A training of minutes needs the other updates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from janus_jax.models.vq import nearest_codes, normalize


class CodeUsage(NamedTuple):
    """Latents assigned to each code in a batch, or the moving average over batches.

    Attributes:
      counts: Number of latents assigned to each code.
      sums: Sum of the latents assigned to each code. Latents are on the unit sphere.
    """

    counts: Float[Array, " V"]
    sums: Float[Array, "V C"]


def uniform_usage(codebook: Float[Array, "V C"], latents_per_batch: int) -> CodeUsage:
    """Returns the usage if all codes were used equally often."""
    counts = jnp.full(codebook.shape[0], latents_per_batch / codebook.shape[0], jnp.float32)
    return CodeUsage(counts, counts[:, None] * normalize(codebook))


def batch_usage(latents: Float[Array, "M C"], ids: Int[Array, " M"], codebook_size: int) -> CodeUsage:
    """Returns the usage of the codes by one batch."""
    counts = jnp.zeros(codebook_size, jnp.float32).at[ids].add(1.0)
    sums = jnp.zeros((codebook_size, latents.shape[-1]), jnp.float32).at[ids].add(latents)
    return CodeUsage(counts, sums)


def update_usage(usage: CodeUsage, batch: CodeUsage, decay: float) -> CodeUsage:
    """Returns the moving average after a further batch (arXiv 1711.00937, appendix A.1)."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, usage, batch)


def mean_codes(usage: CodeUsage) -> Float[Array, "V C"]:
    """Returns the mean direction of the latents assigned to each code."""
    return normalize(usage.sums)


def reseed(
    usage: CodeUsage, latents: Float[Array, "M C"], threshold: float, key: Key[Array, ""]
) -> tuple[CodeUsage, Array]:
    """Replaces rarely used codes by random latents of the batch (random restarts, arXiv 2005.00341, §3.1).

    Args:
      threshold: Codes whose count is below this fraction of the mean count are replaced.

    Returns:
      The new usage, in which a replaced code has the mean count, and a mask [V] of the replaced codes.
    """
    mean = jnp.mean(usage.counts)
    unused = usage.counts < threshold * mean
    chosen = latents[jax.random.randint(key, unused.shape, 0, latents.shape[0])]
    counts = jnp.where(unused, mean, usage.counts)
    return CodeUsage(counts, jnp.where(unused[:, None], mean * chosen, usage.sums)), unused


def kmeans(
    latents: Float[Array, "M C"], num_codes: int, key: Key[Array, ""], iterations: int = 20
) -> Float[Array, "V C"]:
    """Clusters latents by spherical k-means with k-means++ initialization.

    The center of an empty cluster moves to a latent that is far from the center of its cluster.

    Args:
      latents: Latents on the unit sphere.

    Returns:
      Cluster centers on the unit sphere.
    """

    def add_center(i: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # Latents far from all centers are more likely: most patches are background, and rare ones need centers too.
        centers, distances = state
        index = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(jnp.maximum(distances, 1e-9)))
        center = latents[index]
        return centers.at[i].set(center), jnp.minimum(distances, 1 - latents @ center)

    empty = jnp.zeros((num_codes, latents.shape[-1])), jnp.ones(latents.shape[0])
    initial, _ = jax.lax.fori_loop(0, num_codes, add_center, empty)

    def iterate(_: int, centers: Float[Array, "V C"]) -> Float[Array, "V C"]:
        ids = nearest_codes(latents, centers)
        usage = batch_usage(latents, ids, num_codes)
        similarity = jnp.sum(latents * centers[ids], axis=-1)
        farthest = jax.lax.top_k(-similarity, min(num_codes, latents.shape[0]))[1]
        order = jnp.cumsum(usage.counts == 0) - 1
        restarts = latents[farthest[jnp.clip(order, 0, farthest.shape[0] - 1)]]
        return normalize(jnp.where((usage.counts == 0)[:, None], restarts, usage.sums))

    return jax.lax.fori_loop(0, iterations, iterate, initial)


def perplexity(counts: Float[Array, " V"]) -> Float[Array, ""]:
    """Returns exp(entropy) of the code frequencies: V if all codes are used equally, 1 if only one is used."""
    frequency = counts / jnp.maximum(jnp.sum(counts), 1e-12)
    return jnp.exp(-jnp.sum(frequency * jnp.log(jnp.maximum(frequency, 1e-12))))
