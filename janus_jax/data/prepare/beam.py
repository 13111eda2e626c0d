"""The same parts as an Apache Beam pipeline, for what one machine cannot read: Dataflow, Flink, Spark.

Every worker makes whole shards, with the very function that local processes run, so the data set is the same to the
last byte. Input and output must lie where all workers see them under the same path, and the workers need the package.
"""

from collections.abc import Sequence

from janus_jax.data.prepare.shard_writer import ShardWriter
from janus_jax.errors import JanusError


def write_parts_with_beam(preparation: ShardWriter, indices: Sequence[int], options: Sequence[str] = ()) -> None:
    """Makes the shards of these parts.

    Args:
      preparation: the job.
      indices: of parts that are unfinished.
      options: Beam's own, such as `--runner=FlinkRunner`; the direct runner without.

    Raises:
      JanusError: Beam is not installed, or an option is wrong.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise JanusError("--beam needs Apache Beam; pip install 'janus_jax[beam]'.") from error
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "parts" >> beam.Create(list(indices))
            # Without it a runner may keep all parts on the worker that numbered them.
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.Map(_write_part, preparation)
        )


def _write_part(index: int, preparation: ShardWriter) -> None:
    preparation.run_part(index)
