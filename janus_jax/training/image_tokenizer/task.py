"""Training of VQ tokenizers and VAEs, as a task of the trainer."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from checkpoints_convert.convert import save_checkpoint
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.inception import inception_params
from janus_jax.files import prefix_errors
from janus_jax.models.backbone import Params
from janus_jax.sharding import make_mesh
from janus_jax.training.array_batches import ArrayBatches, BatchSplit, opened
from janus_jax.training.config_dicts import to_json
from janus_jax.training.data_parallel import DataParallel
from janus_jax.training.image_tokenizer import losses
from janus_jax.training.image_tokenizer.autoencoder import Initialize, all_params, apply
from janus_jax.training.image_tokenizer.evaluation import Reconstruction, ReconstructionMetrics
from janus_jax.training.image_tokenizer.images import RecordImages, center_crops, components_of
from janus_jax.training.image_tokenizer.lpips import LPIPS, lpips_params
from janus_jax.training.image_tokenizer.recipe import NetworkFiles, VAERecipe, VQRecipe
from janus_jax.training.image_tokenizer.vae import VAETraining
from janus_jax.training.image_tokenizer.vq import VQTraining
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.trainer import TrainingTask, train

Images = UInt8[np.ndarray, "N S S 3"]


@dataclass(frozen=True)
class Networks:
    """Parameters of the pretrained networks in losses and metrics; None disables the network."""

    lpips: Params | None = None
    inception: Params | None = None


def read_networks(files: NetworkFiles) -> Networks:
    """Reads the pretrained networks.

    Raises:
      JanusError: A file is missing, or lacks a tensor.
    """
    lpips = inception = None
    if files.vgg16:
        vgg, lins = open_tensors(Path(files.vgg16)), open_tensors(Path(files.lpips))
        with prefix_errors(f"{files.vgg16} or {files.lpips}"):
            lpips = lpips_params(vgg, lins)
    if files.inception:
        tensors = open_tensors(Path(files.inception))
        with prefix_errors(files.inception):
            inception = inception_params(tensors)
    return Networks(lpips, inception)


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """Replaceable parts of tokenizer training.

    Attributes:
      images: Training images; None reads `recipe.data`.
      eval_images: Evaluation images; None reads `recipe.data`.
      initialize: Changes the random initial parameters.
      pixel_losses: Reconstruction losses on pixels.
      metrics: Computes further evaluation metrics.
    """

    images: Images | None = None
    eval_images: Images | None = None
    initialize: Initialize | None = None
    pixel_losses: losses.PixelLosses = losses.pixel_losses
    metrics: ReconstructionMetrics | None = None


_NO_NETWORKS, _NO_EXTENSIONS = Networks(), Extensions()


def tokenizer_task(
    recipe: VQRecipe | VAERecipe,
    *,
    mesh: Mesh | None = None,
    networks: Networks = _NO_NETWORKS,
    extensions: Extensions = _NO_EXTENSIONS,
) -> TrainingTask[Any, Any]:
    """Prepares the training of an image tokenizer.

    Args:
      mesh: Mesh that shares the batch; parameters are replicated. None uses one device.
      networks: Pretrained networks of the perceptual loss and rFID.
      extensions: Replaced parts.

    Raises:
      JanusError: The recipe does not fit the data or the devices.
    """
    parallel = DataParallel(mesh, recipe.batch_size)
    split = BatchSplit(recipe.batch_size, recipe.seed)
    if extensions.images is None and not recipe.data.directories:
        raise JanusError("config.data.directories is empty; name the prepared datasets (janus-prepare) to train on.")
    eval_images = _eval_images(recipe) if extensions.eval_images is None else extensions.eval_images
    options = {
        "perceptual": None if networks.lpips is None else _perceptual,
        "pixel_losses": extensions.pixel_losses,
        "initialize": extensions.initialize,
    }
    training: Any = VQTraining(recipe, **options) if isinstance(recipe, VQRecipe) else VAETraining(recipe, **options)
    kmeans_images = recipe.codebook.kmeans_images if isinstance(recipe, VQRecipe) else 0
    lpips = parallel.replicate(networks.lpips or {})
    step = parallel.jit(training.step, donate_argnums=0)

    def make_data() -> Any:
        if extensions.images is not None:
            return ArrayBatches([extensions.images], split)
        return RecordImages(recipe.data, recipe.image_size, split)

    def initial_state(data: Any) -> Any:
        state = parallel.jit(training.init)()
        if not kmeans_images:
            return state
        start = data.get_state()
        batches = [next(data)[0] for _ in range(-(-kmeans_images // recipe.batch_size))]
        data.set_state(start)
        return parallel.jit(training.init_codebook)(state, parallel.local_batch(np.concatenate(batches)))

    def train_step(state: Any, batch: tuple[np.ndarray, ...]) -> tuple[Any, dict[str, Any]]:
        state, metrics = step(state, parallel.local_batch(batch[0]), lpips)
        return state, metrics

    def make_callbacks(data: Any) -> list[Reconstruction]:
        return [
            Reconstruction(
                training.reconstruct,
                tokenizer_params,
                eval_images,
                parallel,
                interval=recipe.intervals.evaluate,
                batch_size=recipe.batch_size,
                codebook_size=recipe.model.codebook_size if isinstance(recipe, VQRecipe) else None,
                inception=None if networks.inception is None else parallel.replicate(networks.inception),
                extra_metrics=extensions.metrics,
            )
        ]

    return TrainingTask(
        config=to_json(recipe),
        abstract_state=parallel.abstract(training.init),
        initial_state=initial_state,
        step=train_step,
        open_data=lambda positions: opened(make_data, positions),
        counts=lambda batch, data: {"images": recipe.batch_size},
        last_step=recipe.steps,
        mesh=mesh,
        save_every=recipe.intervals.save,
        report_every=recipe.intervals.report,
        make_callbacks=make_callbacks,
        learning_rate=make_schedule(recipe.optimizer, recipe.steps),
        progress_metrics=("loss/total", "codes/perplexity"),
    )


def tokenizer_params(state: Any) -> Params:
    """Returns the result of a train state: the averaged parameters if there is an average."""
    return all_params(getattr(state, "tokenizer", state), average=True)


def train_tokenizer(
    recipe: VQRecipe | VAERecipe, workdir: str | Path, *, extensions: Extensions = _NO_EXTENSIONS
) -> Path:
    """Trains an image tokenizer on all devices and writes it to `WORKDIR/tokenizer`, a converted folder.

    Args:
      extensions: Replaced parts.

    Returns:
      The folder of the tokenizer. A later training can start from it.

    Raises:
      JanusError: The recipe, the data or the workdir cannot be used.
      Preempted: The machine is being taken away; a checkpoint is saved.
    """
    networks = read_networks(recipe.networks)
    mesh = make_mesh() if jax.device_count() > 1 else None
    task = tokenizer_task(recipe, mesh=mesh, networks=networks, extensions=extensions)
    state = train(task, workdir).state
    folder = Path(workdir) / "tokenizer"
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        part = "gen_encoder" if isinstance(recipe, VQRecipe) else "vae"
        save_checkpoint(folder, {part: tokenizer_params(state)}, recipe.model)
        print(f"The image tokenizer is in {folder}.")
    return folder


def _perceptual(params: Params, images: Any, others: Any) -> Any:
    return apply(LPIPS(), params, images, others)


def _eval_images(recipe: VQRecipe | VAERecipe) -> Images:
    data = recipe.data
    components = components_of(data.eval_directories or data.directories, data.eval_split)
    return center_crops(components, recipe.image_size, recipe.intervals.eval_images)
