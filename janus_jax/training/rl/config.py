"""Settings of policy optimization."""

from dataclasses import dataclass
from typing import Literal

from janus_jax.training.config_dicts import check_values


@dataclass(frozen=True)
class PolicyLoss:
    """Settings of the loss (`rl.objective`).

    Attributes:
      beta: Weight of the KL divergence from the reference. With 0 there is no reference, which saves its memory and its
        forward pass.
      clip: The ratio of new to old probabilities is clipped to 1 - clip and 1 + clip. Without effect for a single
        update per rollout, whose ratio is 1.
      ratio: "token" for a ratio per token (GRPO), "sequence" for the geometric mean of an image's ratios (GSPO, arXiv
        2507.18071).
      normalize: Divides the advantages of a group by the standard deviation of its rewards.
      epsilon: Added to this standard deviation.
    """

    beta: float = 0.01
    clip: float = 0.2
    ratio: Literal["token", "sequence"] = "token"
    normalize: bool = True
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        check_values(
            self,
            "rl.loss",
            ("beta", self.beta >= 0, "0 or more"),
            ("clip", 0 < self.clip < 1, "between 0 and 1"),
            ("epsilon", self.epsilon > 0, "above 0"),
        )
