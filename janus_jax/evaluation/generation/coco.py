"""COCO-30K: pictures of 30,000 of COCO's captions, held against its photographs by FID."""

from pathlib import Path

import numpy as np

from janus_jax.evaluation.benchmark import Benchmark, Options, check_ids, published
from janus_jax.evaluation.generation.image_requests import DRAWING, PREDICTIONS, Picture, pictures_of
from janus_jax.evaluation.metrics import fid
from janus_jax.evaluation.metrics.registry import JUDGES, score, write_predictions
from janus_jax.evaluation.understanding.benchmark_files import json_object

_FILE = "captions_val2014.json"
_CAPTIONS = 30_000
_SIDE = 256
# Which captions are drawn is part of the benchmark: the seed of a run says what the model draws.
_SEED = 0


def read(data: Path, options: Options) -> list[Picture]:
    """A picture of each of 30,000 captions, drawn at random; of all, where there are no more."""
    fid.check_judge(data, options["fid"])
    entries = list(json_object(data / _FILE).entries("annotations"))
    numbers = np.arange(len(entries))
    if len(entries) > _CAPTIONS:
        numbers = np.sort(np.random.default_rng(_SEED).choice(len(entries), _CAPTIONS, replace=False))
    side = _SIDE if options["size"] == str(_SIDE) else None
    pictures = []
    for index, number in enumerate(numbers):
        entry = entries[number]
        caption = " ".join(entry.text("caption").split())
        # A number first: ids of COCO are numbers, and a name must be one that every disk takes.
        name = f"{PREDICTIONS}/{int_id(entry.id('id'))}.png"
        pictures += pictures_of(caption, index, [name], data, side)
    check_ids(pictures, data / _FILE)
    return pictures


def int_id(text: str) -> str:
    """An id as part of a file's name."""
    return f"{int(text):012}" if text.isdigit() else text.replace("/", "_")


BENCHMARK = Benchmark(
    name="coco30k",
    title="COCO-30K: a picture of each of 30,000 captions, and their FID",
    layout=f"{_FILE}\n{JUDGES}",
    source=f"https://cocodataset.org (annotations_trainval2014); weights: {fid.SOURCE}",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options={"fid": tuple(fid.METHODS), "size": (str(_SIDE), "own"), **DRAWING},
    scoring_options=("fid",),
    published=published(fid=(8.53, None, None, None)),
)
