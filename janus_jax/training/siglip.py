"""Trains an understanding encoder on images and captions (SigLIP, arXiv 2303.15343, §3).

Prefer a released SigLIP. Train an encoder only for images unlike those of its training.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from checkpoints_convert.convert import save_checkpoint
from checkpoints_convert.hub import local_path
from janus_jax.buckets import as_path, remove_folder
from janus_jax.config import Execution, SiglipConfig
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.devices import initialize_devices
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.models.layers import Embedding, LayerNorm, Linear, parameter
from janus_jax.models.siglip import Block, Siglip
from janus_jax.processing import Tokenizer, prepare_understanding
from janus_jax.sharding import make_mesh
from janus_jax.training.array_batches import BatchSplit, opened
from janus_jax.training.config_dicts import check_values, to_json
from janus_jax.training.data_parallel import DataParallel
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from janus_jax.training.record_batches import Arrays, RecordBatches, components_of, image_of, open_all
from janus_jax.training.state import TrainState, create_state
from janus_jax.training.trackers import DEFAULT_TRACKERS, find_trackers
from janus_jax.training.trainer import DataStart, TrainingTask, train


@dataclass(frozen=True)
class CaptionedImages:
    """Images with captions.

    Attributes:
      directories: Prepared datasets (`janus-prepare`). The caption of a record's image is its text, or the last answer
        of its conversation.
      split: Split of these datasets.
      workers: Number of processes per host that decode images. 0 decodes in the training process.
      max_rejected: Training stops if a larger fraction of the recent records has no readable image or no caption.
      restart: Whether a resumed run starts a new order of the data if the data have changed.
    """

    directories: tuple[str, ...] = ()
    split: str = "train"
    workers: int = 8
    max_rejected: float = 0.1
    restart: bool = False

    def __post_init__(self) -> None:
        check_values(self, "config.data", ("max_rejected", 0 <= self.max_rejected < 1, "from 0 to below 1"), workers=0)


@dataclass(frozen=True, kw_only=True)
class SiglipRecipe:
    """Recipe for an encoder and its text tower, which is discarded after training.

    Attributes:
      encoder: Architecture of the encoder.
      data: Images and captions, for `train_siglip`.
      tokenizer: Folder or hub id of the `tokenizer.json` that encodes the captions, for `train_siglip`.
      vocab_size: Vocabulary size of the captions.
      caption_length: Length of the captions in tokens; shorter ones are padded with 0.
      steps: Training steps.
      batch_size: Images with captions per step. The loss compares each image with all captions of the batch.
      optimizer: Optimizer of both towers.
      text_depth: Number of blocks of the text tower. Its width is that of the encoder.
      width: Dimension of the image and text embeddings that the loss compares.
      patchwise: Whether attention in the encoder is disabled, so that each patch is encoded alone. With attention, a
        small encoder loses the positions of objects, because the loss depends only on the mean over patches. The
        released SigLIP uses attention.
      seed: Seed of the initial parameters.
      save_every: Steps between checkpoints.
      report_every: Steps between reports of metrics.
      trackers: Trackers that show the run: tensorboard, wandb, or `MODULE:NAME` for one of your own.
    """

    encoder: SiglipConfig
    vocab_size: int
    caption_length: int
    steps: int
    data: CaptionedImages = field(default_factory=CaptionedImages)
    tokenizer: str = ""
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    text_depth: int = 2
    width: int = 128
    patchwise: bool = False
    seed: int = 0
    save_every: int = 500
    report_every: int = 50
    trackers: tuple[str, ...] = DEFAULT_TRACKERS

    def __post_init__(self) -> None:
        check_values(
            self, "config", steps=1, batch_size=2, vocab_size=1, caption_length=1, save_every=0, report_every=0
        )


class TextTower(nn.Module):
    """Encodes each caption as the mean of its token features. The mean excludes padding (id 0).

    As in SigLIP, attention does not mask padding.
    """

    recipe: SiglipRecipe

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        c, e = self.recipe.encoder, Execution()
        x = Embedding(self.recipe.vocab_size, c.width, ("vocab", "embed"), name="embed")(tokens) * c.width**0.5
        init = nn.initializers.normal(c.width**-0.5)
        x = x + parameter(self, "pos_embed", init, (tokens.shape[1], c.width), (None, "embed"), e)
        for i in range(self.recipe.text_depth):
            x, _ = Block(c, e, name=f"blocks_{i}")(x)
        x = LayerNorm(c.layer_norm_eps, e, name="norm")(x)
        is_token = (tokens != 0)[..., None]
        mean: Float[Array, "B D"] = jnp.sum(x * is_token, axis=1) / jnp.maximum(jnp.sum(is_token, axis=1), 1)
        return mean


class TwoTowers(nn.Module):
    """Computes a logit for each pair of an image and a caption: `t x.y + b` in eq. 1."""

    recipe: SiglipRecipe

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"], tokens: Int[Array, "B T"]) -> Float[Array, "B B"]:
        width = self.recipe.width
        image = Siglip(self.recipe.encoder, name="und_encoder")(pixels).mean(axis=1)
        image = Linear((width,), ("embed", None), name="image_head")(image)
        text = Linear((width,), ("embed", None), name="text_head")(TextTower(self.recipe, name="text")(tokens))
        image, text = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (image, text))
        # Initial values of §3. The bias starts low, because few pairs of a batch match.
        log_scale = self.param("log_scale", nn.initializers.constant(np.log(10.0)), ())
        bias = self.param("bias", nn.initializers.constant(-10.0), ())
        logits: Float[Array, "B B"] = jnp.exp(log_scale) * image @ text.T + bias
        return logits


def sigmoid_loss(logits: Float[Array, "B B"]) -> Float[Array, ""]:
    """Returns the loss of classifying each pair as matching or not (§3, eq. 1)."""
    labels = 2 * jnp.eye(len(logits)) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1))


def siglip_task(
    recipe: SiglipRecipe, make_data: Callable[[DataStart], Any], *, mesh: Mesh | None = None
) -> TrainingTask[TrainState, Any]:
    """Returns the task that trains an encoder.

    The metrics are `loss` and `retrieval`, the fraction of images whose own caption has the highest logit.

    Args:
      make_data: Opens the data at its start, for example `array_batches.ArrayBatches`. A batch consists of images
        (uint8 RGB) and the token ids of their captions.
      mesh: Mesh over which the batch is sharded; parameters are replicated. None uses one device.
    """
    parallel, model = DataParallel(mesh, recipe.batch_size), TwoTowers(recipe)

    def boxed_params() -> Params:
        pixels = jnp.zeros((1, recipe.encoder.image_size, recipe.encoder.image_size, 3))
        tokens = jnp.zeros((1, recipe.caption_length), jnp.int32)
        params: Params = model.init(jax.random.key(recipe.seed), pixels, tokens)["params"]
        return params

    optimizer = make_optimizer(recipe.optimizer, recipe.steps, jax.eval_shape(boxed_params))
    # The zeros stay zero: they are constants without a gradient, and weight decay does not change a zero.
    effective = _without_attention if recipe.patchwise else lambda params: params

    def init() -> TrainState:
        return create_state(effective(nn.unbox(boxed_params())), {}, optimizer)

    def step(
        state: TrainState, images: UInt8[Array, "B S S 3"], tokens: Int[Array, "B T"]
    ) -> tuple[TrainState, dict[str, Array]]:
        def loss(params: Params) -> tuple[Array, Array]:
            logits: Any = model.apply({"params": effective(params)}, to_pixels(images), tokens)
            return sigmoid_loss(logits), logits

        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        is_retrieved = jnp.argmax(logits, axis=-1) == jnp.arange(len(logits))
        metrics = {"loss": value, "retrieval": jnp.mean(is_retrieved)}
        return state.apply_gradients(grads, optimizer), metrics

    compiled = parallel.jit(step, donate_argnums=0)
    return TrainingTask(
        config=to_json(recipe),
        abstract_state=parallel.abstract(init),
        initial_state=lambda data: parallel.jit(init)(),
        step=lambda state, batch: compiled(state, *map(parallel.local_batch, batch)),
        open_data=lambda start: opened(make_data, start),
        counts=lambda batch, data: {"images": recipe.batch_size},
        last_step=recipe.steps,
        mesh=mesh,
        save_every=recipe.save_every,
        report_every=recipe.report_every,
        learning_rate=make_schedule(recipe.optimizer, recipe.steps),
        progress_metrics=("loss", "retrieval"),
        facts={"batch": f"{recipe.batch_size:,} images with captions"},
        restart_data=recipe.data.restart,
        trackers=recipe.trackers,
    )


def open_siglip_task(recipe: SiglipRecipe) -> TrainingTask[TrainState, Any]:
    """Returns the task that trains an encoder on all devices. Errors are those of `train_siglip`."""
    find_trackers(recipe.trackers)
    make_data = _open_captions(recipe)
    initialize_devices()
    return siglip_task(recipe, make_data, mesh=make_mesh() if jax.device_count() > 1 else None)


def train_siglip(recipe: SiglipRecipe, workdir: str | Path) -> Path:
    """Trains an encoder on all devices and writes it to `WORKDIR/und_encoder`, a converted folder.

    Returns:
      The folder of the encoder.

    Raises:
      JanusError: The data or the tokenizer cannot be used, the devices cannot share the batch, or the workdir belongs
        to another run.
      Diverged: A loss or another metric is not finite.
      Preempted: The machine is about to be preempted; a checkpoint is saved.
      Interrupted: The user pressed Ctrl-C; a checkpoint is saved.
      StorageFull: The disk is full.
    """
    state = train(open_siglip_task(recipe), workdir).state
    folder = as_path(workdir) / "und_encoder"
    if jax.process_index() == 0:
        remove_folder(folder)
        save_checkpoint(folder, {"und_encoder": state.params["und_encoder"]}, recipe.encoder)
        print(f"The understanding encoder is in {folder}.")
    return folder


def _open_captions(recipe: SiglipRecipe) -> Callable[[DataStart], RecordBatches]:
    """Checks the data and the tokenizer of a recipe. Returns a function that opens the batches."""
    if not recipe.data.directories:
        raise JanusError("config.data.directories is empty; name the prepared datasets (janus-prepare) to train on.")
    if not recipe.tokenizer:
        raise JanusError("config.tokenizer is empty; set it to the folder of the tokenizer.json for the captions.")
    folder = local_path(recipe.tokenizer, weights=False)
    tokenizer = Tokenizer.from_directory(folder)
    tokenizer.check_vocabulary(recipe.vocab_size)
    components = components_of(recipe.data.directories, recipe.data.split, "training images")
    count = sum(map(len, open_all(components)))
    if count < recipe.batch_size:
        raise JanusError(
            f"config.batch_size is {recipe.batch_size}, but config.data has {count} images; lower it to at most "
            f"{count}, because the loss compares different images."
        )
    make = functools.partial(
        _image_and_caption, folder=str(folder), size=recipe.encoder.image_size, length=recipe.caption_length
    )
    return lambda start: RecordBatches(
        components,
        make,
        BatchSplit(recipe.batch_size, start.seed(recipe.seed)),
        workers=recipe.data.workers,
        max_rejected=recipe.data.max_rejected,
    )


_read_tokenizer = functools.cache(Tokenizer.from_directory)


def _image_and_caption(record: Record, rng: np.random.Generator, *, folder: str, size: int, length: int) -> Arrays:
    caption = record.text or (record.messages[-1]["content"] if record.messages else "")
    if not caption.strip():
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "the record has no caption.")
    ids = np.zeros(length, np.int32)
    found = _read_tokenizer(folder).encode(caption, add_bos=False)[:length]
    ids[: len(found)] = found
    return prepare_understanding(image_of(record, rng), size), ids


def _without_attention(params: Params) -> Params:
    """Returns the parameters with zeros in the output projections of the encoder's attention."""
    flat = flatten_dict(params)
    projections = [path for path in flat if path[0] == "und_encoder" and path[-3:-1] == ("attn", "out")]
    return unflatten_dict(flat | {path: jnp.zeros_like(flat[path]) for path in projections})
