"""Prepares training data: ArrayRecord shards of records, written by any number of processes.

    janus-prepare --source captions --input captions.jsonl --images photos --output prepared/captions

docs/data.md describes all kinds of input. To continue an interrupted run, repeat its command: finished shards are kept.
OUTPUT/quarantine.jsonl lists rejected records, OUTPUT/preparation.json has counts and sizes.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from absl import flags

from janus_jax.buckets import require_local
from janus_jax.commands import cli
from janus_jax.commands.background_flag import define_background
from janus_jax.data.prepare.prepare import PrepareOptions, prepare
from janus_jax.data.prepare.shard_writer import DatasetSpec
from janus_jax.data.sources import SOURCES, SourceOptions, get_source
from janus_jax.data.sources.base import CaptionFrom, TextUnit
from janus_jax.data.sources.class_names import read_class_names
from janus_jax.devices import initialize_devices
from janus_jax.distributed import Cluster, join_cluster
from janus_jax.errors import JanusError
from janus_jax.processing import Background, EditingFormat, Task

_SOURCE = flags.DEFINE_string(
    "source", None, f"kind of input: {', '.join(sorted(SOURCES))}, or MODULE:NAME of your own source", required=True
)
_INPUT = flags.DEFINE_multi_string(
    "input", None, "file, folder or pattern such as 'tars/*.tar'; for tfds, the name of a dataset", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "folder of the dataset; created if missing", required=True)
_TASK = flags.DEFINE_enum(
    "task",
    None,
    [task.value for task in Task],
    "task of the records (default: the first task of the source, see docs/data.md)",
)
_SPLIT = flags.DEFINE_string("split", "train", "name of the split to write")
_IMAGES = flags.DEFINE_string(
    "images", None, "folder that image paths are relative to (default: the folder of the input file)"
)
_PROMPT = flags.DEFINE_multi_string(
    "prompt",
    list(SourceOptions.prompts),
    "question that a caption answers (understanding); if repeated, each record uses one of them",
)
_TEXT_FIELD = flags.DEFINE_string(
    "text_field", None, "field of the text, caption or class (default: common names such as caption)"
)
_IMAGE_FIELD = flags.DEFINE_string("image_field", None, "field of the image (default: common names such as image)")
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "file with the caption of each class, one class per line")
_CAPTION_FROM = flags.DEFINE_enum(
    "caption_from",
    None,
    get_args(CaptionFrom),
    "for folder: the caption of an image is the text file with its name, its own name, or its folder's name",
)
_TEXT_UNIT = flags.DEFINE_enum("text_unit", "line", get_args(TextUnit), "for text: what a document is in a .txt file")
_INPUT_SPLIT = flags.DEFINE_string(
    "input_split", "train", "split to read: of a TFDS dataset, such as train[:1000], or of a folder with several splits"
)
_BACKGROUND = define_background()
_DATA_DIR = flags.DEFINE_string("data_dir", None, "for tfds: folder of TFDS datasets (default: TFDS's own)")
_SHARD_RECORDS = flags.DEFINE_integer(
    "shard_records",
    None,
    "records per shard (default: depends on the source); a tar or a compressed file always gives one shard",
    lower_bound=1,
)
_MAX_REJECTED = flags.DEFINE_float("max_rejected", 0.05, "largest share of records that may be rejected")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "number of processes", lower_bound=1)
_BEAM = flags.DEFINE_string(
    "beam", None, "run as an Apache Beam pipeline with these options, such as '--runner=FlinkRunner ...'"
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "checkpoint of a model, image tokenizer or VAE that precomputes image tokens or latents"
)
_EDITING_STYLE = flags.DEFINE_enum(
    "editing_style",
    "janus_4o",
    get_args(EditingFormat),
    "editing style of the training that reads the precomputed image tokens of edits",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images that the tokenizer encodes at a time", lower_bound=1)
_DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "share the work with the processes of a cluster")

flags.register_validator("max_rejected", lambda share: 0 <= share <= 1, "it must be from 0 to 1")
cli.flag_group("Input", _SOURCE, _INPUT, _TASK, _INPUT_SPLIT, _IMAGES, _PROMPT, _TEXT_FIELD, _IMAGE_FIELD)
cli.flag_group("Input", _CLASS_NAMES, _CAPTION_FROM, _TEXT_UNIT, _DATA_DIR, _BACKGROUND)
cli.flag_group("Output", _OUTPUT, _SPLIT, _SHARD_RECORDS, _MAX_REJECTED)
cli.flag_group("Image tokens and latents", _TOKENIZER, _EDITING_STYLE, _BATCH_SIZE)
cli.flag_group("Execution", _WORKERS, _BEAM, _DISTRIBUTED)


def main(_: Sequence[str]) -> None:
    """Prepares the dataset and prints its counts."""
    spec = _spec()
    make_encoder = None
    if spec.tokenizer is not None:
        # Imported here so that the command starts without jax.
        from janus_jax.data.prepare.encode_images import open_image_encoder

        make_encoder = open_image_encoder(Path(spec.tokenizer))
        cli.enable_compilation_cache()
    cluster = join_cluster() if _DISTRIBUTED.value else Cluster()
    if make_encoder is not None:
        initialize_devices()
    options = PrepareOptions(_WORKERS.value, _MAX_REJECTED.value, _BATCH_SIZE.value, _BEAM.value)
    summary = prepare(spec, options, make_encoder, cluster)
    if summary is not None:
        print(summary)


def _spec() -> DatasetSpec:
    source = get_source(_SOURCE.value)
    options = SourceOptions(
        inputs=tuple(_INPUT.value),
        task=Task(_TASK.value) if _TASK.value else source.tasks[0],
        images=_IMAGES.value,
        prompts=tuple(_PROMPT.value),
        text_field=_TEXT_FIELD.value,
        image_field=_IMAGE_FIELD.value,
        class_names=_CLASS_NAMES.value,
        caption_from=cast(CaptionFrom | None, _CAPTION_FROM.value),
        text_unit=cast(TextUnit, _TEXT_UNIT.value),
        input_split=_INPUT_SPLIT.value,
        data_dir=_DATA_DIR.value,
        shard_records=_SHARD_RECORDS.value or source.shard_records,
    )
    if not all(prompt.strip() for prompt in options.prompts):
        raise JanusError("--prompt is empty; leave it out, or give the question that the caption answers.")
    if options.images is not None and not Path(options.images).is_dir():
        raise JanusError(f"--images {options.images} is not a folder; give the folder of the image paths.")
    if options.class_names is not None:
        read_class_names(options.class_names)
    return DatasetSpec(
        source=_SOURCE.value,
        options=options,
        output=require_local(_OUTPUT.value, "--output"),
        split=_SPLIT.value,
        tokenizer=_TOKENIZER.value,
        background=cast(Background, _BACKGROUND.value),
        editing=cast(EditingFormat, _EDITING_STYLE.value),
    )


def run() -> None:
    """Runs `janus-prepare`."""
    cli.run(main, name="janus-prepare")
