"""MJHQ-30K (Playground v2.5, arXiv 2402.17245, §3.3): prompts of ten categories, FID to Midjourney's pictures."""

from collections.abc import Sequence
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluate.benchmark import Answers, Benchmark, Options, Scores, check_ids, published
from janus_jax.evaluate.generation import fid
from janus_jax.evaluate.generation.judging import JUDGES, judged
from janus_jax.evaluate.generation.picture import DRAWING, PREDICTIONS, Picture, drawn_files, pictures_of
from janus_jax.evaluate.understanding.reading import named_entries

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


def write_predictions(pictures: Sequence[Picture], answers: Answers, folder: Path) -> None:
    """The pictures are there already."""
    drawn_files(pictures, answers)


def score(pictures: Sequence[Picture], answers: Answers, options: Options) -> Scores:
    """FID and CLIP score, where the data's folder has what they take."""
    return judged(pictures, answers, options["fid"])


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
