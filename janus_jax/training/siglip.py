"""Trains an understanding encoder on images and captions (SigLIP, arXiv 2303.15343, §3).

Prefer a released SigLIP. Train an encoder only for images unlike those of its training.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from checkpoints_convert.convert import save_checkpoint
from checkpoints_convert.hub import local_path
from janus_jax.buckets import as_path, remove_folder
from janus_jax.config import Execution, SiglipConfig
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.devices import initialize_devices
from janus_jax.errors import JanusError
from janus_jax.files import PARSE_ERRORS, read_json, reading
from janus_jax.models.backbone import Params, apply, to_pixels
from janus_jax.models.layers import Embedding, LayerNorm, Linear, parameter
from janus_jax.models.siglip import Block, Siglip
from janus_jax.processing import Tokenizer, prepare_understanding
from janus_jax.sharding import make_mesh
from janus_jax.storage import atomic_folder, write_json
from janus_jax.training.array_batches import BatchSplit, opened
from janus_jax.training.callbacks.base import PeriodicEvaluation, TrainingRun
from janus_jax.training.config_dicts import check_values, from_config, to_json
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
      eval_directories: Prepared datasets for the evaluation; empty evaluates on no images.
      eval_split: Split of these datasets.
      restart: Whether a resumed run starts a new order of the data if the data have changed.
    """

    directories: tuple[str, ...] = ()
    split: str = "train"
    eval_directories: tuple[str, ...] = ()
    eval_split: str = "train"
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
      evaluate_every: Steps between evaluations. 0 evaluates at the last step only.
      eval_images: Number of images per evaluation, each of which is compared with the captions of all.
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
    evaluate_every: int = 0
    eval_images: int = 1000
    trackers: tuple[str, ...] = DEFAULT_TRACKERS

    def __post_init__(self) -> None:
        check_values(
            self, "config", steps=1, batch_size=2, vocab_size=1, caption_length=1, save_every=0, report_every=0
        )
        check_values(self, "config", evaluate_every=0, eval_images=2)


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

    def setup(self) -> None:
        width = self.recipe.width
        self.und_encoder = Siglip(self.recipe.encoder)
        self.image_head = Linear((width,), ("embed", None))
        self.text = TextTower(self.recipe)
        self.text_head = Linear((width,), ("embed", None))
        # Initial values of §3. The bias starts low, because few pairs of a batch match.
        self.log_scale = self.param("log_scale", nn.initializers.constant(np.log(10.0)), ())
        self.bias = self.param("bias", nn.initializers.constant(-10.0), ())

    def embed_images(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Returns the embeddings of images, of length 1."""
        return _unit(self.image_head(self.und_encoder(pixels).mean(axis=1)))

    def embed_captions(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Returns the embeddings of captions, of length 1."""
        return _unit(self.text_head(self.text(tokens)))

    def __call__(self, pixels: Float[Array, "B H W 3"], tokens: Int[Array, "B T"]) -> Float[Array, "B B"]:
        """Returns the logits of all pairs."""
        similarity = self.embed_images(pixels) @ self.embed_captions(tokens).T
        logits: Float[Array, "B B"] = jnp.exp(self.log_scale) * similarity + self.bias
        return logits


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def sigmoid_loss(logits: Float[Array, "B B"]) -> Float[Array, ""]:
    """Returns the loss of classifying each pair as matching or not (§3, eq. 1)."""
    labels = 2 * jnp.eye(len(logits)) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1))


def siglip_task(
    recipe: SiglipRecipe,
    make_data: Callable[[DataStart], Any],
    *,
    eval_pairs: Arrays | None = None,
    mesh: Mesh | None = None,
) -> TrainingTask[TrainState, Any]:
    """Returns the task that trains an encoder.

    The metrics are `loss` and `retrieval`, the fraction of images whose own caption has the highest logit.

    Args:
      make_data: Opens the data at its start, for example `array_batches.ArrayBatches`. A batch consists of images
        (uint8 RGB) and the token ids of their captions.
      eval_pairs: Images and token ids of their captions, to evaluate retrieval on. None evaluates nothing.
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
        make_callbacks=lambda data: [] if eval_pairs is None else [Retrieval(recipe, eval_pairs)],
    )


def open_siglip_task(recipe: SiglipRecipe) -> TrainingTask[TrainState, Any]:
    """Returns the task that trains an encoder on all devices. Errors are those of `train_siglip`."""
    find_trackers(recipe.trackers)
    make_data = _open_captions(recipe)
    eval_pairs = _evaluation_pairs(recipe)
    initialize_devices()
    mesh = make_mesh() if jax.device_count() > 1 else None
    return siglip_task(recipe, make_data, eval_pairs=eval_pairs, mesh=mesh)


def train_siglip(recipe: SiglipRecipe, workdir: str | Path) -> Path:
    """Trains an encoder on all devices and writes it to `WORKDIR/und_encoder`, a converted folder.

    Both towers are in `WORKDIR/two_towers`, see `CaptionMatcher`.

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
        _save_towers(as_path(workdir) / "two_towers", recipe, state.params)
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
    make = _make_pair(recipe, folder)
    count = sum(map(len, open_all(components)))
    if count < recipe.batch_size:
        raise JanusError(
            f"config.batch_size is {recipe.batch_size}, but config.data has {count} images; lower it to at most "
            f"{count}, because the loss compares different images."
        )
    return lambda start: RecordBatches(
        components,
        make,
        BatchSplit(recipe.batch_size, start.seed(recipe.seed)),
        workers=recipe.data.workers,
        max_rejected=recipe.data.max_rejected,
    )


def _make_pair(recipe: SiglipRecipe, folder: Path) -> Callable[[Record, np.random.Generator], Arrays]:
    size, length = recipe.encoder.image_size, recipe.caption_length
    return functools.partial(_image_and_caption, folder=str(folder), size=size, length=length)


def _evaluation_pairs(recipe: SiglipRecipe) -> Arrays | None:
    """Returns the first images of the evaluation datasets, and the token ids of their first captions."""
    if not recipe.data.eval_directories:
        return None
    make = _make_pair(recipe, local_path(recipe.tokenizer, weights=False))
    pairs: list[Arrays] = []
    for source in open_all(components_of(recipe.data.eval_directories, recipe.data.eval_split, "evaluation images")):
        for index in range(len(source)):
            if len(pairs) == recipe.eval_images:
                break
            with contextlib.suppress(RejectedRecord, *PARSE_ERRORS):
                pairs.append(make(source[index], np.random.default_rng(0)))
    if len(pairs) < 2:
        raise JanusError(
            "config.data.eval_directories have fewer than two images with captions; name others, or leave it empty."
        )
    images, captions = map(np.stack, zip(*pairs, strict=True))
    return images, captions


_read_tokenizer = functools.cache(Tokenizer.from_directory)


def _image_and_caption(record: Record, rng: np.random.Generator, *, folder: str, size: int, length: int) -> Arrays:
    caption = record.text or (record.messages[-1]["content"] if record.messages else "")
    if not caption.strip():
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "the record has no caption.")
    ids = _caption_ids(_read_tokenizer(folder), caption, length)
    return prepare_understanding(image_of(record, rng), size), ids


def _caption_ids(tokenizer: Tokenizer, caption: str, length: int) -> Int[np.ndarray, " T"]:
    ids = np.zeros(length, np.int32)
    found = tokenizer.encode(caption, add_bos=False)[:length]
    ids[: len(found)] = found
    return ids


def _without_attention(params: Params) -> Params:
    """Returns the parameters with zeros in the output projections of the encoder's attention."""
    flat = flatten_dict(params)
    projections = [path for path in flat if path[0] == "und_encoder" and path[-3:-1] == ("attn", "out")]
    return unflatten_dict(flat | {path: jnp.zeros_like(flat[path]) for path in projections})


_BATCH = 64
"""Images or captions per batch of an evaluation."""


class _Embedder:
    """Computes the embeddings of images and captions in batches of one size."""

    def __init__(self, recipe: SiglipRecipe) -> None:
        model = TwoTowers(recipe)
        self._images = jax.jit(lambda params, x: apply(model.embed_images, params, to_pixels(x)))
        self._captions = jax.jit(lambda params, x: apply(model.embed_captions, params, x))

    def images(self, params: Params, images: UInt8[np.ndarray, "N S S 3"]) -> Float[np.ndarray, "N D"]:
        return self._in_batches(self._images, params, images)

    def captions(self, params: Params, captions: Int[np.ndarray, "N T"]) -> Float[np.ndarray, "N D"]:
        return self._in_batches(self._captions, params, captions)

    @staticmethod
    def _in_batches(embed: Any, params: Params, inputs: np.ndarray) -> np.ndarray:
        padded = np.pad(inputs, ((0, -len(inputs) % _BATCH), *[(0, 0)] * (inputs.ndim - 1)))
        batches = [np.asarray(embed(params, padded[i : i + _BATCH])) for i in range(0, len(padded), _BATCH)]
        return np.concatenate(batches)[: len(inputs)]


class Retrieval(PeriodicEvaluation):
    """Callback that reports how many images find their captions, and how many captions their images.

    `eval/retrieval` is the fraction of images whose own caption is the most similar one of all, and
    `eval/image_retrieval` that of captions whose own image is.
    """

    def __init__(self, recipe: SiglipRecipe, pairs: Arrays) -> None:
        super().__init__(recipe.evaluate_every)
        self._embedder, (self._images, self._captions) = _Embedder(recipe), pairs

    def evaluate_run(self, run: TrainingRun) -> None:
        """Embeds and compares all images and captions."""
        params = run.state.params
        images = self._embedder.images(params, self._images)
        similarity = images @ self._embedder.captions(params, self._captions).T
        own = np.arange(len(similarity))
        scores = {
            "eval/retrieval": float(np.mean(similarity.argmax(axis=1) == own)),
            "eval/image_retrieval": float(np.mean(similarity.argmax(axis=0) == own)),
        }
        self.report(run, scores, f" (chance {1 / len(own):.2g})")


_WEIGHTS, _RECIPE = "model.safetensors", "recipe.json"


def _save_towers(folder: Path, recipe: SiglipRecipe, params: Params) -> None:
    remove_folder(folder)
    with atomic_folder(folder) as partial:
        arrays = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
        (partial / _WEIGHTS).write_bytes(safetensors.numpy.save(arrays))
        write_json(partial / _RECIPE, to_json(recipe))
        shutil.copyfile(local_path(recipe.tokenizer, weights=False) / "tokenizer.json", partial / "tokenizer.json")


class CaptionMatcher:
    """Both towers of a trained encoder, which tell how well images match captions."""

    def __init__(self, recipe: SiglipRecipe, params: Params, tokenizer: Tokenizer) -> None:
        self._recipe, self._params, self._tokenizer = recipe, params, tokenizer
        self._embedder = _Embedder(recipe)

    @classmethod
    def from_directory(cls, folder: str | Path) -> "CaptionMatcher":
        """Reads the folder `two_towers` that `train_siglip` writes.

        Raises:
          JanusError: A file is missing or damaged.
        """
        folder = as_path(folder)
        recipe = from_config(SiglipRecipe, read_json(folder / _RECIPE, "repeat janus-train"))
        with reading(folder / _WEIGHTS, "repeat janus-train"):
            arrays = safetensors.numpy.load((folder / _WEIGHTS).read_bytes())
        return cls(recipe, unflatten_dict(arrays, sep="/"), Tokenizer.from_directory(folder))

    def similarity(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Float[np.ndarray, "N M"]:
        """Returns the cosine similarity of each image to each caption."""
        size, length = self._recipe.encoder.image_size, self._recipe.caption_length
        pixels = np.stack([prepare_understanding(image.convert("RGB"), size) for image in images])
        ids = np.stack([_caption_ids(self._tokenizer, caption, length) for caption in captions])
        return self._embedder.images(self._params, pixels) @ self._embedder.captions(self._params, ids).T
