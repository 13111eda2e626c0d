"""What the image tokenizer and its discriminator are trained to make small (LlamaGen, arXiv 2406.06525, §2.1, eq. 1).

Pixels are in [-1, 1], latents and codes on the unit sphere. Every loss is a mean over what it is given.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.models.vq import nearest_codes, normalize
from janus_jax.training.image_tokenizer.recipe import PixelWeights


class Quantized(NamedTuple):
    """Latents and what became of them.

    Attributes:
      latents: on the unit sphere.
      codes: the nearest codes; to the gradient they are the codebook.
      decoded: the codes' numbers; to the gradient they are the latents (straight-through, arXiv 1711.00937, §3.1).
      ids: of the codes.
    """

    latents: Float[Array, "B h w C"]
    codes: Float[Array, "B h w C"]
    decoded: Float[Array, "B h w C"]
    ids: Int[Array, "B h w"]


def quantize(latents: Float[Array, "B h w C"], codebook: Float[Array, "V C"]) -> Quantized:
    """The nearest codes of latents. Neither need be of length 1."""
    latents, table = normalize(latents), normalize(codebook)
    ids = nearest_codes(latents, table)
    codes = jnp.take(table, ids, axis=0)
    return Quantized(latents, codes, latents + lax.stop_gradient(codes - latents), ids)


def codebook_loss(quantized: Quantized) -> Float[Array, ""]:
    """Draws the codes to the latents that chose them (arXiv 1711.00937, eq. 3, second term)."""
    return jnp.mean(jnp.square(quantized.codes - lax.stop_gradient(quantized.latents)))


def commitment_loss(quantized: Quantized) -> Float[Array, ""]:
    """Draws the latents to the codes they chose (arXiv 1711.00937, eq. 3, third term)."""
    return jnp.mean(jnp.square(lax.stop_gradient(quantized.codes) - quantized.latents))


def entropy_loss(
    latents: Float[Array, "B h w C"], codebook: Float[Array, "V C"], temperature: float
) -> Float[Array, ""]:
    """Mean entropy of a latent's choice minus the entropy of the mean choice (MaskGIT's tokenizer, arXiv 2202.04200).

    Small where each latent is sure of its code and all codes are in use.

    Args:
      temperature: of the softmax over similarities.
    """
    similarity = jnp.einsum("bhwc,vc->bhwv", normalize(latents), normalize(codebook), precision=lax.Precision.HIGHEST)
    # Squared distances on the unit sphere are 2 - 2 similarity.
    log_choice = jax.nn.log_softmax(2 * similarity / temperature)
    choice = jnp.exp(log_choice)
    mean_choice = jnp.mean(choice, axis=(0, 1, 2))
    of_each = -jnp.mean(jnp.sum(choice * log_choice, axis=-1))
    of_mean = -jnp.sum(mean_choice * jnp.log(mean_choice + 1e-12))
    return of_each - of_mean


def pixel_losses(
    weights: PixelWeights, images: Float[Array, "B H W 3"], reconstructions: Float[Array, "B H W 3"]
) -> dict[str, Float[Array, ""]]:
    """What is to be made small of reconstructions beside their images, by name; already weighted."""
    error = reconstructions - images
    chroma = (jnp.max(images, axis=-1, keepdims=True) - jnp.min(images, axis=-1, keepdims=True)) / 2
    importance = 1 + weights.colourful * chroma
    terms = {
        "l2": weights.l2 * jnp.mean(importance * jnp.square(error)),
        "l1": weights.l1 * jnp.mean(importance * jnp.abs(error)),
    }
    if weights.edge:
        terms["edge"] = weights.edge * edge_loss(images, reconstructions)
    return terms


def edge_loss(images: Float[Array, "B H W 3"], reconstructions: Float[Array, "B H W 3"]) -> Float[Array, ""]:
    """Mean absolute difference of the differences between neighbouring pixels, down and across."""
    error = reconstructions - images
    down, across = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
    return jnp.mean(jnp.abs(down)) + jnp.mean(jnp.abs(across))


def generator_hinge(fake_logits: Float[Array, "B h w"]) -> Float[Array, ""]:
    """The adversarial loss of reconstructions (arXiv 1705.02894)."""
    return -jnp.mean(fake_logits)


def discriminator_hinge(real_logits: Float[Array, "B h w"], fake_logits: Float[Array, "B h w"]) -> Float[Array, ""]:
    """The discriminator's loss: real above 1, reconstructed below -1."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real_logits)) + jnp.mean(jax.nn.relu(1 + fake_logits)))
