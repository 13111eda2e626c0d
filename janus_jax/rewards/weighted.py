"""Weighted sums of rewards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from janus_jax.errors import JanusError
from janus_jax.rewards.base import Reward, make_reward


@dataclass(frozen=True)
class RewardConfig:
    """One reward of a weighted sum.

    Attributes:
      name: `NAME`, `MODULE:NAME` or `MODULE:FUNCTION` (`make_reward`).
      weight: Factor of the reward in the sum.
      options: Options of the reward, each as the text `NAME=VALUE`.
      label: Name of the reward's curve. "": the part of `name` after the colon.
    """

    name: str = ""
    weight: float = 1.0
    options: tuple[str, ...] = ()
    label: str = ""

    @property
    def curve(self) -> str:
        """Name of the reward's curve."""
        return self.label or self.name.rpartition(":")[2]


class RewardValues(NamedTuple):
    """Rewards of B images.

    Attributes:
      total: The weighted sum.
      by_source: Values of each reward, before weighting, by the name of its curve.
    """

    total: Float[np.ndarray, " B"]
    by_source: Mapping[str, Float[np.ndarray, " B"]]


class WeightedRewards:
    """Weighted sum of rewards, computed one after the other.

    Args:
      configs: The rewards.
      field: Config field that contains them, for messages.
      model: Returns the current model, for rewards that ask it.

    Raises:
      JanusError: There are no rewards, two have the same curve, a weight is not finite, or a reward cannot be made
        (`make_reward`).
    """

    def __init__(
        self, configs: Sequence[RewardConfig], field: str = "rewards", *, model: Callable[[], Any] | None = None
    ) -> None:
        if not configs:
            raise JanusError(f"{field} is empty; give at least one reward.")
        self._rewards: dict[str, tuple[float, Reward]] = {}
        for config in configs:
            if config.curve in self._rewards:
                raise JanusError(f"{field} has two rewards with the curve {config.curve}; give one of them a label.")
            if not np.isfinite(config.weight):
                raise JanusError(
                    f"{field}: the weight of {config.name} is {config.weight}; it must be a finite number."
                )
            reward = make_reward(config.name, config.options, field, model=model)
            self._rewards[config.curve] = (config.weight, reward)

    def __call__(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> RewardValues:
        """Computes all rewards of the images. See `Reward`."""
        by_source = {curve: reward(prompts, images, metadata) for curve, (_, reward) in self._rewards.items()}
        total = np.zeros(len(prompts), np.float32)
        for curve, (weight, _) in self._rewards.items():
            total += np.float32(weight) * by_source[curve]
        return RewardValues(total, by_source)
