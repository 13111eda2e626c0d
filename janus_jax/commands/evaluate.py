"""Runs benchmarks on a model and prints its scores next to the scores from the papers.

    janus-evaluate --model DIR --benchmark pope --data DIR --out DIR

--list shows the benchmarks, their options, where to download their data and how to arrange the files. If --benchmark
names several benchmarks, benchmark NAME reads DATA/NAME and writes OUT/NAME.

All benchmarks and their files are checked before the first one starts. Answers are saved as they arrive. To continue an
interrupted run, repeat its command. OUT/results.json contains the scores; OUT/predictions/ contains the answers in the
format of the official scorer. Without --mesh, the questions of a batch are distributed over all devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from absl import flags, logging

from janus_jax.buckets import as_path, local_copy, require_local, staged_folder
from janus_jax.commands import best_of_flags, cli
from janus_jax.commands import model_flags as models
from janus_jax.commands.background_flag import define_background
from janus_jax.config import ModelConfig
from janus_jax.distributed import Cluster, join_cluster
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import MODEL_DEFAULT, AnswerSettings, Benchmark, Options, Question
from janus_jax.evaluation.generation.edit_requests import EditRequest, edit_settings, generate_edits
from janus_jax.evaluation.generation.generate_images import generate_images
from janus_jax.evaluation.generation.image_requests import PREDICTIONS, SAMPLING_OPTIONS, ImageRequest
from janus_jax.evaluation.journal import claim_folder
from janus_jax.evaluation.registry import BENCHMARKS, find_benchmark
from janus_jax.evaluation.results import format_table, items_digest, model_fingerprint, package_versions
from janus_jax.evaluation.runner import answer_questions, collect_answers
from janus_jax.processing import Background, DamagedImage
from janus_jax.progress import count_bar
from janus_jax.storage import output_folder, write_json, writing

if TYPE_CHECKING:
    from janus_jax import Pretrained
    from janus_jax.generation.best_of import BestOf

_BENCHMARK = flags.DEFINE_list(
    "benchmark", None, "benchmarks separated by commas, each as NAME or MODULE:NAME", required=True
)
_DATA = flags.DEFINE_string("data", "", "folder of the benchmarks' files")
_OUT = flags.DEFINE_string("out", None, "folder of answers and results, shared by all processes", required=True)
flags.DEFINE_bool("list", False, "show all benchmarks and exit")
_OPTION = flags.DEFINE_multi_string("option", [], "NAME=VALUE, an option of a benchmark; can be repeated")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "questions or images per batch", lower_bound=1)
_PARALLEL_WINDOW = models.define_parallel_window()
_BEST_OF = best_of_flags.define_best_of()
_LIMIT = flags.DEFINE_integer("limit", None, "answer about this many questions, selected by --seed", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "maximum length of an answer in tokens (default: that of the benchmark)", lower_bound=1
)
_BACKGROUND = define_background()
_SKIP_DAMAGED = flags.DEFINE_bool("skip_damaged", False, "skip questions with a damaged image, and count them")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "run as one of several processes that share the questions")
flags.adopt_module_key_flags(models)
flags.adopt_module_key_flags(best_of_flags)


@dataclasses.dataclass(frozen=True)
class BenchmarkRun:
    """One benchmark with its options, items and output folder.

    Attributes:
      warnings: Warnings about the data, for example that the number of questions differs from the official one.
    """

    benchmark: Benchmark[Any]
    options: Options
    items: Sequence[Question] | Sequence[ImageRequest]
    out: Path
    warnings: Sequence[str] = ()

    @property
    def generates_images(self) -> bool:
        """Whether the items are image requests, not questions."""
        return isinstance(self.items[0], ImageRequest)

    @property
    def edits_images(self) -> bool:
        """Whether the items are requests for edited images."""
        return isinstance(self.items[0], EditRequest)

    @property
    def reads_images(self) -> bool:
        """Whether the images of the items are read by this command, and not by the benchmark."""
        return self.benchmark.answer is None and (self.edits_images or not self.generates_images)

    def settings(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """Returns everything that the answers depend on.

        Args:
          common: Settings that all benchmarks of the command share.
        """
        scoring = self.benchmark.scoring_options
        options = {name: value for name, value in self.options.items() if name not in scoring}
        digest = items_digest(self.items)
        return {"benchmark": self.benchmark.name, "options": options} | dict(common) | {"questions": digest}


def main(_: Sequence[str]) -> None:
    """Runs the benchmarks one after the other."""
    with output_folder(as_path(_OUT.value)) as out:
        runs = read_benchmarks(require_local(_DATA.value, "--data"), out)
        opened = models.open_model()
        config = opened.config
        _check_sampling_options(runs, config)
        load = functools.cache(lambda: models.load_model(opened))
        model = _Model(load, _BEST_OF.make(load))
        cluster = join_cluster() if _DISTRIBUTED.value else Cluster()
        models.initialize_devices()
        # Mesh, batch size and parallel window are omitted, so that a run can continue with other values of them.
        common = {
            "model": model_fingerprint(opened.checkpoint.path),
            **({"adapter": model_fingerprint(adapter.path)} if (adapter := opened.checkpoint.adapter) else {}),
            "dtype": models.resolve_dtype(models.DTYPE.value),
            "conversation": config.conversation,
            "seed": models.SEED.value,
            "limit": _LIMIT.value,
            "max_new_tokens": _MAX_NEW_TOKENS.value,
            **models.quantization_setting(opened.checkpoint),
            **_BEST_OF.setting(),
            **({"background": background} if (background := _BACKGROUND.value) != "none" else {}),
        }
        # `collect_answers` claims a folder too, but only after the model is loaded.
        cluster.run_on_all(lambda: _claim_folders(runs, common) if cluster.is_primary else None)
        for warning in (warning for run in runs for warning in run.warnings if cluster.is_primary):
            logging.warning("%s", warning)
        _use_all_devices()
        for run in runs:
            _run(run, model, config, run.settings(common), cluster)


def list_benchmarks() -> None:
    """Prints the benchmarks, their options, and the layout and source of their data."""
    print("\n\n".join(map(_describe, BENCHMARKS.values())))


def _describe(benchmark: Benchmark[Any]) -> str:
    lines = [f"{benchmark.name:10} {benchmark.title}", f"  data from {benchmark.source}"]
    lines += [f"    {line}" for line in benchmark.layout.splitlines()]
    lines += [f"  --option {name}={option} (default: {option.default})" for name, option in benchmark.options.items()]
    return "\n".join(lines)


def read_benchmarks(data: Path, out: Path) -> list[BenchmarkRun]:
    """Reads the items of all benchmarks of the command.

    Args:
      data: Value of --data.
      out: Value of --out.

    Raises:
      JanusError: A benchmark or option does not exist, or the data is missing or malformed.
    """
    found = [find_benchmark(name.strip()) for name in _BENCHMARK.value]
    # The same benchmark may be named with and without its module.
    benchmarks = list({benchmark.name: benchmark for benchmark in found}.values())
    if not benchmarks:
        raise JanusError(f"--benchmark is empty; there are {', '.join(BENCHMARKS)}.")
    given = _parse_options(_OPTION.value, benchmarks)
    runs = []
    for benchmark in benchmarks:
        options = benchmark.resolve_options({name: given[name] for name in given if name in benchmark.options})
        if benchmark.layout and not _DATA.value:
            raise JanusError(f"--data is required for {benchmark.name}; --list shows the expected files.")
        subfolder = benchmark.name if len(benchmarks) > 1 else ""
        warnings: list[str] = []
        items = benchmark.load_items(data / subfolder, options, _LIMIT.value, models.SEED.value, warn=warnings.append)
        runs.append(BenchmarkRun(benchmark, options, _set_max_new_tokens(items), out / subfolder, warnings))
    if _MAX_NEW_TOKENS.value and all(run.generates_images for run in runs):
        names = ", ".join(benchmark.name for benchmark in benchmarks)
        raise JanusError(f"--max_new_tokens has no effect on {names}, which generate images; omit it.")
    if _BEST_OF.setting() and not any(run.generates_images for run in runs):
        names = ", ".join(benchmark.name for benchmark in benchmarks)
        raise JanusError(f"--best_of has no effect on {names}, which generate no images; omit it.")
    if _BACKGROUND.value != "none" and not any(run.reads_images for run in runs):
        names = ", ".join(benchmark.name for benchmark in benchmarks)
        raise JanusError(f"--background has no effect on {names}; omit it.")
    return runs


def _set_max_new_tokens(items: Sequence[Any]) -> Sequence[Any]:
    """Returns the items with --max_new_tokens as the limit of each answer, if the flag is given."""
    limit = _MAX_NEW_TOKENS.value
    if limit is None or not isinstance(items[0], Question):
        return items
    return [dataclasses.replace(item, max_new_tokens=limit) for item in items]


def _parse_options(given: Sequence[str], benchmarks: Sequence[Benchmark[Any]]) -> dict[str, str]:
    known = sorted({option for benchmark in benchmarks for option in benchmark.options})
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise JanusError(f"--option {text} has no value; give NAME=VALUE.")
        if name not in known:
            names = ", ".join(benchmark.name for benchmark in benchmarks)
            raise JanusError(
                f"--option {text} is not an option of {names}; the options are {', '.join(known) or '(none)'}."
            )
        options[name] = value
    return options


def _check_sampling_options(runs: Sequence[BenchmarkRun], config: ModelConfig) -> None:
    """Raises if a flag gives a setting that the model's image sampler does not have."""
    if not any(run.generates_images for run in runs):
        return
    from janus_jax.generation.edit_sampler import make_edit_sampler
    from janus_jax.generation.image_sampler import make_image_sampler

    window = models.window_setting(_PARALLEL_WINDOW)
    given = _parse_options(_OPTION.value, [run.benchmark for run in runs])
    names = [name for name in SAMPLING_OPTIONS if given.get(name, MODEL_DEFAULT) != MODEL_DEFAULT]
    for run in runs:
        if run.edits_images:
            if _BEST_OF.setting():
                raise JanusError(f"--best_of has no effect on {run.benchmark.name}, which edits images; omit it.")
            make_edit_sampler(config, **edit_settings(run.options), **window)
        elif run.generates_images:
            make_image_sampler(config, **{name: float(given[name]) for name in names}, **window)


def _claim_folders(runs: Sequence[BenchmarkRun], common: Mapping[str, Any]) -> None:
    for run in runs:
        claim_folder(run.out, run.settings(common))


def _use_all_devices() -> None:
    import jax

    if models.MESH.value is None and jax.local_device_count() > 1:
        flags.FLAGS["mesh"].value = "-1,1,1"


class _Model(NamedTuple):
    """The model, which is loaded if there are items without an answer, and the selection of its images."""

    load: Callable[[], "Pretrained"]
    best_of: "BestOf | None"


def _run(
    run: BenchmarkRun,
    model: _Model,
    config: ModelConfig,
    settings: Mapping[str, Any],
    cluster: Cluster,
) -> None:
    with count_bar(run.benchmark.name, disable=not cluster.is_primary) as on_progress:
        answers = collect_answers(
            run.items,
            lambda items: _answer_items(run, items, model),
            run.out,
            settings,
            keep_skipped=_SKIP_DAMAGED.value,
            cluster=cluster,
            on_progress=on_progress,
        )
    if answers is not None:
        _report(run, answers, config, settings, cluster.count)


def _answer_items(run: BenchmarkRun, items: Sequence[Any], model: _Model) -> Iterator[Mapping[str, str | None]]:
    if not items:
        return  # All items have answers, so the model is not loaded.
    seed, batch_size, background = models.SEED.value, _BATCH_SIZE.value, cast(Background, _BACKGROUND.value)
    if run.benchmark.answer is not None:
        yield from run.benchmark.answer(model.load(), items, AnswerSettings(run.out, run.options, seed, batch_size))
        return
    if run.generates_images:
        common: dict[str, Any] = {"options": run.options, "seed": seed, "batch_size": batch_size}
        common |= models.window_setting(_PARALLEL_WINDOW)
        if run.edits_images:
            yield from generate_edits(model.load(), items, run.out, background=background, **common)
        else:
            yield from generate_images(model.load(), items, run.out, best_of=model.best_of, **common)
        return
    try:
        yield from answer_questions(
            model.load(), items, batch_size, skip_damaged=_SKIP_DAMAGED.value, background=background
        )
    except DamagedImage as error:
        reason = str(error).removesuffix(".")
        raise JanusError(f"{reason}; fetch the image again, or skip its questions with --skip_damaged.") from error


def _report(
    run: BenchmarkRun, answers: Mapping[str, str], config: ModelConfig, settings: Mapping[str, Any], num_processes: int
) -> None:
    """Writes predictions and results.json, and prints the scores. Items without an answer were skipped."""
    import jax

    benchmark = run.benchmark
    answered: Sequence[Any] = [item for item in run.items if item.id in answers]
    skipped = [item.id for item in run.items if item.id not in answers]
    if not answered:
        raise JanusError(f"All {len(skipped)} questions of {benchmark.name} have damaged images; fetch them again.")
    if run.generates_images:
        images = local_copy(run.out)
        answers = {id: str(images / file) for id, file in answers.items()}
    predictions = run.out / PREDICTIONS
    with writing(predictions), staged_folder(predictions) as staged:
        benchmark.write_predictions(answered, answers, staged)
    scores = benchmark.score(answered, answers, run.options)
    results = {
        "scores": dict(scores),
        "published": dict(benchmark.published_scores(config.name)),
        "number of questions": len(answered),
        "skipped questions": skipped,
        "warnings": list(run.warnings),
        "run": dict(settings),
        "options": dict(run.options),
        "folder": str(folder.resolve()) if (folder := Path(models.MODEL.value)).exists() else models.MODEL.value,
        "devices": {"kind": jax.local_devices()[0].device_kind, "mesh": models.MESH.value, "processes": num_processes},
        "batch_size": _BATCH_SIZE.value,
        "versions": package_versions(),
        "config": dataclasses.asdict(config),
    }
    write_json(run.out / "results.json", results)
    print(format_table(benchmark, scores, config.name, compare=_LIMIT.value is None))
    for warning in run.warnings:
        print(warning)
    if skipped:
        print(f"{len(skipped)} questions with damaged images were skipped.")
    print()


def run() -> None:
    """Runs `janus-evaluate`."""
    cli.run(main, name="janus-evaluate", actions={"--list": list_benchmarks})
