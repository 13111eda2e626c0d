"""The interface between policy optimization and a model family.

An image is the result of actions, which the model samples one after another: the tokens of a Janus image, or the steps
of a JanusFlow image from noise to latents. A trajectory holds a prompt and the actions of an image. Rollouts, rewards,
advantages, the loss and the updates are the same for all families.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import ModelConfig
from janus_jax.generation.image_sampler import ImageSampler
from janus_jax.models.backbone import Params


class Samples(NamedTuple):
    """B sampled images.

    Attributes:
      trajectories: Arrays of which `ImagePolicy.score` computes probabilities, with the leading axis B.
      outputs: Image tokens or latents, of which `ImagePolicy.sampler` decodes the images.
    """

    trajectories: Any
    outputs: Shaped[Array, "B ..."]


class Scores(NamedTuple):
    """Scores of the N actions of B images.

    Attributes:
      log_probs: Log-probability of each action, in nats.
      entropy: Entropy of the distribution of each action, without a gradient.
      distributions: What `ImagePolicy.kl` reads of the distribution of each action.
    """

    log_probs: Float[Array, "B N"]
    entropy: Float[Array, "B N"]
    distributions: Float[Array, "B N ..."]


class ImagePolicy(ABC):
    """How the images of a model family are sampled, and the probabilities of their actions.

    A policy holds settings only. The network is an argument, because sampling and training compute it differently.

    Attributes:
      frozen_part: Top-level parameter key of the image tokenizer or VAE, which has no gradient.
    """

    frozen_part: ClassVar[str]

    @property
    @abstractmethod
    def sampler(self) -> ImageSampler:
        """Sampler of the held-out images. It also prepares prompts and decodes images in rollouts."""

    @abstractmethod
    def sample(self, model: Any, params: Params, prompts: Batch, keys: Key[Array, "P G"]) -> Samples:
        """Samples G images for each of P prompts.

        Args:
          model: The network.
          params: Parameters of the network.
          prompts: Prompts as `sampler` prepares them, left-padded.
          keys: Random key of each image. An image depends on its prompt and its key, not on the rest of the batch.

        Raises:
          JanusError: The model computes NaN.
        """

    @abstractmethod
    def num_actions(self, trajectories: Any) -> int:
        """Returns the number N of actions per image."""

    @abstractmethod
    def score(self, model: Any, params: Params, trajectories: Any, chunk: int) -> Scores:
        """Computes the scores of the actions of trajectories.

        Args:
          model: The network.
          params: Parameters of the network.
          trajectories: Trajectories of B images.
          chunk: Target tokens per sequence with logits in memory at a time, for models with image tokens.
        """

    @abstractmethod
    def kl(self, distributions: Float[Array, "B N ..."], reference: Float[Array, "B N ..."]) -> Float[Array, "B N"]:
        """Returns the KL divergence from the reference for each action, or an unbiased estimate.

        Args:
          distributions: `Scores.distributions` under the trained parameters, with a gradient.
          reference: The same under the reference.
        """

    @abstractmethod
    def example(self, config: ModelConfig, prompt: Batch, count: int) -> tuple[Any, Float[Array, "B N ..."]]:
        """Returns trajectories and distributions of zeros with the shapes of `count` images.

        Args:
          config: Config of the model.
          prompt: A batch of one prompt.
          count: Number of images B.
        """


def append_image_positions(prompts: Batch, num_tokens: int) -> Batch:
    """Appends the positions of an image with `num_tokens` tokens to each left-padded prompt."""
    numbers = jnp.arange(num_tokens)

    def append(x: Int[Array, "B T"], values: Array) -> Int[Array, "B L"]:
        return jnp.concatenate([x, jnp.broadcast_to(values, (len(x), num_tokens)).astype(x.dtype)], axis=1)

    return prompts._replace(
        # The embeddings of these tokens are not used.
        tokens=append(prompts.tokens, jnp.zeros(())),
        segment_ids=append(prompts.segment_ids, prompts.segment_ids[:, -1:]),
        positions=append(prompts.positions, prompts.positions[:, -1:] + 1 + numbers),
        und_patch_index=append(prompts.und_patch_index, jnp.asarray(NO_IMAGE)),
        gen_token_index=append(prompts.gen_token_index, numbers),
    )
