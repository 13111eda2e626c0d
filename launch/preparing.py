"""The preparation of a data set, whoever asks for it: the shards, then the image ids, then what TFDS opens it by."""

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tqdm

from janus_jax.cluster import Cluster
from janus_jax.data.beam import write_parts_with_beam
from janus_jax.data.prepare import Job, Preparation, Summary, begin
from janus_jax.data.processes import alone, write_parts
from janus_jax.data.sources import Options
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from launch import cli
from launch.bars import records_bar

if TYPE_CHECKING:
    from janus_jax.config import VQConfig
    from janus_jax.models.backbone import Params

Tokenizer = tuple["VQConfig", Callable[[], "Params"]]
"""An image tokenizer's config, and the reading of its parameters."""


@dataclass(frozen=True)
class Means:
    """What a preparation is done with; but for `max_rejected`, none of it changes what is written.

    Attributes:
      workers: processes.
      max_rejected: share of rejected records at which it stops.
      batch_size: images that the tokenizer takes at a time.
      beam: options of an Apache Beam pipeline that stands in the workers' place; None for none.
    """

    workers: int
    max_rejected: float
    batch_size: int = 64
    beam: str | None = None


def prepare(job: Job, means: Means, tokenizer: Tokenizer | None, cluster: Cluster | None = None) -> Summary | None:
    """Prepares, or goes on where an earlier run was ended; what there is then, for the first process alone.

    Args:
      tokenizer: that of the job, as `read_tokenizer` gives it.
      cluster: whose processes share the work; None for this one alone.

    Raises:
      JanusError: too much is rejected, or input or output fails.
    """
    cluster = cluster or Cluster()
    with contextlib.ExitStack() as stack:
        # The first process claims the folder before the others look at it.
        claimed = cluster.together(lambda: _claim(job, stack) if cluster.is_first else None)
        preparation = cluster.together(lambda: claimed or begin(job))
        if preparation.summary is not None:
            return preparation.summary if cluster.is_first else None
        cluster.together(lambda: _write_parts(preparation, cluster, means))
        if tokenizer is not None:
            cluster.together(lambda: _add_ids(preparation, cluster, tokenizer, means.batch_size))
        return cluster.together(lambda: preparation.finish(means.max_rejected) if cluster.is_first else None)


def _claim(job: Job, stack: contextlib.ExitStack) -> Preparation:
    # Most inputs are cut up in no time, and need no bar.
    with tqdm.tqdm(unit=" parts", desc="parts", delay=2, leave=False) as bar:
        preparation = begin(job, bar.update)
    if preparation.summary is None:
        stack.enter_context(alone(preparation))
    return preparation


def _write_parts(preparation: Preparation, cluster: Cluster, means: Means) -> None:
    indices = cluster.share(preparation.unfinished())
    if means.beam is not None:
        write_parts_with_beam(preparation, indices, shlex.split(means.beam))
        return
    with records_bar(disable=not cluster.is_first) as report:
        write_parts(preparation, indices, means.workers, means.max_rejected, report)


def prepare_world(output: Path, world: str, task: Task, tokenizer: Path | None = None) -> None:
    """What `launch.prepare --source shapes` does: a data set of the world, image ids and all."""
    named = None if tokenizer is None else str(tokenizer)
    job = Job("shapes", Options((world,), task, shard_records=2048), output, tokenizer=named)
    prepare(job, Means(workers=2, max_rejected=0.0), None if tokenizer is None else read_tokenizer(tokenizer))


def read_tokenizer(path: Path) -> Tokenizer:
    """The image tokenizer of a checkpoint in any layout: a model's, or one of its own.

    Raises:
      JanusError: there is none.
    """
    from checkpoints_convert import open_checkpoint
    from janus_jax.config import JanusConfig, VQConfig
    from janus_jax.train.image_ids import ENCODER

    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    vq = config.gen_encoder if isinstance(config, JanusConfig) else config
    if not isinstance(vq, VQConfig):
        raise JanusError(f"--tokenizer {path} holds no image tokenizer but {type(vq).__name__}; give one that does.")

    def read() -> "Params":
        from flax.traverse_util import unflatten_dict

        arrays = checkpoint.params("float32", parts=("gen_encoder",))
        params: Params = unflatten_dict({keys[1:]: array for keys, _, array in arrays if keys[1] in ENCODER})
        return params

    return vq, read


def _add_ids(preparation: Preparation, cluster: Cluster, tokenizer: Tokenizer, batch_size: int) -> None:
    from janus_jax.train.image_ids import ImageTokenizer, add_image_ids

    cli.enable_compilation_cache()
    indices = cluster.share(preparation.without_ids())
    if not indices:
        return
    config, read = tokenizer
    encoder = ImageTokenizer(config, read(), batch_size)
    total = sum(preparation.outcome(index).size.records for index in indices)
    with tqdm.tqdm(unit=" images", desc="image ids", total=total, disable=cluster.index > 0) as bar:
        add_image_ids(preparation, indices, encoder, bar.update)
