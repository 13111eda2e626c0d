"""Log-probabilities of sampled image tokens.

The prompt of a sequence is padded on the left, padding is masked, and rotary positions start at the first token of the
prompt. The log-probabilities of an image therefore do not depend on the other images of its batch.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.generation.decode import guide
from janus_jax.models.backbone import Params, apply
from janus_jax.models.janus import Janus
from janus_jax.training.losses.cross_entropy import target_logits


class TokenDistribution(NamedTuple):
    """The distribution whose log-probabilities are computed.

    Attributes:
      guidance_scale: Guidance scale s of the logits u + s (c - u), for sequences with an unconditional sequence.
      temperature: Divisor of the logits.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0


class TokenScores(NamedTuple):
    """Scores of sampled image tokens, in nats.

    Attributes:
      log_probs: Log-probability of each token.
      entropy: Entropy of the distribution of each token, without a gradient.
    """

    log_probs: Float[Array, "B N"]
    entropy: Float[Array, "B N"]


def append_images(prompts: Batch, ids: Int[Array, "B N"]) -> Batch:
    """Appends an image to each prompt, for `score_image_tokens`.

    Args:
      prompts: B * Q left-padded prompts that end with begin-of-image, the Q sequences of an image next to each other.
      ids: Image tokens of each image.

    Returns:
      Batch whose arrays have the shape [B, Q, ...].
    """
    count, num_tokens = ids.shape
    per_image, length = prompts.tokens.shape[0] // count, prompts.tokens.shape[1]
    ids = jnp.repeat(ids, per_image, axis=0)
    numbers = jnp.arange(num_tokens)

    def append(x: Int[Array, "B*Q T"], values: Array) -> Int[Array, "B*Q L"]:
        return jnp.concatenate([x, jnp.broadcast_to(values, ids.shape).astype(x.dtype)], axis=1)

    batch = prompts._replace(
        # The embeddings of these tokens are not used.
        tokens=append(prompts.tokens, jnp.zeros(())),
        segment_ids=append(prompts.segment_ids, prompts.segment_ids[:, -1:]),
        positions=append(prompts.positions, prompts.positions[:, -1:] + 1 + numbers),
        und_patch_index=append(prompts.und_patch_index, jnp.asarray(NO_IMAGE)),
        gen_token_index=append(prompts.gen_token_index, numbers),
        gen_starts=jnp.full((len(ids), 1), length, jnp.int32),
        gen_ids=ids[:, None],
    )
    return jax.tree.map(lambda x: x.reshape(count, per_image, *x.shape[1:]), batch)


def score_image_tokens(
    model: Janus, params: Params, sequences: Batch, distribution: TokenDistribution, *, chunk: int
) -> TokenScores:
    """Computes the log-probabilities of the tokens of one image per example.

    Args:
      model: The network.
      params: Parameters of the network.
      sequences: Batch whose arrays have the shape [B, Q, ...]: for each image its sequence (Q = 1), or its sequence and
        its unconditional sequence (Q = 2). The image tokens are in `gen_ids`, from position `gen_starts` on.
      distribution: The distribution of the tokens.
      chunk: Tokens per sequence with logits in memory at a time. The backward pass computes the logits again.
    """
    count, per_image = sequences.tokens.shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(count * per_image, *x.shape[2:]), sequences)
    assert flat.gen_starts is not None
    assert flat.gen_ids is not None
    tokens = flat.gen_ids[::per_image, 0]
    num_tokens = tokens.shape[1]
    hidden = apply(model.__call__, params, flat)
    positions = flat.gen_starts[:, :1] - 1 + jnp.arange(num_tokens)
    states = jnp.take_along_axis(hidden, positions[..., None], axis=1)

    num_chunks = -(-num_tokens // chunk)
    width = -(-num_tokens // num_chunks)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, num_chunks * width - num_tokens), *((0, 0),) * (x.ndim - 2)))
        x = jnp.moveaxis(x.reshape(x.shape[0], num_chunks, width, *x.shape[2:]), 1, 0)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    @jax.checkpoint
    def score(states: Float[Array, "B*Q C D"], tokens: Int[Array, "B C"]) -> TokenScores:
        logits = guide(apply(model.image_logits, params, states), count, distribution.guidance_scale)
        logits = nn.with_logical_constraint(logits / distribution.temperature, ("batch", None, "vocab"))
        total = jax.nn.logsumexp(logits, axis=-1)
        fixed = lax.stop_gradient(logits - total[..., None])
        return TokenScores(target_logits(logits, tokens) - total, -jnp.sum(jnp.exp(fixed) * fixed, axis=-1))

    _, scores = lax.scan(lambda _, chunk: (None, score(*chunk)), None, (split(states), split(tokens)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(count, -1)[:, :num_tokens], scores)
