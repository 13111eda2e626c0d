"""Prepares data for training: ArrayRecord shards of records, in as many processes as wanted.

    janus-prepare --source captions --input captions.jsonl --images photos --output prepared/captions

docs/data.md shows every kind of input. A run that was ended goes on when the same command is given again: finished
shards stay. Rejected records are in OUTPUT/quarantine.jsonl, counts and sizes in OUTPUT/preparation.json.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from janus_jax.commands import cli
from janus_jax.data.prepare.prepare import PrepareOptions, prepare, read_tokenizer
from janus_jax.data.prepare.shard_writer import DatasetSpec
from janus_jax.data.sources import SOURCES, SourceOptions, get_source
from janus_jax.distributed import Cluster, join_cluster
from janus_jax.errors import JanusError
from janus_jax.processing import Task

_SOURCE = flags.DEFINE_string(
    "source", None, f"kind of input: {', '.join(sorted(SOURCES))}, or MODULE:KIND of your own", required=True
)
_INPUT = flags.DEFINE_multi_string(
    "input", None, "file, folder or pattern such as 'tars/*.tar'; for tfds a data set's name", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "folder of the data set; made if need be", required=True)
_TASK = flags.DEFINE_enum(
    "task", None, [task.value for task in Task], "what the records teach (default: the source's first)"
)
_SPLIT = flags.DEFINE_string("split", "train", "name of the split that is written")
_IMAGES = flags.DEFINE_string("images", None, "folder that image paths are relative to (default: the input's own)")
_PROMPT = flags.DEFINE_multi_string(
    "prompt", list(SourceOptions.prompts), "what a caption answers (understanding); several take turns"
)
_TEXT_FIELD = flags.DEFINE_string("text_field", None, "field of the text, caption or class (default: the usual names)")
_IMAGE_FIELD = flags.DEFINE_string("image_field", None, "field of the image (default: the usual names)")
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "for tfds: a file with words for class names, one a line")
_INPUT_SPLIT = flags.DEFINE_string("input_split", "train", "for tfds: the split that is read, also as train[:1000]")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "for tfds: folder of its data sets (default: TFDS's own)")
_SHARD_RECORDS = flags.DEFINE_integer(
    "shard_records", None, "records a shard (default: by source); of tars one becomes one shard", lower_bound=1
)
_MAX_REJECTED = flags.DEFINE_float("max_rejected", 0.05, "share of rejected records at which it stops")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes", lower_bound=1)
_BEAM = flags.DEFINE_string(
    "beam", None, "run as an Apache Beam pipeline with these options, such as '--runner=FlinkRunner ...'"
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "checkpoint of a model, an image tokenizer or a VAE, to compute image ids or latents with"
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images that the tokenizer takes at a time", lower_bound=1)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "share the work with the processes of a cluster, as jax.distributed finds them"
)

flags.register_validator("max_rejected", lambda share: 0 <= share <= 1, "it must be from 0 to 1")


def main(_: Sequence[str]) -> None:
    """Prepares, and prints what there is."""
    job = _job()
    tokenizer = None if job.tokenizer is None else read_tokenizer(Path(job.tokenizer))
    cluster = join_cluster() if _DISTRIBUTED.value else Cluster()
    means = PrepareOptions(_WORKERS.value, _MAX_REJECTED.value, _BATCH_SIZE.value, _BEAM.value)
    if tokenizer is not None:
        cli.enable_compilation_cache()
    summary = prepare(job, means, tokenizer, cluster)
    if summary is not None:
        print(summary)


def _job() -> DatasetSpec:
    kind = _SOURCE.value
    source = get_source(kind)
    options = SourceOptions(
        inputs=tuple(_INPUT.value),
        task=Task(_TASK.value) if _TASK.value else source.tasks[0],
        images=_IMAGES.value,
        prompts=tuple(_PROMPT.value),
        text_field=_TEXT_FIELD.value,
        image_field=_IMAGE_FIELD.value,
        class_names=_CLASS_NAMES.value,
        input_split=_INPUT_SPLIT.value,
        data_dir=_DATA_DIR.value,
        shard_records=_SHARD_RECORDS.value or source.shard_records,
    )
    if not all(prompt.strip() for prompt in options.prompts):
        raise JanusError("--prompt is empty; leave it out, or write what the caption answers.")
    if options.images is not None and not Path(options.images).is_dir():
        raise JanusError(f"--images {options.images} is no folder; give the one that image paths are relative to.")
    return DatasetSpec(kind, options, Path(_OUTPUT.value), _SPLIT.value, _TOKENIZER.value)


def run() -> None:
    """Runs `janus-prepare`."""
    cli.run(main, name="janus-prepare")
