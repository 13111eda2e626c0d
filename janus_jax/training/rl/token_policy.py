"""The policy of Janus: image tokens and their log-probabilities.

The prompt of a sequence is padded on the left, padding is masked, and rotary positions start at the first token of the
prompt. The log-probabilities of an image therefore do not depend on the other images of its batch.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from janus_jax.batch import Batch
from janus_jax.config import ModelConfig
from janus_jax.generation.decode import guide, repeat_prompts
from janus_jax.generation.image_tokens import TokenSampler
from janus_jax.models.backbone import Params, apply
from janus_jax.models.janus import Janus
from janus_jax.training.losses.cross_entropy import target_logits
from janus_jax.training.rl.policy import ImagePolicy, Samples, Scores, append_image_positions


class TokenDistribution(NamedTuple):
    """The distribution whose log-probabilities are computed.

    Attributes:
      guidance_scale: Guidance scale s of the logits u + s (c - u), for sequences with an unconditional sequence.
      temperature: Divisor of the logits.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class TokenPolicy(ImagePolicy):
    """Policy whose actions are the tokens of an image.

    Its trajectories are those of `append_images`.

    Attributes:
      distribution: The distribution whose log-probabilities are computed.
      token_sampler: Samples the images.
    """

    distribution: TokenDistribution = field(default_factory=TokenDistribution)
    token_sampler: TokenSampler = field(default_factory=TokenSampler)

    frozen_part = "gen_encoder"

    @property
    def sampler(self) -> TokenSampler:
        """See `ImagePolicy`."""
        return self.token_sampler

    @property
    def sequences_per_image(self) -> int:
        """Number Q of sequences of an image in a trajectory: 2 for log-probabilities of the guided distribution."""
        return 1 if self.distribution.guidance_scale == 1 else 2

    def sample(self, model: Any, params: Params, prompts: Batch, keys: Key[Array, "P G"]) -> Samples:
        """See `ImagePolicy`."""
        tokens = self.token_sampler.sample(model, params, prompts, keys)
        return Samples(_with_images(prompts, tokens, *keys.shape, self.sequences_per_image), tokens)

    def num_actions(self, trajectories: Batch) -> int:
        """See `ImagePolicy`."""
        assert trajectories.gen_ids is not None
        count: int = trajectories.gen_ids.shape[-1]
        return count

    def score(self, model: Any, params: Params, trajectories: Batch, chunk: int) -> Scores:
        """See `ImagePolicy`."""
        return score_image_tokens(model, params, trajectories, self.distribution, chunk=chunk)

    def kl(self, distributions: Float[Array, "B N"], reference: Float[Array, "B N"]) -> Float[Array, "B N"]:
        """Returns the unbiased, non-negative estimate of the KL divergence (DeepSeekMath, eq. 4).

        The distributions are given by the log-probabilities of the sampled tokens.
        """
        return jnp.expm1(reference - distributions) - (reference - distributions)

    def example(self, config: ModelConfig, prompt: Batch, count: int) -> tuple[Batch, Float[Array, "B N"]]:
        """See `ImagePolicy`."""
        prompts = jax.tree.map(lambda x: jnp.repeat(x, count * self.sequences_per_image, axis=0), prompt)
        tokens = jnp.zeros((count, config.num_gen_tokens), jnp.int32)
        return append_images(prompts, tokens), jnp.zeros(tokens.shape)


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
    batch = append_image_positions(prompts, num_tokens)._replace(
        gen_starts=jnp.full((len(ids), 1), length, jnp.int32), gen_ids=ids[:, None]
    )
    return jax.tree.map(lambda x: x.reshape(count, per_image, *x.shape[1:]), batch)


@functools.partial(jax.jit, static_argnames=("num_prompts", "per_prompt", "per_image"))
def _with_images(prompts: Batch, tokens: Int[Array, "B N"], num_prompts: int, per_prompt: int, per_image: int) -> Batch:
    """Appends the images to their prompts; without unconditional sequences if `per_image` is 1."""
    read = prompts.tokens.shape[0] // num_prompts
    prompts = jax.tree.map(lambda x: repeat_prompts(x, num_prompts, per_prompt)[:: read // per_image], prompts)
    return append_images(prompts, tokens)


def score_image_tokens(
    model: Janus, params: Params, sequences: Batch, distribution: TokenDistribution, *, chunk: int
) -> Scores:
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
    def score(states: Float[Array, "B*Q C D"], tokens: Int[Array, "B C"]) -> tuple[Array, Array]:
        logits = guide(apply(model.image_logits, params, states), count, distribution.guidance_scale)
        logits = nn.with_logical_constraint(logits / distribution.temperature, ("batch", None, "vocab"))
        total = jax.nn.logsumexp(logits, axis=-1)
        fixed = lax.stop_gradient(logits - total[..., None])
        log_probs = target_logits(logits, tokens) - total
        return log_probs, -jnp.sum(jnp.exp(fixed) * fixed, axis=-1)

    _, scores = lax.scan(lambda _, chunk: (None, score(*chunk)), None, (split(states), split(tokens)))
    log_probs, entropy = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(count, -1)[:, :num_tokens], scores)
    return Scores(log_probs, entropy, log_probs)
