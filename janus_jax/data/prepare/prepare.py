"""The preparation of a data set, whoever asks for it: shards, then image ids or latents, then what TFDS opens it by."""

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tqdm

from janus_jax.data.prepare.beam import write_parts_with_beam
from janus_jax.data.prepare.parallel import write_parts
from janus_jax.data.prepare.shard_writer import DatasetSpec, ShardWriter, Summary, begin
from janus_jax.distributed import Cluster
from janus_jax.errors import JanusError
from janus_jax.progress import records_bar
from janus_jax.storage import exclusive_lock

if TYPE_CHECKING:
    from janus_jax.data.prepare.encode_images import Encoding
    from janus_jax.models.backbone import Params

Tokenizer = tuple["Encoding", Callable[[], "Params"]]
"""What an image tokenizer, or a VAE, makes of images, and the reading of its parameters."""


@dataclass(frozen=True)
class PrepareOptions:
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


def prepare(
    job: DatasetSpec, means: PrepareOptions, tokenizer: Tokenizer | None, cluster: Cluster | None = None
) -> Summary | None:
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
        claimed = cluster.run_on_all(lambda: _claim(job, stack) if cluster.is_first else None)
        preparation = cluster.run_on_all(lambda: claimed or begin(job))
        if preparation.summary is not None:
            return preparation.summary if cluster.is_first else None
        cluster.run_on_all(lambda: _write_parts(preparation, cluster, means))
        if tokenizer is not None:
            cluster.run_on_all(lambda: _add_ids(preparation, cluster, tokenizer, means.batch_size))
        return cluster.run_on_all(lambda: preparation.finish(means.max_rejected) if cluster.is_first else None)


def _claim(job: DatasetSpec, stack: contextlib.ExitStack) -> ShardWriter:
    # Most inputs are cut up in no time, and need no bar.
    with tqdm.tqdm(unit=" parts", desc="parts", delay=2, leave=False) as bar:
        preparation = begin(job, bar.update)
    if preparation.summary is None:
        # Without locks two runs write the same bytes.
        stack.enter_context(exclusive_lock(job.work / "lock", job.output))
    return preparation


def _write_parts(preparation: ShardWriter, cluster: Cluster, means: PrepareOptions) -> None:
    indices = cluster.share(preparation.unfinished())
    if means.beam is not None:
        write_parts_with_beam(preparation, indices, shlex.split(means.beam))
        return
    with records_bar(disable=not cluster.is_first) as report:
        write_parts(preparation, indices, means.workers, means.max_rejected, report)


def read_tokenizer(path: Path) -> Tokenizer:
    """The image tokenizer, or the VAE, of a checkpoint in any layout: a model's, or one of its own.

    A VAE of its own does not say what size of images it is for, and takes them as JanusFlow-1.3B does.

    Raises:
      JanusError: there is none.
    """
    from checkpoints_convert import open_checkpoint
    from janus_jax.config import JanusConfig, JanusFlowConfig, VAEConfig, VQConfig
    from janus_jax.data.prepare.encode_images import ids_encoding, latents_encoding

    checkpoint = open_checkpoint(path)
    config: Any = checkpoint.config
    size = JanusFlowConfig().gen_image_size
    if isinstance(config, JanusFlowConfig):
        config, size = config.vae, config.gen_image_size
        if config is None:
            raise JanusError(f"--tokenizer {path} is a JanusFlow without its VAE; give the folder of the VAE.")
    elif isinstance(config, JanusConfig):
        config = config.gen_encoder
    if isinstance(config, VQConfig):
        encoding = ids_encoding(config)
    elif isinstance(config, VAEConfig):
        encoding = latents_encoding(config, size)
    else:
        raise JanusError(
            f"--tokenizer {path} holds no image tokenizer but {type(config).__name__}; give one that does, or a VAE."
        )

    def read() -> "Params":
        from flax.traverse_util import unflatten_dict

        arrays = checkpoint.params("float32", parts=(encoding.part,))
        params: Params = unflatten_dict({keys[1:]: array for keys, _, array in arrays if keys[1] in encoding.needed})
        return params

    return encoding, read


def _add_ids(preparation: ShardWriter, cluster: Cluster, tokenizer: Tokenizer, batch_size: int) -> None:
    from janus_jax.data.prepare.encode_images import ImageTokenizer, encode_target_images

    indices = cluster.share(preparation.without_ids())
    if not indices:
        return
    encoding, read = tokenizer
    encoder = ImageTokenizer(encoding, read(), batch_size)
    total = sum(preparation.outcome(index).size.records for index in indices)
    with tqdm.tqdm(
        unit=" images", desc=encoding.field.replace("_", " "), total=total, disable=cluster.index > 0
    ) as bar:
        encode_target_images(preparation, indices, encoder, bar.update)
