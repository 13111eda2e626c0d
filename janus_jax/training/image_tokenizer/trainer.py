"""The loop: from a recipe and a workdir to a trained tokenizer. The same call goes on where a run was interrupted.

WORKDIR/checkpoints/    see `train.checkpoints`
WORKDIR/tensorboard/    figures and reconstructions; WORKDIR/metrics.jsonl has the figures as text
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import UInt8

from examples.shapes.dataset import images as sample_image_tokens
from janus_jax.data.pipeline.dataset import Component
from janus_jax.errors import Diverged, JanusError, Preempted
from janus_jax.models.backbone import Params
from janus_jax.sharding import batch_sharding, num_data_shards, use_mesh
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.config_dicts import to_json
from janus_jax.training.image_tokenizer.evaluation import Evaluation
from janus_jax.training.image_tokenizer.images import ImageStream, RecordImages, Split, WorldImages, middle_crops
from janus_jax.training.image_tokenizer.lpips import LPIPS
from janus_jax.training.image_tokenizer.recipe import TokenizerRecipe
from janus_jax.training.image_tokenizer.vq import TokenizerState, TokenizerTraining, run
from janus_jax.training.metric_writer import MetricWriter, RateMeter
from janus_jax.training.preemption import Preemption

_log = logging.getLogger(__name__)

_EVAL_SEED = 1 << 20
"""Beside the seed of training: pictures of the world that it does not see."""


@dataclass(frozen=True)
class Judges:
    """Parameters of networks that judge; None leaves a judge out.

    Attributes:
      lpips: of `lpips.LPIPS`.
      inception: of `inception.Inception`.
    """

    lpips: Params | None = None
    inception: Params | None = None


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
      params: of the tokenizer, averaged over steps where the recipe says so.
      scalars: its figures.
    """

    params: Params
    scalars: dict[str, float]


def train_tokenizer(
    recipe: TokenizerRecipe, workdir: str | Path, judges: Judges = Judges(), mesh: Mesh | None = None
) -> Trained:
    """Trains to the recipe's last step, from the newest checkpoint in the workdir if there is one.

    Args:
      judges: see there.
      mesh: whose `data` and `fsdp` axes share the batch; parameters are repeated. None for one device.

    Raises:
      JanusError: the recipe, the data or the workdir will not do.
      Diverged: the loss is no number any more.
      Preempted: the machine is taken away; all is saved.
      StorageFull: the disk is full.
    """
    if recipe.batch_size % num_data_shards(mesh):
        raise JanusError(
            f"config.batch_size {recipe.batch_size} is not a multiple of the {num_data_shards(mesh)} devices that "
            f"share it; take one."
        )
    training = TokenizerTraining(recipe, _perceptual if judges.lpips is not None else None)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(_open_images(recipe))
        checkpoints = stack.enter_context(Checkpoints(Path(workdir) / "checkpoints"))
        stack.enter_context(use_mesh(mesh))
        run = _Run(training, stream, checkpoints, judges, mesh)
        run.start()
        reports = stack.enter_context(MetricWriter(workdir, recipe.steps, run.step))
        with Preemption() as preemption:
            run.go_on(reports, preemption)
        return Trained(run.state.ema, run.scalars)


class _Run:
    def __init__(
        self,
        training: TokenizerTraining,
        stream: ImageStream,
        checkpoints: Checkpoints,
        judges: Judges,
        mesh: Mesh | None,
    ) -> None:
        self._training, self._recipe = training, training.recipe
        self._stream, self._checkpoints, self._mesh = stream, checkpoints, mesh
        self._whole: Any = SingleDeviceSharding(jax.devices()[0])
        self._rows: Any = self._whole
        if mesh is not None:
            self._whole, self._rows = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
        self._lpips = jax.tree.map(self._repeat, judges.lpips or {})
        inception = None if judges.inception is None else jax.tree.map(self._repeat, judges.inception)
        self._evaluation = Evaluation(
            training.model,
            _eval_images(self._recipe),
            self._recipe.batch_size,
            inception,
            self._recipe.data.world > 0,
            mesh,
        )
        self.state: TokenizerState
        self.step = 0
        self.scalars: dict[str, float] = {}

    def start(self) -> None:
        """The newest checkpoint, or the beginning."""
        shapes = jax.eval_shape(self._training.init)
        abstract: Any = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._whole), shapes
        )
        restored = self._checkpoints.restore(abstract)
        if restored is None:
            self.state = jax.jit(self._training.init, out_shardings=self._whole)()
            if self._recipe.codebook.kmeans_images:
                start = jax.jit(self._training.start_from, out_shardings=self._whole)
                self.state = start(self.state, self._first_images(self._recipe.codebook.kmeans_images))
            return
        if not restored.was_made_with(to_json(self._recipe)):
            _log.warning("The config is not the one that the checkpoint of step %d was made with.", restored.step)
        state: Any = restored.state
        self.state, self.step = state, restored.step
        self._stream.set_state(restored.data_state)

    def go_on(self, reports: MetricWriter, preemption: Preemption) -> None:
        """To the last step."""
        recipe, meter = self._recipe, RateMeter()
        step = jax.jit(self._training.step, donate_argnums=0, out_shardings=(self._whole, self._whole))
        if self.step == recipe.steps:
            self._evaluate(reports)
        while self.step < recipe.steps:
            with meter.waiting():
                images = self._place(next(self._stream))
            self.state, scalars = step(self.state, images, self._lpips)
            self.step += 1
            meter.add(images=recipe.batch_size)
            if self._is_due(recipe.intervals.report):
                told = {name: float(value) for name, value in scalars.items()}
                self._check(told)
                reports.scalars(self.step, told | meter.rates())
                reports.progress(self.step, {"loss": told["loss/total"], "perplexity": told["codes/perplexity"]})
            if self._is_due(recipe.intervals.evaluate):
                self._evaluate(reports)
            leaving = preemption.reached(self.step)
            if leaving or self._is_due(recipe.intervals.save):
                self._save()
            if leaving:
                self._checkpoints.wait()
                raise Preempted(f"Told to go at step {self.step}; all is saved. Give the same command again.")

    def _is_due(self, interval: int) -> bool:
        return self.step == self._recipe.steps or bool(interval and self.step % interval == 0)

    def _check(self, scalars: dict[str, float]) -> None:
        if wrong := [name for name, value in scalars.items() if not math.isfinite(value)]:
            raise Diverged(
                f"At step {self.step} {wrong[0]} is {scalars[wrong[0]]}; start again from the last checkpoint with a "
                f"lower config.optimizer.learning_rate."
            )

    def _evaluate(self, reports: MetricWriter) -> None:
        evaluated = self._evaluation(self.state.ema)
        self.scalars = evaluated.scalars
        reports.scalars(self.step, evaluated.scalars)
        reports.images(self.step, {"reconstructions": [evaluated.pairs]})
        figures = (f"{name.removeprefix('eval/')} {value:.4g}" for name, value in evaluated.scalars.items())
        reports.message(f"step {self.step}: {', '.join(figures)}")

    def _save(self) -> None:
        state: Any = self.state
        self._checkpoints.save(self.step, state, self._stream.get_state(), to_json(self._recipe))

    def _first_images(self, count: int) -> Any:
        """The first images that training will see, which it then still sees."""
        before = self._stream.get_state()
        batches = [next(self._stream) for _ in range(-(-count // self._recipe.batch_size))]
        self._stream.set_state(before)
        return self._place(np.concatenate(batches))

    def _place(self, rows: UInt8[np.ndarray, "B S S 3"]) -> Any:
        return jax.make_array_from_process_local_data(self._rows, rows)

    def _repeat(self, array: np.ndarray) -> Any:
        return jax.make_array_from_callback(array.shape, self._whole, np.asarray(array).__getitem__)


def _perceptual(params: Params, images: Any, others: Any) -> Any:
    return run(LPIPS(), params, images, others)


@contextlib.contextmanager
def _open_images(recipe: TokenizerRecipe) -> Iterator[ImageStream]:
    split = Split(recipe.batch_size, recipe.seed, jax.process_index(), jax.process_count())
    stream: ImageStream
    if recipe.data.world:
        stream = WorldImages(recipe.model.image_size, recipe.data.world, split)
    else:
        components = _components(recipe.data.directories, recipe.data.split)
        data = recipe.data
        stream = RecordImages(components, recipe.model.image_size, split, data.workers, data.flip, data.max_rejected)
    try:
        yield stream
    finally:
        stream.close()


def _eval_images(recipe: TokenizerRecipe) -> UInt8[np.ndarray, "N S S 3"]:
    data, size, count = recipe.data, recipe.model.image_size, recipe.intervals.eval_images
    if data.world:
        return sample_image_tokens(recipe.seed + _EVAL_SEED, count, size)
    return middle_crops(_components(data.eval_directories or data.directories, data.eval_split), size, count)


def _components(directories: tuple[str, ...], split: str) -> list[Component]:
    return [Component(directory, directory, split=split) for directory in directories]
