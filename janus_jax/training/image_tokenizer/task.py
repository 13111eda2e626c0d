"""Trains VQ tokenizers and VAEs by the trainer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoints_convert.convert import save_checkpoint
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.buckets import as_path, remove_folder
from janus_jax.devices import initialize_devices
from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.inception import inception_params
from janus_jax.files import prefix_errors
from janus_jax.models.backbone import Params, apply
from janus_jax.sharding import make_mesh
from janus_jax.training.array_batches import ArrayBatches, BatchSplit, opened
from janus_jax.training.config_dicts import to_json
from janus_jax.training.data_parallel import DataParallel
from janus_jax.training.image_tokenizer import losses
from janus_jax.training.image_tokenizer.autoencoder import all_params
from janus_jax.training.image_tokenizer.evaluation import Reconstruction, ReconstructionMetrics
from janus_jax.training.image_tokenizer.images import Images, evaluation_images, hold_out, image_batches
from janus_jax.training.image_tokenizer.lpips import LPIPS, lpips_params
from janus_jax.training.image_tokenizer.recipe import NetworkFiles, VAERecipe, VQRecipe
from janus_jax.training.image_tokenizer.vae import VAETraining
from janus_jax.training.image_tokenizer.vq import VQTraining
from janus_jax.training.optimizers import make_schedule
from janus_jax.training.trackers import find_trackers
from janus_jax.training.trainer import DataStart, TrainingTask, train


@dataclass(frozen=True)
class Networks:
    """Parameters of the pretrained networks in losses and metrics. None disables a network."""

    lpips: Params | None = None
    inception: Params | None = None


def read_networks(files: NetworkFiles) -> Networks:
    """Returns the pretrained networks in these files.

    Raises:
      JanusError: A file does not exist, or a tensor is missing or has another shape.
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
    """Functions and images that replace those of the recipe.

    Attributes:
      images: Training images. None uses `recipe.data`.
      eval_images: Evaluation images. None uses `recipe.data`; if it names no datasets, the first 5% of `images` are
        held out.
      pixel_losses: Computes the reconstruction losses on pixels.
      metrics: Computes additional evaluation metrics.
    """

    images: Images | None = None
    eval_images: Images | None = None
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
    """Returns the task that trains an image tokenizer.

    Args:
      mesh: Mesh over which the batch is sharded; parameters are replicated. None uses one device.
      networks: Pretrained networks of the perceptual loss and rFID.
      extensions: Functions and images that replace those of the recipe.

    Raises:
      JanusError: The data cannot be read, or the devices cannot share the batch evenly.
    """
    parallel = DataParallel(mesh, recipe.batch_size)
    split = BatchSplit(recipe.batch_size, recipe.seed)
    if extensions.images is None and not recipe.data.directories:
        raise JanusError("config.data.directories is empty; name the prepared datasets (janus-prepare) to train on.")
    images, eval_images = extensions.images, extensions.eval_images
    if eval_images is None and (recipe.data.eval_directories or recipe.data.directories):
        eval_images = evaluation_images(recipe.data, recipe.image_size, recipe.intervals.eval_images)
    elif eval_images is None and images is not None:
        images, eval_images = hold_out(images, recipe.intervals.eval_images)
    assert eval_images is not None
    options = {
        "perceptual": None if networks.lpips is None else _perceptual,
        "pixel_losses": extensions.pixel_losses,
    }
    training: Any = VQTraining(recipe, **options) if isinstance(recipe, VQRecipe) else VAETraining(recipe, **options)
    kmeans_images = recipe.codebook.kmeans_images if isinstance(recipe, VQRecipe) else 0
    lpips = parallel.replicate(networks.lpips or {})
    step = parallel.jit(training.step, donate_argnums=0)

    def make_data(start: DataStart) -> Any:
        ordered = replace(split, seed=start.seed(recipe.seed))
        if images is not None:
            return ArrayBatches([images], ordered)
        return image_batches(recipe.data, recipe.image_size, ordered)

    def initial_state(data: Any) -> Any:
        state = parallel.jit(training.init)()

        def first_images(count: int) -> Any:
            start = data.get_state()
            batches = [next(data)[0] for _ in range(-(-count // recipe.batch_size))]
            data.set_state(start)
            return parallel.local_batch(np.concatenate(batches))

        if recipe.pca_images:
            state = parallel.jit(training.init_encoder)(state, first_images(recipe.pca_images))
        if kmeans_images:
            state = parallel.jit(training.init_codebook)(state, first_images(kmeans_images))
        return state

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
        open_data=lambda start: opened(make_data, start),
        counts=lambda batch, data: {"images": recipe.batch_size},
        last_step=recipe.steps,
        restart_data=recipe.data.restart,
        trackers=recipe.trackers,
        mesh=mesh,
        save_every=recipe.intervals.save,
        report_every=recipe.intervals.report,
        make_callbacks=make_callbacks,
        learning_rate=make_schedule(recipe.optimizer, recipe.steps),
        progress_metrics=("loss/total", "codes/perplexity"),
        facts={"batch": f"{recipe.batch_size:,} images of {recipe.image_size} x {recipe.image_size} pixels"},
    )


def open_tokenizer_task(
    recipe: VQRecipe | VAERecipe, *, extensions: Extensions = _NO_EXTENSIONS
) -> TrainingTask[Any, Any]:
    """Returns the task that trains an image tokenizer on all devices. Arguments and errors are those of
    `train_tokenizer`."""
    find_trackers(recipe.trackers)
    initialize_devices()
    networks = read_networks(recipe.networks)
    mesh = make_mesh() if jax.device_count() > 1 else None
    return tokenizer_task(recipe, mesh=mesh, networks=networks, extensions=extensions)


def tokenizer_params(state: Any) -> Params:
    """Returns the tokenizer's parameters: their moving average if the train state has one, else the parameters."""
    return all_params(getattr(state, "tokenizer", state), average=True)


def train_tokenizer(
    recipe: VQRecipe | VAERecipe, workdir: str | Path, *, extensions: Extensions = _NO_EXTENSIONS
) -> Path:
    """Trains an image tokenizer on all devices and writes it to `WORKDIR/tokenizer`, a converted folder.

    Args:
      extensions: Functions and images that replace those of the recipe.

    Returns:
      The folder of the tokenizer.

    Raises:
      JanusError: The data cannot be read, the devices cannot share the batch, or the workdir belongs to another run.
      Diverged: A loss or another metric is not finite.
      Preempted: The machine is about to be preempted; a checkpoint is saved.
      Interrupted: The user pressed Ctrl-C; a checkpoint is saved.
      StorageFull: The disk is full.
    """
    state = train(open_tokenizer_task(recipe, extensions=extensions), workdir).state
    folder = as_path(workdir) / "tokenizer"
    if jax.process_index() == 0:
        remove_folder(folder)
        part = "gen_encoder" if isinstance(recipe, VQRecipe) else "vae"
        save_checkpoint(folder, {part: tokenizer_params(state)}, recipe.model)
        print(f"The image tokenizer is in {folder}.")
    return folder


def _perceptual(params: Params, images: Any, others: Any) -> Any:
    return apply(LPIPS().__call__, params, images, others)
