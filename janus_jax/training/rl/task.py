"""The step of policy optimization: prompts to images, rewards, advantages and updates.

All randomness follows from the seed and the number of the batch. A run that is killed anywhere in a step therefore
repeats this step with the same result.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Processor
from janus_jax.rewards import RewardValues, WeightedRewards
from janus_jax.sharding import batch_sharding, use_mesh
from janus_jax.training.array_batches import opened
from janus_jax.training.callbacks.base import Callback
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.param_paths import merge
from janus_jax.training.recipe import Recipe
from janus_jax.training.rl.callbacks import CollapseWatch, HeldOutReward, RolloutPictures
from janus_jax.training.rl.config import PolicyOptimization
from janus_jax.training.rl.objective import REFERENCE, PolicyBatch, PolicyObjective, group_advantages
from janus_jax.training.rl.prompts import PromptBatch, PromptBatches, RewardPrompt, read_prompts
from janus_jax.training.rl.rollouts import (
    RolloutSampler,
    compute_rewards,
    local_images,
    padded_prompt_length,
    put_rewards,
    step_keys,
)
from janus_jax.training.setup import StageSetup
from janus_jax.training.state import TrainState
from janus_jax.training.train_step import split_batch
from janus_jax.training.trainer import DataStart

_METRICS = {"loss": "loss", "loss/policy": "loss/policy", "grad_norm": "grad_norm", "finite": "finite"}
_RENAMED = {"loss/kl": "kl", "loss/entropy": "entropy", "loss/clipped": "clip_share"}


@dataclass
class PolicyInputs:
    """Prompts and rewards of a stage, checked before a device is used.

    Attributes:
      prompts: Training prompts.
      held_out: Prompts of the held-out reward; empty for none.
      prompt_length: Length to which all prompts are padded.
      rewards: The rewards.
      model: The current model, for rewards that ask it.
    """

    prompts: Sequence[RewardPrompt]
    held_out: Sequence[RewardPrompt]
    prompt_length: int
    rewards: WeightedRewards
    model: Pretrained | None = None


def open_policy_inputs(recipe: Recipe, processor: Processor) -> PolicyInputs:
    """Reads the prompts and makes the rewards of the current stage. No device is used.

    Raises:
      JanusError: Prompts or rewards cannot be used.
    """
    where, rl = f"config.stages.stage_{recipe.stage}.rl", _settings(recipe)
    prompts = read_prompts(rl.prompts, f"{where}.prompts")
    held_out = read_prompts(rl.held_out, f"{where}.held_out") if rl.held_out else []
    length = max(
        padded_prompt_length(processor, some, recipe.model_config, f"{where}.{name}")
        for name, some in (("prompts", prompts), ("held_out", held_out))
        if some
    )
    if empty := [number for number, reward in enumerate(rl.rewards, 1) if not reward.name]:
        raise JanusError(
            f"{where}.rewards.reward_{empty[0]}.name is empty; name a reward, such as MODULE:FUNCTION "
            f"(docs/reinforcement_learning.md)."
        )

    def model() -> Pretrained:
        assert inputs.model is not None
        if jax.process_count() > 1:
            raise JanusError(f"{where}.rewards asks the model itself, which only a run of one process supports.")
        return inputs.model

    rewards = WeightedRewards(rl.rewards, f"{where}.rewards", model=model)
    inputs = PolicyInputs(prompts, held_out, length, rewards)
    return inputs


class ScoredRollout(NamedTuple):
    """Images of this process with the rewards of all images, for callbacks.

    Attributes:
      prompts: The prompts of the step.
      rows: Numbers of the images of this process.
      images: These images.
      rewards: Rewards of the images of all processes.
    """

    prompts: Sequence[RewardPrompt]
    rows: Int[np.ndarray, " b"]
    images: UInt8[np.ndarray, "b H W 3"]
    rewards: RewardValues


class PolicyStep:
    """The step of policy optimization.

    Args:
      recipe: The recipe, with dtypes for the platform.
      setup: Objective, optimizer and update of the stage.
      inputs: Prompts and rewards.
      processor: Tokenizes the prompts.
      mesh: Mesh of the run; None for a single device.

    Attributes:
      last: The last rollout.
    """

    def __init__(
        self, recipe: Recipe, setup: StageSetup, inputs: PolicyInputs, processor: Processor, mesh: Any
    ) -> None:
        self._recipe, self._setup, self._inputs, self._mesh = recipe, setup, inputs, mesh
        self._rl, self._processor = _settings(recipe), processor
        self._group, self._batch_size = self._rl.group_size, recipe.current.batch_size
        self.sampler = RolloutSampler(
            recipe.model_config, recipe.execution, processor, self._rl, mesh, inputs.prompt_length
        )
        self.last: ScoredRollout | None = None

    @property
    def prompts_per_step(self) -> int:
        """Number of prompts per step."""
        return self._batch_size // self._group

    def __call__(self, state: TrainState, batch: PromptBatch) -> tuple[TrainState, dict[str, Any]]:
        """Samples images, computes their rewards and updates the parameters. The state is donated."""
        prompts = [self._inputs.prompts[index] for index in batch.indices]
        keys = step_keys(self._recipe.seed, batch.number, len(prompts), self._group)
        rollout = self.sampler(merge(state.params, state.frozen), prompts, keys)
        rewards = self.rewards(state, prompts, rollout.images)
        self.last = ScoredRollout(prompts, *local_images(rollout.images), rewards)
        grouped = rewards.total.reshape(-1, self._group)
        advantages = np.asarray(group_advantages(jnp.asarray(grouped), self._rl.loss)).reshape(-1)
        policy_batch = PolicyBatch(rollout.trajectories, put_rewards(advantages, self._mesh))
        state, metrics = self._update(state, policy_batch, batch.number)
        return state, metrics | reward_metrics(rewards, self._group)

    def rewards(
        self, state: TrainState, prompts: Sequence[RewardPrompt], images: UInt8[Array, "B H W 3"]
    ) -> RewardValues:
        """Returns the rewards of images, the same number for each prompt."""
        params = {name: part for name, part in merge(state.params, state.frozen).items() if name != REFERENCE}
        network = self._setup.objective.model
        self._inputs.model = Pretrained(self._recipe.model_config, params, self._processor, network, self._mesh)
        try:
            return compute_rewards(self._inputs.rewards, prompts, images)
        finally:
            self._inputs.model = None  # The update donates the parameters.

    def held_out_rewards(self, state: TrainState) -> RewardValues:
        """Returns the rewards of one image for each held-out prompt, with the same random keys each time."""
        prompts, size = self._inputs.held_out, self._batch_size
        keys = step_keys(self._recipe.seed, 2**31, len(prompts), 1)
        params, found = merge(state.params, state.frozen), []
        for start in range(0, len(prompts), size):
            some = list(prompts[start : start + size])
            # The last batch is filled up, so that no further program is compiled.
            filled = [*some, *[some[-1]] * (size - len(some))]
            rows = np.minimum(np.arange(start, start + size), len(prompts) - 1)
            values = self.rewards(state, filled, self.sampler.evaluate(params, filled, keys[rows]))
            found.append(
                RewardValues(values.total[: len(some)], {k: v[: len(some)] for k, v in values.by_source.items()})
            )
        return RewardValues(
            np.concatenate([one.total for one in found]),
            {name: np.concatenate([one.by_source[name] for one in found]) for name in found[0].by_source},
        )

    def _update(self, state: TrainState, batch: PolicyBatch, number: int) -> tuple[TrainState, dict[str, Any]]:
        rl = self._rl
        if rl.updates == 1:
            state, metrics = self._setup.step(state, batch)
            return state, _renamed(metrics)
        with use_mesh(self._mesh):
            old, reference = self._score(state.params, state.frozen, batch.trajectories)
        batch = batch._replace(old_log_probs=old, reference=reference)
        rng, all_metrics = np.random.default_rng((self._recipe.seed, number)), []
        for _ in range(rl.epochs):
            for rows in np.split(rng.permutation(self._batch_size), rl.minibatches):
                with use_mesh(self._mesh):
                    part = self._select(batch, rows)
                state, metrics = self._setup.step(state, part)
                all_metrics.append(_renamed(metrics))
        means = {name: jnp.mean(jnp.stack([one[name] for one in all_metrics])) for name in all_metrics[0]}
        # A skipped update makes the mean smaller than 1.
        return state, means | {"finite": jnp.floor(means["finite"])}

    @functools.cached_property
    def _score(self) -> Any:
        """Compiled function that returns log-probabilities, and the distributions under the reference."""
        objective, microbatching = self._setup.objective, self._recipe.microbatching
        assert isinstance(objective, PolicyObjective)

        def score(trained: Params, frozen: Params, trajectories: Any) -> tuple[Array, Array | None]:
            params, chunk = merge(trained, frozen), microbatching.logits_chunk

            def of_part(part: Any) -> tuple[Array, Array | None]:
                reference = objective.score_reference(params, part, chunk).distributions if self._rl.loss.beta else None
                return objective.score(params, part, chunk).log_probs, reference

            parts = lax.map(of_part, split_batch(trajectories, microbatching.microbatches))
            joined: tuple[Array, Array | None] = jax.tree.map(
                lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts
            )
            return joined

        return jax.jit(score, out_shardings=self._batch_sharding)

    @functools.cached_property
    def _select(self) -> Any:
        """Compiled function that returns some rows of a batch."""
        return jax.jit(lambda batch, rows: jax.tree.map(lambda x: x[rows], batch), out_shardings=self._batch_sharding)

    @property
    def _batch_sharding(self) -> Any:
        return None if self._mesh is None else batch_sharding(self._mesh)


def policy_fields(
    recipe: Recipe, setup: StageSetup, inputs: PolicyInputs, processor: Processor, *, mesh: Mesh | None, folder: Path
) -> dict[str, Any]:
    """Returns the fields of the training task that depend on policy optimization. `folder` is that of the stage."""
    stage = recipe.current
    schedule = make_schedule(stage.optimizer, stage.steps * _settings(recipe).updates)
    step, rl = PolicyStep(recipe, setup, inputs, processor, mesh), _settings(recipe)
    batch_size, intervals = stage.batch_size, recipe.intervals

    def make_data(start: DataStart) -> PromptBatches:
        return PromptBatches(inputs.prompts, step.prompts_per_step, start.seed(recipe.seed))

    def callbacks() -> list[Callback]:
        found: list[Callback] = [RolloutPictures(step, rl.group_size, intervals.sample, folder / "samples")]
        if inputs.held_out:
            found.append(HeldOutReward(step, intervals.evaluate))
        return [*found, CollapseWatch(rl.collapse)]

    size = f"{step.prompts_per_step} prompts with {rl.group_size} images each, {rl.updates} updates per step"
    return {
        "step": step,
        "open_data": lambda start: opened(make_data, start),
        "make_callbacks": lambda data: callbacks(),
        "counts": lambda batch, data: {"images": batch_size, "samples": batch_size},
        "facts": {"batch": size, "rewards": ", ".join(reward.curve for reward in rl.rewards)},
        "position_before": lambda batch, data: data.position(batch.number),
        "progress_metrics": ("reward", "kl"),
        # That of the first update of the step.
        "learning_rate": lambda number: schedule(number * rl.updates),
    }


def reward_metrics(rewards: RewardValues, group_size: int) -> dict[str, float]:
    """Returns the metrics of the rewards of a step.

    `reward` is the mean, `reward/CURVE` that of one source, `reward_spread` the mean standard deviation within a group,
    and `equal_groups` the fraction of groups with equal rewards, which have no gradient.
    """
    grouped = rewards.total.reshape(-1, group_size)
    return {
        "reward": float(rewards.total.mean()),
        **{f"reward/{name}": float(values.mean()) for name, values in rewards.by_source.items()},
        "reward_spread": float(grouped.std(axis=1, ddof=1).mean()),
        "equal_groups": float((np.ptp(grouped, axis=1) == 0).mean()),
    }


def _renamed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    names = _METRICS | _RENAMED
    return {names[name]: value for name, value in metrics.items() if name in names}


def _settings(recipe: Recipe) -> PolicyOptimization:
    rl = recipe.current.rl
    assert rl is not None
    return rl
