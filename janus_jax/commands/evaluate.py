"""Gives a model the papers' benchmarks, and prints what it scores beside what the papers say.

    janus-evaluate --model DIR --benchmark pope --data DIR --out DIR

--list shows the benchmarks, where their data comes from and how it lies in its folder. Every answer is kept in OUT as
soon as it is there: a run that was killed goes on where it stopped when it is called again. OUT/results.json has the
figures, OUT/predictions/ the answers as the official scorers read them. Of several benchmarks, NAME has its data in
DATA/NAME and its results in OUT/NAME. Without --mesh, all devices have rows of their own.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from janus_jax.commands import cli
from janus_jax.commands import model_flags as models
from janus_jax.config import ModelConfig
from janus_jax.distributed import Cluster, join_cluster
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import OWN, Amount, Benchmark, Options, Question, default_of, limited
from janus_jax.evaluation.generation.generate_images import drawing
from janus_jax.evaluation.generation.image_requests import DRAWING, Picture
from janus_jax.evaluation.journal import claim
from janus_jax.evaluation.registry import BENCHMARKS, find_benchmark
from janus_jax.evaluation.results import check_pictures, digest, fingerprint, table, versions
from janus_jax.evaluation.runner import answering, collect
from janus_jax.processing import Processor
from janus_jax.progress import count_bar
from janus_jax.storage import output_folder, write_json

if TYPE_CHECKING:
    from janus_jax import Pretrained

_BENCHMARK = flags.DEFINE_list("benchmark", None, "name, or MODULE:NAME; separate several with commas", required=True)
_DATA = flags.DEFINE_string("data", "", "folder of the benchmark's files; those of the embedded world have none")
_OUT = flags.DEFINE_string("out", None, "folder of answers and results; all processes see the same", required=True)
flags.DEFINE_bool("list", False, "show the benchmarks, with their data's layout and source, and end")
_OPTION = flags.DEFINE_multi_string("option", [], "NAME=VALUE of a benchmark; may be given several times")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "questions at a time; scores do not depend on it", lower_bound=1)
_LIMIT = flags.DEFINE_integer("limit", None, "ask only about so many questions, drawn by --seed", lower_bound=1)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "be one of the processes of a cluster, which share the questions"
)
flags.adopt_module_key_flags(models)


@dataclasses.dataclass(frozen=True)
class Job:
    """One benchmark to be run: its options settled, its questions read."""

    benchmark: Benchmark[Any]
    options: Options
    questions: Sequence[Question] | Sequence[Picture]
    out: Path

    def began(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """What its answers depend on."""
        options = {name: v for name, v in self.options.items() if name not in self.benchmark.scoring_options}
        own = {"benchmark": self.benchmark.name, "options": options}
        return own | dict(common) | {"questions": digest(self.questions)}


def main(_: Sequence[str]) -> None:
    """Runs the benchmarks, one after the other."""
    with output_folder(Path(_OUT.value)) as out:
        jobs = read_jobs(Path(_DATA.value), out)
        config = models.model_config()
        Processor.from_directory(models.MODEL.value, config)
        _check_drawing(jobs, config)
        cluster = join_cluster() if _DISTRIBUTED.value else Cluster()
        # Neither the mesh nor the size of batches: a run may go on with others.
        common = {
            "model": fingerprint(Path(models.MODEL.value)),
            "dtype": models.resolve_dtype(models.DTYPE.value),
            "conversation": config.conversation,
            "seed": models.SEED.value,
            "limit": _LIMIT.value,
        }
        # `collect` does it again, but would have the model loaded first.
        cluster.run_on_all(lambda: _claim(jobs, common) if cluster.is_first else None)
        _fill_devices()
        load = functools.cache(models.load_model)
        for job in jobs:
            _run(job, load, config, job.began(common), cluster)


def list_benchmarks() -> None:
    """Prints the benchmarks, their options, and the layout and source of their data."""
    print("\n\n".join(map(describe, BENCHMARKS.values())))


def read_jobs(data: Path, out: Path) -> list[Job]:
    """What the flags ask for, with the questions of all: a mistake in the last is told before the first begins.

    Raises:
      JanusError: there is no such benchmark or option, or something is wrong with the data.
    """
    chosen = [find_benchmark(name.strip()) for name in dict.fromkeys(_BENCHMARK.value)]
    if not chosen:
        raise JanusError(f"--benchmark is empty; there are {', '.join(BENCHMARKS)}.")
    given = _options(_OPTION.value, chosen)
    jobs = []
    for one in chosen:
        options = one.settled({name: value for name, value in given.items() if name in one.options})
        if one.layout and not _DATA.value:
            raise JanusError(f"--data is required for {one.name}; --list shows what is to lie there.")
        several = len(chosen) > 1
        questions = one.read(data / one.name if several else data, options)
        questions = limited(questions, _LIMIT.value, models.SEED.value)
        check_pictures(question for question in questions if isinstance(question, Question))
        jobs.append(Job(one, options, questions, out / one.name if several else out))
    return jobs


def _options(given: Sequence[str], chosen: Sequence[Benchmark[Any]]) -> dict[str, str]:
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise JanusError(f"--option {text} has no value; it is given as NAME=VALUE.")
        if not any(name in one.options for one in chosen):
            there = sorted({option for one in chosen for option in one.options})
            raise JanusError(
                f"--option {text} is of none of {', '.join(one.name for one in chosen)}; "
                f"their options: {', '.join(there) or 'none'}."
            )
        options[name] = value
    return options


def _check_drawing(jobs: Sequence[Job], config: ModelConfig) -> None:
    """Refuses what was asked of drawing and the model cannot do; defaults of benchmarks are for all models."""
    if not any(isinstance(job.questions[0], Picture) for job in jobs):
        return
    from janus_jax.generation.registry import make_image_sampler

    given = _options(_OPTION.value, [job.benchmark for job in jobs])
    make_image_sampler(config, **{name: float(given[name]) for name in DRAWING if given.get(name, OWN) != OWN})


def _claim(jobs: Sequence[Job], common: Mapping[str, Any]) -> None:
    for job in jobs:
        claim(job.out, job.began(common))


def _fill_devices() -> None:
    """Where no mesh is asked for, takes one of all devices, each with its own rows."""
    import jax

    if models.MESH.value is None and jax.local_device_count() > 1:
        flags.FLAGS["mesh"].value = "-1,1,1"


def _run(
    job: Job, load: Callable[[], "Pretrained"], config: ModelConfig, began: Mapping[str, Any], cluster: Cluster
) -> None:
    def work(items: Sequence[Any]) -> Iterator[Mapping[str, str]]:
        # A run that is done is scored anew without the model.
        if items and isinstance(items[0], Picture):
            yield from drawing(load(), job.out, job.options, models.SEED.value, _BATCH_SIZE.value)(items)
        elif items:
            yield from answering(load(), _BATCH_SIZE.value)(items)

    with count_bar(job.benchmark.name, disable=not cluster.is_first) as report:
        answers = collect(job.questions, work, job.out, began, cluster, report)
    if answers is None:
        return
    if isinstance(job.questions[0], Picture):
        answers = {id: str(job.out / file) for id, file in answers.items()}
    predictions = job.out / "predictions"
    predictions.mkdir(exist_ok=True)
    job.benchmark.write_predictions(job.questions, answers, predictions)
    scores = job.benchmark.score(job.questions, answers, job.options)
    results = {
        "scores": dict(scores),
        "published": dict(job.benchmark.published.get(config.name, {})),
        "number of questions": len(job.questions),
        "run": dict(began),
        "options": dict(job.options),
        "folder": str(Path(models.MODEL.value).resolve()),
        "devices": _devices(cluster),
        "batch_size": _BATCH_SIZE.value,
        "versions": versions(),
        "config": config.to_dict(),
    }
    write_json(job.out / "results.json", results)
    print(table(job.benchmark, scores, config.name, paper=_LIMIT.value is None) + "\n")


def _devices(cluster: Cluster) -> dict[str, Any]:
    import jax

    return {"kind": jax.local_devices()[0].device_kind, "mesh": models.MESH.value, "processes": cluster.count}


def describe(one: Benchmark[Any]) -> str:
    """A benchmark as --list shows it."""
    lines = [f"{one.name:10} {one.title}", f"  data from {one.source}"]
    lines += [f"    {line}" for line in one.layout.splitlines()]
    for name, values in one.options.items():
        allowed = values if isinstance(values, Amount) else "|".join(values)
        lines.append(f"  --option {name}={allowed} (default: {default_of(values)})")
    return "\n".join(lines)


def run() -> None:
    """Runs `janus-evaluate`."""
    cli.run(main, name="janus-evaluate", instead={"--list": list_benchmarks})
