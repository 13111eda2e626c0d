"""Prepares a dataset: writes shards, precomputes image tokens, then writes the metadata."""

import contextlib
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from janus_jax.data.prepare.beam import write_shards_with_beam
from janus_jax.data.prepare.parallel import write_shards
from janus_jax.data.prepare.shard_writer import DatasetSpec, ShardWriter, Summary, open_shard_writer
from janus_jax.distributed import Cluster
from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.processing import Task
from janus_jax.progress import count_bar
from janus_jax.storage import exclusive_lock

if TYPE_CHECKING:
    from janus_jax.data.prepare.encode_images import OpenedEncoder


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare` that do not change the bytes it writes.

    Attributes:
      workers: Number of processes.
      max_rejected: Largest share of records that may be rejected.
      batch_size: Images per batch of the image tokenizer.
      beam: Pipeline options of Apache Beam, which then replaces the workers. None: Beam is not used.
    """

    workers: int
    max_rejected: float
    batch_size: int = 64
    beam: str | None = None


def prepare(
    spec: DatasetSpec,
    options: PrepareOptions,
    make_encoder: "OpenedEncoder | None" = None,
    cluster: Cluster | None = None,
) -> Summary | None:
    """Prepares a dataset, or continues an interrupted run.

    Args:
      spec: The dataset.
      options: Processes and limits.
      make_encoder: Opened checkpoint `spec.tokenizer`, from `encode_images.open_image_encoder`. None: nothing is
        precomputed.
      cluster: Processes that share the work. Default: this process.

    Returns:
      The counts of the dataset in the primary process; None in the others.

    Raises:
      JanusError, StorageFull: Too many records are rejected, the input or output fails, or Beam is not installed.
    """
    if options.beam is not None:
        require("--beam", "apache_beam")
    if make_encoder is not None:
        if spec.options.task is not Task.GENERATION and make_encoder.encoding.field == "image_latents":
            raise JanusError(
                f"--tokenizer {spec.tokenizer} computes latents, which --task {spec.options.task.value} does not use; "
                f"give a Janus or Janus-Pro model, or its image tokenizer."
            )
        spec = replace(spec, image_tokenizer=make_encoder.fingerprint())
    cluster = cluster or Cluster()
    with contextlib.ExitStack() as stack:
        # The primary process creates the scratch folder before the others open it.
        claimed = cluster.run_on_all(lambda: _claim(spec, stack) if cluster.is_primary else None)
        writer = cluster.run_on_all(lambda: claimed or open_shard_writer(spec))
        if writer.summary is not None:
            return writer.summary if cluster.is_primary else None
        try:
            cluster.run_on_all(lambda: _write_shards(writer, cluster, options))
            if make_encoder is not None:
                cluster.run_on_all(lambda: _encode_images(writer, cluster, make_encoder, options.batch_size))
            return cluster.run_on_all(lambda: writer.finish(options.max_rejected) if cluster.is_primary else None)
        except JanusError:
            # All processes have stopped writing. Without records there is nothing that a later run could continue.
            if cluster.is_primary and not writer.finished_stats().records:
                writer.release_output()
            raise


def _claim(spec: DatasetSpec, stack: contextlib.ExitStack) -> ShardWriter:
    # The bar appears only for large tables; most inputs are split into parts in less than two seconds.
    with count_bar("parts", "parts", delay=2) as report:
        writer = open_shard_writer(spec, report)
    if writer.summary is None:
        # Without locks (on some file systems) two concurrent runs are safe, too: they write the same bytes.
        stack.enter_context(exclusive_lock(spec.scratch / "lock", spec.output))
    return writer


def _write_shards(writer: ShardWriter, cluster: Cluster, options: PrepareOptions) -> None:
    indices = cluster.share(writer.unfinished())
    if options.beam is not None:
        write_shards_with_beam(writer, indices, shlex.split(options.beam))
        return
    with count_bar("records", "records", disable=not cluster.is_primary) as report:
        write_shards(
            writer,
            indices,
            workers=options.workers,
            max_rejected=options.max_rejected,
            report=report,
        )


def _encode_images(writer: ShardWriter, cluster: Cluster, make_encoder: "OpenedEncoder", batch_size: int) -> None:
    from janus_jax.data.prepare.encode_images import encode_shards

    if indices := cluster.share(writer.without_image_tokens()):
        encoder = make_encoder(batch_size)
        total = sum(writer.stats(index).records for index in indices)
        with count_bar(encoder.encoding.field.replace("_", " "), "records", disable=not cluster.is_primary) as report:
            encode_shards(writer, indices, encoder, lambda records: report(records, total))
