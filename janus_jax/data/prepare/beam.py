"""Writes the shards of a dataset with Apache Beam (Dataflow, Flink, Spark), for inputs too large for one machine.

Each Beam worker writes whole shards by `ShardWriter.write`, as local processes do, so the bytes are the same. All
workers must see input and output under the same paths and have this package installed.
"""

from collections.abc import Sequence

from janus_jax.data.prepare.shard_writer import ShardWriter
from janus_jax.extras import require


def write_shards_with_beam(writer: ShardWriter, indices: Sequence[int], options: Sequence[str] = ()) -> None:
    """Writes shards in a Beam pipeline.

    Args:
      writer: Writer of the dataset.
      indices: Indices of the shards.
      options: Beam's pipeline options, such as `--runner=FlinkRunner`. Default: the direct runner.

    Raises:
      JanusError: Beam is not installed, or a shard cannot be written.
    """
    require("--beam", "apache_beam")
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "indices" >> beam.Create(list(indices))
            # Distributes the indices over the workers; otherwise a runner may keep them all on one worker.
            | "reshuffle" >> beam.Reshuffle()
            | "write" >> beam.Map(_write_shard, writer)
        )


def _write_shard(index: int, writer: ShardWriter) -> None:
    writer.write(index)
