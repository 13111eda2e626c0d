"""Settings of reinforcement learning on image generation."""

from dataclasses import dataclass, field
from typing import Literal

from janus_jax.errors import JanusError
from janus_jax.rewards import RewardConfig
from janus_jax.training.config_dicts import check_values


@dataclass(frozen=True)
class PolicyLoss:
    """Settings of the loss (`rl.objective`).

    Attributes:
      beta: Weight of the KL divergence from the reference. With 0 there is no reference, which saves its memory and its
        forward pass.
      clip: The ratio of new to old probabilities is clipped to 1 - clip and 1 + clip. Without effect for a single
        update per step, whose ratio is 1.
      ratio: "token" for a ratio per token, or per step of JanusFlow (GRPO); "sequence" for the geometric mean of an
        image's ratios (GSPO, arXiv 2507.18071).
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
            "stage.rl.loss",
            ("beta", self.beta >= 0, "0 or more"),
            ("clip", 0 < self.clip < 1, "between 0 and 1"),
            ("epsilon", self.epsilon > 0, "above 0"),
        )


@dataclass(frozen=True)
class FlowSteps:
    """Steps of the images of JanusFlow (Flow-GRPO, arXiv 2505.05470).

    Attributes:
      rollout: Steps from noise to image in rollouts. They may be few, because the images only need a reward.
      evaluation: Steps of the held-out images, which are sampled without noise in the steps.
      noise_level: Noise level of the steps of rollouts (`generation.stochastic_flow`).
      trained: Number of first steps of an image that the loss reads; 0 for all steps of a rollout.
    """

    rollout: int = 10
    evaluation: int = 40
    noise_level: float = 0.7
    trained: int = 0

    def __post_init__(self) -> None:
        check_values(
            self,
            "stage.rl.flow",
            ("noise_level", 0 < self.noise_level <= 100, "above 0 and at most 100"),
            ("trained", self.trained <= self.rollout, f"at most rollout, {self.rollout}"),
            rollout=1,
            evaluation=1,
            trained=0,
        )

    @property
    def num_trained(self) -> int:
        """Number of steps of an image that the loss reads."""
        return self.trained or self.rollout


@dataclass(frozen=True)
class Collapse:
    """When a run counts as collapsed: the reward falls while the KL divergence rises.

    Attributes:
      window: Steps per mean of reward and KL divergence.
      drop: Fraction by which the mean reward must be below its best mean.
      stop: Ends the run. Otherwise the run prints a warning.
    """

    window: int = 20
    drop: float = 0.1
    stop: bool = False

    def __post_init__(self) -> None:
        check_values(self, "stage.rl.collapse", ("drop", self.drop > 0, "above 0"), window=1)


@dataclass(frozen=True)
class PolicyOptimization:
    """Reinforcement learning on image generation (GRPO; Flow-GRPO for JanusFlow).

    A step samples a group of images for each of `batch_size / group_size` prompts, computes their rewards, and updates
    the parameters.

    Attributes:
      prompts: Prompts: a text file with one prompt per line; a JSONL file whose objects have the field `prompt`, and
        whose other fields are passed to the rewards; or `MODULE:FUNCTION`, which returns such objects.
      held_out: Prompts of the held-out reward, like `prompts`; "" for none. One image is generated for each.
      rewards: Rewards, summed by weight.
      group_size: Images per prompt.
      guidance_scale: Guidance scale of the sampled images.
      temperature: Temperature of the sampled images. Janus only.
      flow: Steps of the sampled images. JanusFlow only, whose log-probabilities are those of the guided steps.
      log_probs: "conditional": log-probabilities of the conditional sequence at temperature 1, as in the published
        trainers. "guided": those of the distribution that the images are sampled from, which costs a second sequence
        per image. Janus only.
      loss: Settings of the loss.
      minibatches: Number of parts into which the images of a step are divided, with one update for each.
      epochs: Passes over the images of a step.
      rollout_size: Images that are sampled at a time; 0 for all.
      rollout_params: "shared": sampling reads the parameters of training. "copied": each step first copies them to the
        layout of `janus_jax.load`, in the dtype of the computation and gathered along `fsdp`. Sampling is then faster
        and takes the memory of the copy.
      collapse: When the run counts as collapsed.
    """

    prompts: str = ""
    held_out: str = ""
    rewards: tuple[RewardConfig, ...] = (RewardConfig(),)
    group_size: int = 8
    guidance_scale: float = 5.0
    temperature: float = 1.0
    flow: FlowSteps = field(default_factory=FlowSteps)
    log_probs: Literal["conditional", "guided"] = "conditional"
    loss: PolicyLoss = field(default_factory=PolicyLoss)
    minibatches: int = 1
    epochs: int = 1
    rollout_size: int = 0
    rollout_params: Literal["shared", "copied"] = "shared"
    collapse: Collapse = field(default_factory=Collapse)

    def __post_init__(self) -> None:
        check_values(
            self,
            "stage.rl",
            ("guidance_scale", 0 <= self.guidance_scale <= 1e6, "from 0 to 1e6"),
            ("temperature", 1e-6 <= self.temperature <= 1e6, "from 1e-6 to 1e6"),
            group_size=2,
            minibatches=1,
            epochs=1,
            rollout_size=0,
        )
        if self.rollout_size % self.group_size:
            raise JanusError(
                f"stage.rl.rollout_size is {self.rollout_size}; it must be a multiple of group_size {self.group_size}."
            )

    @property
    def updates(self) -> int:
        """Optimizer updates per step."""
        return self.minibatches * self.epochs

    def check_batch(self, batch_size: int) -> None:
        """Checks that the images of a step can be divided into groups and minibatches.

        Raises:
          JanusError: The batch size is no multiple of their sizes.
        """
        for name in ("group_size", "minibatches"):
            if batch_size % getattr(self, name):
                raise JanusError(
                    f"stage.batch_size is {batch_size}; it must be a multiple of rl.{name}, {getattr(self, name)}."
                )
