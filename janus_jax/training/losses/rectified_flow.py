"""Rectified-flow loss of JanusFlow (arXiv 2411.07975, section 3.3).

Between noise z_0 and the latents x of an image, z_t = t x + (1 - t) z_0. The model predicts the velocity x - z_0. The
time t is logit-normal (arXiv 2403.03206, section 3.1). The hidden states after an early block are aligned with SigLIP
features of the image through an MLP (REPA, arXiv 2410.06940). The MLP is trained with the model and is not exported.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from janus_jax.batch import NO_POSITION, Batch
from janus_jax.config import Dtype, Execution, JanusFlowConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params, apply, to_pixels
from janus_jax.models.janusflow import FlowStates, JanusFlow
from janus_jax.models.layers import Linear
from janus_jax.models.llama import Llama
from janus_jax.training.config_dicts import check_values

ALIGNER = "aligner"
"""The top-level key of the alignment MLP in the parameter tree."""


@dataclass(frozen=True)
class FlowLossConfig:
    """Settings of the flow loss.

    Attributes:
      time_mean: Mean of the logit of t, which is normal. The paper does not state it.
      time_std: Standard deviation of the logit of t. The paper does not state it.
      align_block: Number of the transformer block to align, counted from 1.
      align_width: Width of the two hidden layers of the alignment MLP. The paper does not state it.
      align_weight: Weight of the alignment in the loss; 0 disables it, without an MLP or SigLIP features.
    """

    time_mean: float = 0.0
    time_std: float = 1.0
    align_block: int = 6
    align_width: int = 2048
    align_weight: float = 1.0

    def __post_init__(self) -> None:
        time_std = ("time_std", self.time_std > 0, "above 0")
        check_values(self, "config.flow", time_std, align_weight=0, align_block=1, align_width=1)

    def check(self, config: JanusFlowConfig) -> None:
        """Checks that a model has a VAE and at least `align_block` blocks.

        Raises:
          JanusError: One of them is missing.
        """
        if config.vae is None:
            raise JanusError(f"{config.name} has no VAE, which the flow loss needs; add a vae to its config.")
        if self.align_weight and self.align_block > config.llm.depth:
            raise JanusError(
                f"config.flow.align_block is {self.align_block}, but the transformer has {config.llm.depth} blocks; "
                f"use an earlier block, or set config.flow.align_weight to 0."
            )


class Aligner(nn.Module):
    """Three-layer MLP from hidden states to SigLIP features, in float32."""

    width: int
    outputs: int
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B W"]:
        e = self.execution
        x = nn.silu(Linear((self.width,), ("mlp", "embed"), e, name="fc1")(x))
        x = nn.silu(Linear((self.width,), ("embed", "mlp"), e, name="fc2")(x))
        return Linear((self.outputs,), (None, "embed"), e, output_dtype=jnp.float32, name="fc3")(x)


class AlignedJanusFlow(JanusFlow):
    """JanusFlow with the alignment MLP, which only training uses."""

    loss_config: FlowLossConfig = FlowLossConfig()

    def setup(self) -> None:
        super().setup()
        if self.loss_config.align_weight:
            self.aligner = Aligner(self.loss_config.align_width, self.config.und_encoder.width, self.execution)

    def _make_llm(self) -> Llama:
        capture_block = self.loss_config.align_block if self.loss_config.align_weight else None
        return Llama(self.config.llm, self.execution, capture_block)

    def features(self, batch: Batch) -> Float[Array, "B G N W"]:
        """Computes SigLIP features of the target images, one per image token, in float32.

        Images are resized to SigLIP's input size, and its feature grid to the grid of the image tokens.
        """
        und, gen = self.config.und_encoder, self.config.gen_encoder
        rows, images = batch.gen_images.shape[:2]
        pixels = to_pixels(batch.gen_images.reshape(-1, *batch.gen_images.shape[2:]))
        features = self.und_encoder(_resize(pixels, und.image_size)).astype(jnp.float32)
        side = und.image_size // und.patch_size
        grid = _resize(features.reshape(len(features), side, side, -1), gen.grid_size)
        return grid.reshape(rows, images, gen.num_tokens, -1)

    def states_and_aligned(self, batch: Batch) -> tuple[FlowStates, Float[Array, "B G N W"]]:
        """Computes the output of `states`, and the aligner's output at the tokens of the target images."""
        x, encoded = self._embed(batch)
        hidden, captured = self.llm.call_and_capture(x, batch.positions, batch.segment_ids)
        images = 0 if encoded is None else len(encoded.time) // batch.shape[0]
        return FlowStates(hidden, encoded), self.aligner(self.target_hidden_states(batch, captured, images))

    def init_all(self, batch: Batch) -> tuple[Array, Array, Array | None]:
        """Calls every submodule once to initialize its parameters."""
        if self.loss_config.align_weight:
            self.aligner(jnp.zeros((1, self.config.llm.width)))
        return super().init_all(batch)


def _resize(grid: Float[Array, "M H W C"], side: int) -> Float[Array, "M S S C"]:
    if grid.shape[1] == side:
        return grid
    return jax.image.resize(grid, (len(grid), side, side, grid.shape[-1]), "linear")


class FlowTargets(NamedTuple):
    """A batch with interpolated latents, and its targets.

    Attributes:
      batch: The batch, with `gen_latents` at the times `gen_times`.
      velocities: Target velocities of the latents.
      features: SigLIP features to align with; None without alignment.
    """

    batch: Batch
    velocities: Float[Array, "B G h w C"]
    features: Float[Array, "B G N W"] | None


def sample_times_and_noise(
    config: FlowLossConfig, key: Key[Array, ""], indices: Int[Array, " B"], shape: tuple[int, ...]
) -> tuple[Float[Array, "B G"], Float[Array, "B G h w C"]]:
    """Samples a time and noise for each target image.

    Args:
      config: Distribution of the times.
      key: Random key of the step.
      indices: Index of each sequence in the whole batch. The samples depend on key and index only, not on the number of
        devices or microbatches.
      shape: Shape of the latents of a sequence, (G, h, w, C).
    """

    def sample(index: Int[Array, ""]) -> tuple[Float[Array, " G"], Float[Array, "G h w C"]]:
        time_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        logits = config.time_mean + config.time_std * jax.random.normal(time_key, shape[:1])
        return jax.nn.sigmoid(logits), jax.random.normal(noise_key, shape)

    times, noise = jax.vmap(sample)(indices)
    return times, noise


def prepare_flow_targets(
    model: AlignedJanusFlow,
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    indices: Int[Array, " B"],
    *,
    dtype: Dtype,
) -> FlowTargets:
    """Interpolates the latents of a batch with noise and computes its targets.

    Args:
      batch: Batch with target images or with their latents.
      key: See `sample_times_and_noise`.
      indices: See `sample_times_and_noise`.
      dtype: Dtype of the VAE encoder, which runs if the data has no latents. float16 is replaced by float32.
    """
    encoder = AlignedJanusFlow(model.config, replace(model.execution, dtype=dtype), model.loss_config)
    latents = apply(encoder.target_latents, params, batch).values.astype(jnp.float32)
    times, noise = sample_times_and_noise(model.loss_config, key, indices, latents.shape[1:])
    t = times[..., None, None, None]
    features = None
    if model.loss_config.align_weight and latents.shape[1]:
        features = apply(model.features, params, batch)
    interpolated = batch._replace(
        gen_latents=t * latents + (1 - t) * noise, gen_times=times, gen_images=batch.gen_images[:, :0]
    )
    return FlowTargets(interpolated, latents - noise, features)


class FlowLossSums(NamedTuple):
    """Sums over the tokens of target images.

    Attributes:
      velocity: Mean squared velocity error of each token, summed.
      alignment: Negative cosine similarity, summed; 0 without alignment.
    """

    velocity: Float[Array, ""]
    alignment: Float[Array, ""]


def flow_loss_sums(
    model: AlignedJanusFlow, params: Params, targets: FlowTargets
) -> tuple[Float[Array, "B L D"], FlowLossSums]:
    """Computes the hidden states of all positions, for the text head, and the loss sums of the target images."""
    batch, zero = targets.batch, jnp.zeros((), jnp.float32)
    if targets.features is None:
        states, aligned = apply(model.states, params, batch), None
    else:
        states, aligned = apply(model.states_and_aligned, params, batch)
    if states.encoded is None or batch.gen_starts is None:
        return states.hidden, FlowLossSums(zero, zero)
    is_image = batch.gen_starts != NO_POSITION
    tokens = model.config.num_gen_tokens
    errors = jnp.square(apply(model.velocities, params, batch, states) - targets.velocities).mean(axis=(2, 3, 4))
    velocity = jnp.where(is_image, errors, 0).sum() * tokens
    if aligned is None or targets.features is None:
        return states.hidden, FlowLossSums(velocity, zero)
    # Padding images are black; their features are valid, so no norm is 0.
    cosines = _cosine_similarity(aligned, targets.features).sum(axis=-1)
    return states.hidden, FlowLossSums(velocity, -jnp.where(is_image, cosines, 0).sum())


def _cosine_similarity(x: Float[Array, "*B W"], y: Float[Array, "*B W"]) -> Float[Array, "*B"]:
    products = (x * y).sum(axis=-1)
    return products * jax.lax.rsqrt(jnp.square(x).sum(-1) + 1e-12) * jax.lax.rsqrt(jnp.square(y).sum(-1) + 1e-12)
