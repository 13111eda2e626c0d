"""COCO-30K: images for 30,000 captions of COCO, compared with COCO's photographs by FID.

The benchmark follows Janus' authors (deepseek-ai/Janus, issue 22). It generates images for random captions of val2014,
resizes them to 256 pixels with a bicubic filter, and scores them as GigaGAN's evaluation script does. The script
reduces the generated images and the photographs of val2014 to squares of 256 pixels (`fid.center_square`), and compares
both sets by clean-fid.
"""

import functools
from pathlib import Path

import numpy as np

from janus_jax.evaluation.benchmark import MODEL_DEFAULT, Benchmark, Choice, Options
from janus_jax.evaluation.benchmark_files import read_json_entry
from janus_jax.evaluation.generation.image_requests import (
    PREDICTIONS,
    SAMPLING_OPTIONS,
    ImageRequest,
    check_generated_files,
    requests_for_prompt,
)
from janus_jax.evaluation.metrics import fid
from janus_jax.evaluation.metrics.image_metrics import check_files, layout, score_images

_FILE = "captions_val2014.json"
_CAPTIONS = 30_000
_SIZE = 256
# The selection of captions belongs to the benchmark, so it does not depend on the seed of the run.
_SEED = 0


def read(data: Path, options: Options) -> list[ImageRequest]:
    """Reads requests for 30,000 random captions, or for all captions if there are fewer."""
    check_files(data, options, _SIZE)
    entries = list(read_json_entry(data / _FILE).entries("annotations"))
    numbers = np.arange(len(entries))
    if len(entries) > _CAPTIONS:
        numbers = np.sort(np.random.default_rng(_SEED).choice(len(entries), _CAPTIONS, replace=False))
    size = None if options["size"] == MODEL_DEFAULT else _SIZE
    requests = []
    for index, number in enumerate(numbers):
        entry = entries[number]
        caption = " ".join(entry.text("caption").split())
        requests += requests_for_prompt(caption, index, [f"{PREDICTIONS}/{_file_name(entry.id('id'))}"], data, size)
    return requests


def _file_name(caption_id: str) -> str:
    return f"{int(caption_id):012}.png" if caption_id.isdigit() else f"{caption_id.replace('/', '_')}.png"


BENCHMARK = Benchmark(
    name="coco30k",
    title="COCO-30K: an image of each of 30,000 captions, and their FID",
    layout=f"{_FILE}\n{layout(_SIZE)}",
    source="https://cocodataset.org (annotations_trainval2014; val2014, its folder of photographs as "
    f"{fid.REFERENCE}/); weights: {fid.SOURCE}",
    read=read,
    score=functools.partial(score_images, size=_SIZE),
    official_sizes=(_CAPTIONS,),
    write_predictions=check_generated_files,
    options={"fid": Choice(*fid.METHODS), "size": Choice(str(_SIZE), MODEL_DEFAULT), **SAMPLING_OPTIONS},
    scoring_options=("fid",),
    published={"fid": (8.53, None, None, None)},
)
