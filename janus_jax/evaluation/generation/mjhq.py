"""MJHQ-30K (Playground v2.5, arXiv 2402.17245, §3.3): prompts of ten categories, FID to Midjourney's pictures."""

from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Benchmark, Options, check_ids, published
from janus_jax.evaluation.generation.image_requests import DRAWING, PREDICTIONS, Picture, pictures_of
from janus_jax.evaluation.metrics import fid
from janus_jax.evaluation.metrics.registry import JUDGES, score, write_predictions
from janus_jax.evaluation.understanding.benchmark_files import named_entries

_FILE = "meta_data.json"


def read(data: Path, options: Options) -> list[Picture]:
    """A picture of every prompt, in the order of the file, in folders of the categories."""
    fid.check_judge(data, options["fid"])
    pictures = []
    for index, (name, entry) in enumerate(named_entries(data / _FILE)):
        category = entry.text("category")
        for part in (name, category):
            if "/" in part or "\0" in part or part in (".", ".."):
                raise JanusError(f"{entry.where}: {part!r:.80} is part of a file's name; it must be a plain name.")
        file = f"{PREDICTIONS}/{category}/{name}.png"
        pictures += pictures_of(entry.text("prompt"), index, [file], data, None)
    check_ids(pictures, data / _FILE)
    return pictures


BENCHMARK = Benchmark(
    name="mjhq30k",
    title="MJHQ-30K: a picture of each of 30,000 prompts, and their FID to Midjourney's",
    layout=f"{_FILE}\n{JUDGES}",
    source="https://huggingface.co/datasets/playgroundai/MJHQ-30K (meta_data.json; mjhq30k_imgs.zip, unpacked as "
    f"{fid.REFERENCE}/); weights: {fid.SOURCE}",
    read=read,
    score=score,
    write_predictions=write_predictions,
    options={"fid": tuple(fid.METHODS), **DRAWING},
    scoring_options=("fid",),
    published=published(fid=(10.10, 9.51, None, None)),
)
