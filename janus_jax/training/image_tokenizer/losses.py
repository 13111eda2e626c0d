"""Losses of image tokenizers and their discriminator (LlamaGen, arXiv 2406.06525, §2.1, eq. 1).

Pixels are in [-1, 1]. Latents and codes of a VQ tokenizer are on the unit sphere. A loss is a mean over its inputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.models.vae import Gaussian
from janus_jax.models.vq import nearest_codes, normalize
from janus_jax.training.image_tokenizer.recipe import LossWeights

Terms = dict[str, Float[Array, ""]]
"""Weighted loss terms by name."""

PixelLosses = Callable[[LossWeights, Float[Array, "B H W 3"], Float[Array, "B H W 3"]], Terms]
"""Maps loss weights, images and reconstructions to weighted loss terms."""


class Quantized(NamedTuple):
    """Latents and their nearest codes.

    Attributes:
      latents: Latents on the unit sphere.
      codes: Nearest code of each latent. Its gradient flows to the codebook.
      decoded: The values of `codes` with a gradient that flows to the latents (straight-through estimator,
        arXiv 1711.00937, §3.1).
      ids: Id of the nearest code of each latent.
    """

    latents: Float[Array, "B h w C"]
    codes: Float[Array, "B h w C"]
    decoded: Float[Array, "B h w C"]
    ids: Int[Array, "B h w"]


def quantize(latents: Float[Array, "B h w C"], codebook: Float[Array, "V C"]) -> Quantized:
    """Normalizes latents and codebook, and finds the nearest code of each latent."""
    latents, table = normalize(latents), normalize(codebook)
    ids = nearest_codes(latents, table)
    codes = jnp.take(table, ids, axis=0)
    return Quantized(latents, codes, latents + lax.stop_gradient(codes - latents), ids)


def codebook_loss(quantized: Quantized) -> Float[Array, ""]:
    """Returns the loss that moves codes toward their latents (arXiv 1711.00937, eq. 3, second term)."""
    return jnp.mean(jnp.square(quantized.codes - lax.stop_gradient(quantized.latents)))


def commitment_loss(quantized: Quantized) -> Float[Array, ""]:
    """Returns the loss that moves latents toward their codes (arXiv 1711.00937, eq. 3, third term)."""
    return jnp.mean(jnp.square(lax.stop_gradient(quantized.codes) - quantized.latents))


def entropy_loss(
    latents: Float[Array, "B h w C"], codebook: Float[Array, "V C"], temperature: float
) -> Float[Array, ""]:
    """Returns the mean entropy of the assignments minus the entropy of their mean (MaskGIT, arXiv 2202.04200).

    The loss is small if each latent is close to one code and all codes are used.

    Args:
      temperature: Temperature of the softmax over similarities.
    """
    similarity = jnp.einsum("bhwc,vc->bhwv", normalize(latents), normalize(codebook), precision=lax.Precision.HIGHEST)
    # Squared distances on the unit sphere are 2 - 2 similarity.
    log_probs = jax.nn.log_softmax(2 * similarity / temperature)
    probs = jnp.exp(log_probs)
    mean_probs = jnp.mean(probs, axis=(0, 1, 2))
    mean_entropy = -jnp.mean(jnp.sum(probs * log_probs, axis=-1))
    entropy_of_mean = -jnp.sum(mean_probs * jnp.log(mean_probs + 1e-12))
    return mean_entropy - entropy_of_mean


def kl_loss(latents: Gaussian) -> Float[Array, ""]:
    """Returns the KL divergence of the latents from a standard normal: the sum over an image, the mean over images."""
    divergence = jnp.square(latents.mean) + jnp.exp(latents.log_variance) - 1 - latents.log_variance
    return 0.5 * jnp.mean(jnp.sum(divergence, axis=(1, 2, 3)))


def pixel_losses(
    weights: LossWeights, images: Float[Array, "B H W 3"], reconstructions: Float[Array, "B H W 3"]
) -> Terms:
    """Returns the weighted L2 and L1 losses, and the edge loss if it has a weight."""
    error = reconstructions - images
    terms = {"l2": weights.l2 * jnp.mean(jnp.square(error)), "l1": weights.l1 * jnp.mean(jnp.abs(error))}
    if weights.edge:
        terms["edge"] = weights.edge * edge_loss(images, reconstructions)
    return terms


def edge_loss(images: Float[Array, "B H W 3"], reconstructions: Float[Array, "B H W 3"]) -> Float[Array, ""]:
    """Returns the mean absolute error of the vertical and horizontal differences of neighboring pixels."""
    error = reconstructions - images
    vertical, horizontal = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
    return jnp.mean(jnp.abs(vertical)) + jnp.mean(jnp.abs(horizontal))


def generator_hinge(fake_logits: Float[Array, "B h w"]) -> Float[Array, ""]:
    """Returns the adversarial loss of the tokenizer (arXiv 1705.02894)."""
    return -jnp.mean(fake_logits)


def discriminator_hinge(real_logits: Float[Array, "B h w"], fake_logits: Float[Array, "B h w"]) -> Float[Array, ""]:
    """Returns the hinge loss of the discriminator: logits of images should exceed 1, of reconstructions be below -1."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real_logits)) + jnp.mean(jax.nn.relu(1 + fake_logits)))
