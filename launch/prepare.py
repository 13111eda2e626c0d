"""Prepares data for training: ArrayRecord shards of records, in as many processes as wanted.

    python -m launch.prepare --source captions --input captions.jsonl --images photos --output prepared/captions

docs/data.md shows every kind of input. A run that was ended goes on when the same command is given again: finished
shards stay. Rejected records are in OUTPUT/quarantine.jsonl, counts and sizes in OUTPUT/preparation.json.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tqdm
from absl import flags

from janus_jax.data.beam import write_parts_with_beam
from janus_jax.data.prepare import Job, Preparation, begin
from janus_jax.data.processes import Progress, Report, alone, write_parts
from janus_jax.data.sources import SOURCES, Options, find_source
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from launch import cli

if TYPE_CHECKING:
    from janus_jax.config import VQConfig
    from janus_jax.models.janus import Params

_Result = TypeVar("_Result")

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
    "prompt", list(Options.prompts), "what a caption answers (understanding); several take turns"
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
    "tokenizer", None, "checkpoint of a model, or of an image tokenizer, to compute image ids with"
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
    cluster = _join_cluster() if _DISTRIBUTED.value else _Cluster()
    with contextlib.ExitStack() as stack:
        # The first process claims the folder before the others look at it.
        claimed = cluster.together(lambda: _claim(job, stack) if cluster.is_first else None)
        preparation = cluster.together(lambda: claimed or begin(job))
        summary = preparation.summary
        if summary is None:
            cluster.together(lambda: _write_parts(preparation, cluster))
            if tokenizer is not None:
                cluster.together(lambda: _add_ids(preparation, cluster, tokenizer))
            summary = cluster.together(lambda: preparation.finish(_MAX_REJECTED.value) if cluster.is_first else None)
    if summary is not None and cluster.is_first:
        print(summary)


class _Cluster:
    """The processes that share the work: this one alone."""

    index, count = 0, 1

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def share(self, indices: Sequence[int]) -> list[int]:
        """Those of the numbers that are this process's to do."""
        return [index for index in indices if index % self.count == self.index]

    def together(self, action: Callable[[], _Result]) -> _Result:
        """Does what all processes do at this point, and waits for the others.

        Raises:
          JanusError: another process failed.
        """
        return action()


class _JaxCluster(_Cluster):
    def __init__(self) -> None:
        import jax

        self.index, self.count = jax.process_index(), jax.process_count()

    def together(self, action: Callable[[], _Result]) -> _Result:
        import numpy as np
        from jax.experimental.multihost_utils import process_allgather

        failure = None
        try:
            result = action()
        # Of whatever kind: the others would wait for this process.
        except Exception as error:
            failure = error
        failed = np.flatnonzero(process_allgather(np.array(failure is not None)))
        if failure is not None:
            raise failure
        if failed.size:
            raise JanusError(f"Process {failed[0]} of the cluster has failed; its own message tells why.")
        return result


def _join_cluster() -> _Cluster:
    cli.join_cluster()
    return _JaxCluster()


def _job() -> Job:
    kind = _SOURCE.value
    source = find_source(kind)
    options = Options(
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
    return Job(kind, options, Path(_OUTPUT.value), _SPLIT.value, _TOKENIZER.value)


def _claim(job: Job, stack: contextlib.ExitStack) -> Preparation:
    # Most inputs are cut up in no time, and need no bar.
    with tqdm.tqdm(unit=" parts", desc="parts", delay=2, leave=False) as bar:
        preparation = begin(job, bar.update)
    if preparation.summary is None:
        stack.enter_context(alone(preparation))
    return preparation


def _write_parts(preparation: Preparation, cluster: _Cluster) -> None:
    indices = cluster.share(preparation.unfinished())
    if _BEAM.value is not None:
        write_parts_with_beam(preparation, indices, shlex.split(_BEAM.value))
        return
    with _bar(cluster) as report:
        write_parts(preparation, indices, _WORKERS.value, _MAX_REJECTED.value, report)


@contextlib.contextmanager
def _bar(cluster: _Cluster) -> Iterator[Report]:
    with tqdm.tqdm(unit=" records", desc="records", smoothing=0.1, disable=cluster.index > 0) as bar:

        def report(progress: Progress) -> None:
            if not bar.n:
                bar.initial = progress.entries  # What an earlier run did is no part of this one's speed.
            bar.total = progress.total
            bar.n = progress.entries
            bar.set_postfix(rejected=progress.rejected, shards=progress.parts, refresh=False)
            bar.refresh()

        yield report


Tokenizer = tuple["VQConfig", Callable[[], "Params"]]
"""An image tokenizer's config, and the reading of its parameters."""


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


def _add_ids(preparation: Preparation, cluster: _Cluster, tokenizer: Tokenizer) -> None:
    from janus_jax.train.image_ids import ImageTokenizer, add_image_ids

    cli.enable_compilation_cache()
    indices = cluster.share(preparation.without_ids())
    if not indices:
        return
    config, read = tokenizer
    encoder = ImageTokenizer(config, read(), _BATCH_SIZE.value)
    total = sum(preparation.outcome(index).size.records for index in indices)
    with tqdm.tqdm(unit=" images", desc="image ids", total=total, disable=cluster.index > 0) as bar:
        add_image_ids(preparation, indices, encoder, bar.update)


if __name__ == "__main__":
    cli.run(main)
