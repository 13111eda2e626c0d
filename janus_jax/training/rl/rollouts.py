"""Rollouts: images that the trained model samples, and their rewards.

Images are sampled on the mesh of the training run, from the same parameters. Each process computes the rewards of the
images on its own devices.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8

from janus_jax.batch import Batch
from janus_jax.config import Execution, ModelConfig
from janus_jax.config.execution import LayerLoop
from janus_jax.coordination import combine
from janus_jax.errors import JanusError, RewardUnavailable
from janus_jax.generation.padding import bucket_length
from janus_jax.models.backbone import Backbone, Params, unroll_params
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.processing import Processor
from janus_jax.rewards import RewardValues
from janus_jax.sharding import LOGICAL_RULES, batch_sharding, num_data_shards, use_mesh
from janus_jax.training.lora import merged_params
from janus_jax.training.rl.config import PolicyOptimization
from janus_jax.training.rl.objective import REFERENCE, make_policy
from janus_jax.training.rl.policy import ImagePolicy
from janus_jax.training.rl.prompts import RewardPrompt, texts

T = TypeVar("T")

_DECODED_AT_ONCE = 32

ComputeRewards = Callable[[Sequence[str], UInt8[np.ndarray, "B H W 3"], Sequence[Any]], RewardValues]


class Rollout(NamedTuple):
    """G sampled images for each of P prompts, B = P * G.

    Attributes:
      trajectories: Prompts with the actions of the images (`policy.Samples`).
      images: The images, sharded like a batch.
    """

    trajectories: Any
    images: UInt8[Array, "B H W 3"]


@dataclass(frozen=True)
class RolloutSampler:
    """Samples groups of images.

    Attributes:
      config: Config of the model.
      execution: How the model is computed; its layers and remat are not used.
      processor: Tokenizes the prompts.
      rl: Settings.
      mesh: Mesh of the run; None for a single device.
      prompt_length: Length to which all prompts are padded.
    """

    config: ModelConfig
    execution: Execution
    processor: Processor
    rl: PolicyOptimization
    mesh: Mesh | None
    prompt_length: int

    @property
    def model(self) -> Backbone:
        """The network for sampling."""
        return make_model(self.config, rollout_execution(self.execution, self.rl))

    @property
    def policy(self) -> ImagePolicy:
        """How the images are sampled."""
        return make_policy(self.config, self.rl)

    def sampling_params(self, params: Params) -> Params:
        """Returns the parameters for sampling (`PolicyOptimization.rollout_params`)."""
        params = {name: part for name, part in params.items() if name != REFERENCE}
        if self.rl.rollout_params == "shared":
            return params
        return self._copy(params)

    @functools.cached_property
    def _copy(self) -> Callable[[Params], Params]:
        dtype = self.execution.dtype

        def copy(params: Params) -> Params:
            cast = jax.tree.map(lambda leaf: leaf.astype(dtype), merged_params(params))
            return unroll_params(cast, self.config)

        shardings = None
        if self.mesh is not None:
            shardings = gathered_shardings(abstract_params(self.model), self.mesh)
        compiled = jax.jit(copy, out_shardings=shardings)

        def run(params: Params) -> Params:
            with use_mesh(self.mesh):
                return compiled(params)

        return run

    def __call__(self, params: Params, prompts: Sequence[RewardPrompt], keys: Key[Array, "P G"]) -> Rollout:
        """Samples the images of a step.

        Args:
          params: All parameters of the train state.
          prompts: The prompts, the same in all processes.
          keys: Random key of each image. An image depends on its prompt and its key, not on the rest of the batch.

        Raises:
          JanusError: The model computes NaN.
        """
        rollout: Rollout = self._in_parts(self._sample, params, prompts, keys)
        return rollout

    def evaluate(
        self, params: Params, prompts: Sequence[RewardPrompt], keys: Key[Array, "P G"]
    ) -> UInt8[Array, "B H W 3"]:
        """Samples images for an evaluation, with `ImagePolicy.sampler`. Arguments and errors are those of a call."""
        images: UInt8[Array, "B H W 3"] = self._in_parts(self._evaluate, params, prompts, keys)
        return images

    def _in_parts(
        self, sample: Callable[..., Any], params: Params, prompts: Sequence[RewardPrompt], keys: Key[Array, "P G"]
    ) -> Any:
        sampling = self.sampling_params(params)
        per_part = max(1, self.rl.rollout_size // keys.shape[1]) if self.rl.rollout_size else len(prompts)
        starts = range(0, len(prompts), per_part)
        parts = [sample(sampling, texts(prompts[i : i + per_part]), keys[i : i + per_part]) for i in starts]
        if len(parts) == 1:
            return parts[0]
        with use_mesh(self.mesh):
            return _concatenate(parts)

    def _sample(self, params: Params, prompts: Sequence[str], keys: Key[Array, "P G"]) -> Rollout:
        batch, keys = self._prompts(prompts, keys)
        with use_mesh(self.mesh):
            trajectories, outputs = self.policy.sample(self.model, params, batch, keys)
            return self._shard(Rollout(trajectories, self._decode(params, outputs)))

    def _evaluate(self, params: Params, prompts: Sequence[str], keys: Key[Array, "P G"]) -> UInt8[Array, "B H W 3"]:
        batch, keys = self._prompts(prompts, keys)
        with use_mesh(self.mesh):
            return self._shard(self._decode(params, self.policy.sampler.sample(self.model, params, batch, keys)))

    def _prompts(self, prompts: Sequence[str], keys: Key[Array, "P G"]) -> tuple[Batch, Key[Array, "P2 G2"]]:
        """Returns prompts on the devices, and their keys."""
        group = keys.shape[1]
        if len(prompts) % num_data_shards(self.mesh):
            # The prompts cannot be split over the data shards: each image gets its own copy of its prompt.
            prompts, keys = [prompt for prompt in prompts for _ in range(group)], keys.reshape(-1, 1)
        sequences = [self.processor.generation_prompt(prompt) for prompt in prompts]
        prepared = self.policy.sampler.prompt_sequences(self.processor, sequences)
        batch = self.processor.left_pad(prepared, self.prompt_length)
        with use_mesh(self.mesh):
            placed: Batch = jax.device_put(batch, None if self.mesh is None else batch_sharding(self.mesh))
            return placed, keys

    def _decode(self, params: Params, outputs: Shaped[Array, "B ..."]) -> UInt8[Array, "B H W 3"]:
        shards = num_data_shards(self.mesh)
        size = max(_DECODED_AT_ONCE // shards, 1) * shards
        pieces = [outputs[i : i + size] for i in range(0, len(outputs), size)]
        return jnp.concatenate([self.policy.sampler.to_images(self.model, params, piece) for piece in pieces])

    def _shard(self, tree: T) -> T:
        sharded: T = tree if self.mesh is None else _shard(self.mesh)(tree)
        return sharded


def rollout_execution(execution: Execution, rl: PolicyOptimization) -> Execution:
    """Returns how the model is computed in rollouts, given how it is computed in training."""
    layers: LayerLoop = "unrolled" if rl.rollout_params == "copied" else "scanned"
    return Execution(execution.dtype, execution.dtype, execution.attention, layers=layers)


def gathered_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Returns shardings of copied parameters, which `tensor` splits and `fsdp` does not.

    With parameters that `fsdp` splits, a decode step would gather every matrix for each token.
    """
    rules = [(name, "tensor" if axis == "tensor" else None) for name, axis in LOGICAL_RULES]
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)


@functools.cache
def _shard(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=batch_sharding(mesh))


@jax.jit
def _concatenate(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def step_keys(seed: int, number: int, num_prompts: int, per_prompt: int) -> Key[Array, "P G"]:
    """Returns the random key of each image of a step.

    Args:
      seed: Seed of the run.
      number: Number of the step's batch.
    """
    key = jax.random.fold_in(jax.random.key(seed), number)
    keys: Key[Array, "P G"] = jax.random.split(key, (num_prompts, per_prompt))
    return keys


def compute_rewards(
    rewards: ComputeRewards, prompts: Sequence[RewardPrompt], images: UInt8[Array, "B H W 3"]
) -> RewardValues:
    """Computes the rewards of all images. Each process computes those of the images on its own devices.

    Args:
      prompts: Prompts of the images, the same number of images for each.

    Returns:
      Rewards of all images, equal in all processes.

    Raises:
      JanusError, RewardUnavailable: See `Reward`.
    """
    per_prompt = len(images) // len(prompts)
    rows, local = local_images(images)
    chosen = [prompts[row // per_prompt] for row in rows]
    values: dict[str, Float[np.ndarray, " b"]] = {}
    unavailable = ""
    try:
        found = rewards(texts(chosen), local, [prompt.metadata for prompt in chosen])
        values = {"total": found.total, **{f"/{name}": value for name, value in found.by_source.items()}}
    except RewardUnavailable as error:
        unavailable = str(error)
    own = {"rows": rows.tolist(), "values": {name: value.tolist() for name, value in values.items()}}
    joined = combine("rewards", own | {"unavailable": unavailable}, _join)
    if joined["unavailable"]:
        # In all processes, which then save the state together.
        raise RewardUnavailable(joined["unavailable"])
    columns = {name: np.array(column, np.float32) for name, column in joined["values"].items()}
    return RewardValues(columns.pop("total"), {name[1:]: column for name, column in columns.items()})


def _join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the values of the images of all processes, in order, or why a service is not available."""
    if unavailable := next((part["unavailable"] for part in parts if part["unavailable"]), ""):
        return {"unavailable": unavailable, "values": {}}
    order = np.argsort([row for part in parts for row in part["rows"]])
    names = parts[0]["values"]
    joined = {name: [value for part in parts for value in part["values"][name]] for name in names}
    return {"unavailable": "", "values": {name: [column[row] for row in order] for name, column in joined.items()}}


def local_images(images: UInt8[Array, "B H W 3"]) -> tuple[Int[np.ndarray, " b"], UInt8[np.ndarray, "b H W 3"]]:
    """Returns the images on this process's devices and their numbers."""
    shards = {shard.index[0].start or 0: shard.data for shard in images.addressable_shards}
    parts = [(start, np.asarray(shards[start])) for start in sorted(shards)]
    rows = np.concatenate([np.arange(start, start + len(part)) for start, part in parts])
    return rows, np.concatenate([part for _, part in parts])


def padded_prompt_length(processor: Processor, prompts: Sequence[RewardPrompt], config: ModelConfig, where: str) -> int:
    """Returns the length to which all prompts are padded, so that one program is compiled.

    Raises:
      JanusError: A prompt with its image is longer than the model's context.
    """
    lengths = [len(processor.generation_prompt(prompt.text)) for prompt in prompts]
    number, limit = int(np.argmax(lengths)), config.llm.max_positions - config.num_gen_tokens
    if lengths[number] > limit:
        raise JanusError(
            f"{where}, number {number + 1}, has {lengths[number]} tokens and {config.num_gen_tokens} follow, but the "
            f"model's context is {config.llm.max_positions} tokens; shorten it."
        )
    return min(bucket_length(lengths[number]), limit)


def put_rewards(values: Float[np.ndarray, " B"], mesh: Mesh | None) -> Float[Array, " B"]:
    """Puts one value for each image on the devices, sharded like a batch."""
    if mesh is None:
        return jax.device_put(values)
    return jax.make_array_from_callback(values.shape, batch_sharding(mesh), values.__getitem__)
