"""What a JanusFlow learns of images to generate: the velocity along its flow, and to see what SigLIP sees.

JanusFlow (arXiv 2411.07975, §3.3). On the way z_t = t x + (1 - t) z_0 from noise z_0 to the latents x of an image, the
model is to tell the velocity x - z_0; t is logit-normal (arXiv 2403.03206, §3.1). Its hidden states after an early
block are to align, through an MLP that is trained besides and left out of what is exported, with SigLIP's features of
the image (REPA, arXiv 2410.06940).
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

ALIGNER = "aligner"
"""The part of the parameters that serves training alone."""


@dataclass(frozen=True)
class FlowLossConfig:
    """How a flow is learnt.

    Attributes:
      time_mean, time_std: of the logit of t, which is normal. The authors do not state them.
      align_block: block of the transformer, counted from 1, after which its states are aligned.
      align_width: of the two layers within the aligning MLP. The authors do not state it.
      align_weight: of the alignment in the loss; with 0 there is none, no MLP, and SigLIP does not look.
    """

    time_mean: float = 0.0
    time_std: float = 1.0
    align_block: int = 6
    align_width: int = 2048
    align_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.time_std <= 0 or self.align_weight < 0:
            raise JanusError(
                f"config.flow has time_std {self.time_std} and align_weight {self.align_weight}; the first must be "
                f"above 0, the second not below."
            )
        if self.align_block < 1 or self.align_width < 1:
            raise JanusError(
                f"config.flow has align_block {self.align_block} and align_width {self.align_width}; both must be 1 or "
                f"more."
            )

    def check(self, config: JanusFlowConfig) -> None:
        """Refuses a block that the model has not, and a model without what is learnt.

        Raises:
          JanusError: the sentence names what is missing.
        """
        if config.vae is None:
            raise JanusError(f"{config.name} has no VAE, whose latents its flow is learnt in; give its config a vae.")
        if self.align_weight and self.align_block > config.llm.depth:
            raise JanusError(
                f"config.flow.align_block is {self.align_block}, but the transformer has {config.llm.depth} blocks; "
                f"take an earlier one, or set config.flow.align_weight to 0."
            )


class Aligner(nn.Module):
    """Three layers from hidden states to SigLIP's features, float32."""

    width: int
    outputs: int
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows W"]:
        e = self.execution
        x = nn.silu(Linear((self.width,), ("mlp", "embed"), e, name="fc1")(x))
        x = nn.silu(Linear((self.width,), ("embed", "mlp"), e, name="fc2")(x))
        return Linear((self.outputs,), (None, "embed"), e, output_dtype=jnp.float32, name="fc3")(x)


class AlignedJanusFlow(JanusFlow):
    """A JanusFlow with the part that serves its training alone, `aligner`."""

    learning: FlowLossConfig = FlowLossConfig()

    def setup(self) -> None:
        super().setup()
        if self.learning.align_weight:
            self.aligner = Aligner(self.learning.align_width, self.config.und_encoder.width, self.execution)

    def _make_llm(self) -> Llama:
        capture_block = self.learning.align_block if self.learning.align_weight else None
        return Llama(self.config.llm, self.execution, capture_block)

    def features(self, batch: Batch) -> Float[Array, "B G N W"]:
        """SigLIP's features of the images to generate, one a place of theirs, float32.

        Where the two have other sizes, pictures are scaled to what SigLIP reads, and its grid to that of the places.
        """
        und, gen = self.config.und_encoder, self.config.gen_encoder
        rows, images = batch.gen_images.shape[:2]
        pixels = to_pixels(batch.gen_images.reshape(-1, *batch.gen_images.shape[2:]))
        seen = self.und_encoder(_scaled(pixels, und.image_size)).astype(jnp.float32)
        side = und.image_size // und.patch_size
        grid = _scaled(seen.reshape(len(seen), side, side, -1), gen.grid_size)
        return grid.reshape(rows, images, gen.num_tokens, -1)

    def states_and_aligned(self, batch: Batch) -> tuple[FlowStates, Float[Array, "B G N W"]]:
        """As `states`, and what the aligner makes of the images' states after its block."""
        x, encoded = self._embed(batch)
        hidden, captured = self.llm.call_and_capture(x, batch.positions, batch.segment_ids)
        images = 0 if encoded is None else len(encoded.time) // batch.shape[0]
        return FlowStates(hidden, encoded), self.aligner(self.target_hidden_states(batch, captured, images))

    def init_all(self, batch: Batch) -> tuple[Array, Array, Array | None]:
        """See `JanusFlow`."""
        if self.learning.align_weight:
            self.aligner(jnp.zeros((1, self.config.llm.width)))
        return super().init_all(batch)


def _scaled(grid: Float[Array, "M H W C"], side: int) -> Float[Array, "M S S C"]:
    if grid.shape[1] == side:
        return grid
    return jax.image.resize(grid, (len(grid), side, side, grid.shape[-1]), "linear")


class FlowTargets(NamedTuple):
    """A batch somewhere on its images' ways, and what is to be told of them.

    Attributes:
      batch: with `gen_latents` at `gen_times`.
      velocities: of the latents.
      features: to align with; None where nothing is.
    """

    batch: Batch
    velocities: Float[Array, "B G h w C"]
    features: Float[Array, "B G N W"] | None


def sample_times_and_noise(
    learning: FlowLossConfig, key: Key[Array, ""], rows: Int[Array, " B"], shape: tuple[int, ...]
) -> tuple[Float[Array, "B G"], Float[Array, "B G h w C"]]:
    """Times and noise of each row's images.

    Args:
      rows: their places in the whole batch, which alone say what is drawn, on however many devices.
      shape: of a row's latents, G h w C.
    """

    def of_row(row: Int[Array, ""]) -> tuple[Float[Array, " G"], Float[Array, "G h w C"]]:
        for_times, for_noise = jax.random.split(jax.random.fold_in(key, row))
        logits = learning.time_mean + learning.time_std * jax.random.normal(for_times, shape[:1])
        return jax.nn.sigmoid(logits), jax.random.normal(for_noise, shape)

    times, noise = jax.vmap(of_row)(rows)
    return times, noise


def prepare_flow_targets(
    model: AlignedJanusFlow, params: Params, batch: Batch, key: Key[Array, ""], rows: Int[Array, " B"], dtype: Dtype
) -> FlowTargets:
    """Sets a batch's images out on their ways.

    Args:
      batch: with images to generate, or with their latents at time 1.
      key, rows: see `sample_times_and_noise`.
      dtype: in which the VAE computes latents that did not come with the data; float32 in place of float16.
    """
    encoder = AlignedJanusFlow(model.config, replace(model.execution, dtype=dtype), model.learning)
    latents = apply(encoder.target_latents, params, batch).values.astype(jnp.float32)
    times, noise = sample_times_and_noise(model.learning, key, rows, latents.shape[1:])
    t = times[..., None, None, None]
    features = None
    if model.learning.align_weight and latents.shape[1]:
        features = apply(model.features, params, batch)
    on_the_way = batch._replace(
        gen_latents=t * latents + (1 - t) * noise, gen_times=times, gen_images=batch.gen_images[:, :0]
    )
    return FlowTargets(on_the_way, latents - noise, features)


class FlowLossSums(NamedTuple):
    """Sums over the places of images to generate.

    Attributes:
      velocity: mean squared errors of each place's numbers.
      alignment: minus cosines; 0 where nothing is aligned.
    """

    velocity: Float[Array, ""]
    alignment: Float[Array, ""]


def flow_loss_sums(
    model: AlignedJanusFlow, params: Params, task: FlowTargets
) -> tuple[Float[Array, "B L D"], FlowLossSums]:
    """Hidden states of every place, for the text head, and what the images lack."""
    batch, zero = task.batch, jnp.zeros((), jnp.float32)
    if task.features is None:
        states, aligned = apply(model.states, params, batch), None
    else:
        states, aligned = apply(model.states_and_aligned, params, batch)
    if states.encoded is None or batch.gen_starts is None:
        return states.hidden, FlowLossSums(zero, zero)
    there = batch.gen_starts != NO_POSITION
    tokens = model.config.num_gen_tokens
    errors = jnp.square(apply(model.velocities, params, batch, states) - task.velocities).mean(axis=(2, 3, 4))
    velocity = jnp.where(there, errors, 0).sum() * tokens
    if aligned is None or task.features is None:
        return states.hidden, FlowLossSums(velocity, zero)
    # Padding images are black squares, and their features as good as any: no norm here is 0.
    cosines = _cosines(aligned, task.features).sum(axis=-1)
    return states.hidden, FlowLossSums(velocity, -jnp.where(there, cosines, 0).sum())


def _cosines(x: Float[Array, "*rows W"], y: Float[Array, "*rows W"]) -> Float[Array, "*rows"]:
    products = (x * y).sum(axis=-1)
    return products * jax.lax.rsqrt(jnp.square(x).sum(-1) + 1e-12) * jax.lax.rsqrt(jnp.square(y).sum(-1) + 1e-12)
