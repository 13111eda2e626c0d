"""Prompts and the reward for reinforcement learning on the shapes dataset (`configs/grpo.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from examples.shapes.dataset import Split, check_image, sample_prompts
from janus_jax.rewards import register_reward

TRAINING_SEED, HELD_OUT_SEED = 31, 32
"""Seeds of the prompts. Evaluations have other seeds."""


def training_prompts() -> list[dict[str, Any]]:
    """Returns 3,000 prompts about combinations that occur in training, with the requirements on their images."""
    return _objects(Split.TRAIN, 500, TRAINING_SEED)


def held_out_prompts() -> list[dict[str, Any]]:
    """Returns 240 prompts about held-out combinations, for the curve of the held-out reward."""
    return _objects(Split.TEST, 40, HELD_OUT_SEED)


@register_reward("shapes")
@dataclass(frozen=True)
class DetectorReward:
    """Verdict of the dataset's detector: 1 for an image that is correct by the strict rule.

    Attributes:
      additional: Reward of an image that meets all requirements and has additional objects. All other images have 0.
    """

    additional: float = 0.0

    def __call__(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " B"]:
        """See `janus_jax.rewards.Reward`."""
        verdicts = [check_image(one["requirements"], image) for one, image in zip(metadata, images, strict=True)]
        values = [1.0 if one.strict else self.additional if one.correct else 0.0 for one in verdicts]
        return np.array(values, np.float32)


def _objects(split: Split, per_category: int, seed: int) -> list[dict[str, Any]]:
    return [{"prompt": prompt.text, "requirements": prompt} for prompt in sample_prompts(split, per_category, seed)]
