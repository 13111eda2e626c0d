"""MJHQ-30K (arXiv 2402.17245, §3.3): images for prompts of ten categories, compared with Midjourney's by FID."""

from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Benchmark, Choice, Options
from janus_jax.evaluation.benchmark_files import read_named_entries
from janus_jax.evaluation.generation.image_requests import (
    PREDICTIONS,
    SAMPLING_OPTIONS,
    ImageRequest,
    check_generated_files,
    requests_for_prompt,
)
from janus_jax.evaluation.metrics import fid
from janus_jax.evaluation.metrics.image_metrics import check_files, layout, score_images

_FILE = "meta_data.json"


def read(data: Path, options: Options) -> list[ImageRequest]:
    """Reads one request per prompt, in file order. Each category has its own image folder."""
    check_files(data, options)
    requests = []
    for index, (name, entry) in enumerate(read_named_entries(data / _FILE)):
        category = entry.text("category")
        for part in (name, category):
            if "/" in part or "\0" in part or part in (".", ".."):
                raise JanusError(f"{entry.where}: {part!r:.80} is used as a file name; it must be a plain name.")
        requests += requests_for_prompt(entry.text("prompt"), index, [f"{PREDICTIONS}/{category}/{name}.png"], data)
    return requests


BENCHMARK = Benchmark(
    name="mjhq30k",
    title="MJHQ-30K: an image of each of 30,000 prompts, and the FID to Midjourney's images",
    layout=f"{_FILE}\n{layout()}",
    source="https://huggingface.co/datasets/playgroundai/MJHQ-30K (meta_data.json; mjhq30k_imgs.zip, unpacked as "
    f"{fid.REFERENCE}/); weights: {fid.SOURCE}",
    read=read,
    score=score_images,
    official_sizes=(30_000,),
    write_predictions=check_generated_files,
    options={"fid": Choice(*fid.METHODS), **SAMPLING_OPTIONS},
    scoring_options=("fid",),
    published={"fid": (10.10, 9.51, None, None)},
)
