"""ImgEdit-Bench (arXiv 2505.20275): instructions to edit photographs.

GPT-4o grades the results, outside this command.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Answers, Benchmark, Choice, Options, Scores
from janus_jax.evaluation.benchmark_files import read_json_entry, read_named_entries
from janus_jax.evaluation.generation.edit_requests import EDIT_OPTIONS, EditRequest
from janus_jax.evaluation.generation.image_requests import PREDICTIONS, check_generated_files

TYPES = ("add", "adjust", "extract", "replace", "remove", "background", "style", "compose", "action")
"""Types of edits, in the order of the paper's table. Names of the scores."""

SCORES = "average_score.json"
_FILES = {"basic": ("basic_edit.json", "singleturn.json"), "uge": ("UGE_edit.json", "hard.json")}


@dataclass(frozen=True, kw_only=True)
class ImgEditRequest(EditRequest):
    """A request for an edited image of ImgEdit-Bench.

    Attributes:
      edit_type: One of `TYPES`; "" in the suite "uge".
    """

    edit_type: str


def read(data: Path, options: Options) -> list[ImgEditRequest]:
    """Reads the instructions of the suite, in the order of the file. The names of images are relative to the folder."""
    names = _FILES[options["suite"]]
    file = next((file for name in names if (file := data / name).exists()), data / names[0])
    requests = []
    for number, (key, entry) in enumerate(read_named_entries(file)):
        if Path(key).name != key:
            raise JanusError(f"{entry.where}: the key {key!r:.80} is not a file name; download the file again.")
        name = entry.text("id", "the name of an image")
        requests.append(
            ImgEditRequest(
                id=key,
                group=key,
                prompt=entry.text("prompt"),
                prompt_index=number,
                image_index=0,
                file=f"{PREDICTIONS}/{key}.png",
                data=data,
                source=entry.image_path(data, name),
                source_name=name,
                edit_type=entry.one_of("edit_type", TYPES) if options["suite"] == "basic" else "",
            )
        )
    return requests


def score(requests: Sequence[ImgEditRequest], answers: Answers, options: Options) -> Scores:
    """Returns the mean grade (1 to 5) of all edits as `overall`, and of each type of edits.

    Returns no scores if average_score.json does not exist yet.

    Raises:
      JanusError: average_score.json is malformed or lacks edits.
    """
    file = Path(answers[requests[0].id]).parent / SCORES
    if not file.exists():
        return {}
    entry = read_json_entry(file)
    grades: dict[str, list[float]] = {}
    for request in requests:
        value = entry.get(request.id, "a grade")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 5:
            raise JanusError(f"{file}: {request.id} is {value!r:.80}; expected a number from 1 to 5.")
        grades.setdefault("overall", []).append(value)
        if request.edit_type:
            grades.setdefault(request.edit_type, []).append(value)
    means = {name: sum(values) / len(values) for name, values in grades.items()}
    return {name: means[name] for name in ("overall", *TYPES) if name in means}


BENCHMARK = Benchmark(
    name="imgedit",
    title="ImgEdit-Bench: 737 edits of nine types; graded by GPT-4o, outside this command",
    layout="basic_edit.json (suite=uge: UGE_edit.json)\n*/*.jpg, as the file names them",
    source="https://github.com/PKU-YuanGroup/ImgEdit (Benchmark/Basic) and the images of Benchmark.tar of "
    "https://huggingface.co/datasets/sysuyy/ImgEdit; the scorer basic_bench.py reads "
    f"OUT/{PREDICTIONS} as --result_img_folder; save its average scores there as {SCORES} and run this command again",
    read=read,
    score=score,
    official_sizes=lambda options: (737,) if options["suite"] == "basic" else (47,),
    write_predictions=check_generated_files,
    options={"suite": Choice("basic", "uge"), **EDIT_OPTIONS},
)
