"""Compiles every model and stage for the papers' clusters and common pods, without the devices.

    python -m benchmarks.scaling                        compiles all missing cases and prints the tables
    python -m benchmarks.scaling --only v5e:16x16       compiles those of one topology
    python -m benchmarks.scaling --publish              compiles, and writes the tables to docs/scaling_tables.md
    python -m benchmarks.scaling --nocompile --publish  only writes the tables

A case is one stage of one model on one topology. It takes minutes and needs jax[tpu] or jax[cuda13]. Each finished case
is appended to `benchmarks/compiled/`, so an interrupted run continues with the next case.

A case tries layouts: combinations of a remat policy and a number of microbatches, with the recipe's batch size. The
fastest layout that fits into memory is reported.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.shared import insert_table, markdown_table
from configs import janus_1_3b, janus_pro_1b, janus_pro_7b, janusflow_1_3b
from janus_jax.aot.report import compile_report
from janus_jax.aot.topologies import Topology, find_topology
from janus_jax.commands import cli
from janus_jax.config import RematPolicy
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.recipe import Recipe
from janus_jax.training.stage_config import Stage

_PUBLISH = flags.DEFINE_bool("publish", False, "write the tables to docs/scaling_tables.md instead of the terminal")
_COMPILE = flags.DEFINE_bool("compile", True, "compile missing cases")
_ONLY = flags.DEFINE_list("only", [], "topologies to compile for (default: all)")
_COMPILED = flags.DEFINE_string(
    "compiled", "benchmarks/compiled", "folder of the finished cases, with one file per topology"
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling_tables.md"
MODELS = {
    "Janus-1.3B": janus_1_3b.get_config(),
    "Janus-Pro-1B": janus_pro_1b.get_config(),
    "Janus-Pro-7B": janus_pro_7b.get_config(),
    "JanusFlow-1.3B": janusflow_1_3b.get_config(),
}
STAGES = (1, 2, 3)
# The clusters of the papers first, then common pods. v5p:4x4x4 is what Google calls v5p-128.
TOPOLOGIES = (
    "a100:16x8",
    "a100:32x8",
    "v5e:16x16",
    "v5p:4x4x4",
    "v5p:4x4x8",
    "v6e:16x16",
    "h100:1x8",
    "h100:8x8",
    "h200:1x8",
    "2xv5e:16x16",
)
REMAT_POLICIES: tuple[RematPolicy, ...] = ("dots", "full")
"""Policies to try, in ascending order of recomputation."""

# Assumed time in which a checkpoint is read or written, and assumed size of an image in a dataset.
_CHECKPOINT_SECONDS = 60
_IMAGE_BYTES = 100e3


@dataclass(frozen=True)
class Case:
    """One stage of one model on one topology. It is a row of the tables."""

    model: str
    stage: int
    topology: str


def all_cases(topologies: Sequence[str] = TOPOLOGIES) -> list[Case]:
    """Returns all cases in the order of the tables."""
    return [Case(model, stage, topology) for topology in topologies for model in MODELS for stage in STAGES]


def read_reports(folder: Path) -> dict[Case, dict[str, Any]]:
    """Returns the reports of the finished cases. If a case was appended twice, its last report is returned."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    return {Case(**stored["case"]): stored["report"] for stored in map(json.loads, lines)}


def append_report(folder: Path, case: Case, report: Mapping[str, Any]) -> None:
    """Appends a finished case to the file of its topology."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{case.topology.replace(':', '_')}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"case": asdict(case), "report": report}) + "\n")


def layouts(recipe: Recipe, topology: Topology, devices: int, remat: RematPolicy) -> Iterator[Recipe]:
    """Yields the recipe with 1, 2, 4, ... microbatches, up to one sequence per microbatch and data shard.

    With more devices than sequences in a batch, the tensor axis has the size devices / sequences.
    """
    batch = recipe.current.batch_size
    tensor = max(1, devices // batch)
    data = topology.num_slices if topology.accelerator.platform == "tpu" else 1
    per_device = max(1, batch * tensor // devices)
    attention = topology.accelerator.attention
    resources = replace(recipe.resources, data=data, fsdp=-1, tensor=tensor, attention=attention, remat=remat)
    microbatches = 1
    while microbatches <= per_device:
        if per_device % microbatches == 0:
            yield replace(recipe, resources=replace(resources, microbatches=microbatches))
        microbatches *= 2


def compile_case(case: Case) -> dict[str, Any]:
    """Returns the report of the fastest layout that fits, or of the last layout if none fits.

    If no layout is valid, such as for a mesh that does not divide the batch, the report has only the field `invalid`
    with the reason.
    """
    topology = find_topology(case.topology)
    recipe = replace(from_config(Recipe, MODELS[case.model]), stage=case.stage)
    devices, best = len(topology.devices()), dict[str, Any]()
    try:
        for remat in REMAT_POLICIES:
            report = dict[str, Any]()
            for layout in layouts(recipe, topology, devices, remat):
                # With the same number of microbatches, a policy with more recomputation is not faster.
                if best.get("fits") and layout.resources.microbatches >= best["microbatches"]:
                    break
                if memory_lower_bound(layout, devices, report) > topology.accelerator.usable_memory:
                    continue
                # Measures CPU time, which other load on this machine hardly changes.
                start = time.process_time()
                report = compile_report(layout, topology)
                report |= {"compile_cpu_seconds": round(time.process_time() - start), "versions": versions(topology)}
                if report["fits"]:
                    break
            if report and (not best.get("fits") or _serial_seconds(report) < _serial_seconds(best)):
                best = report
    except JanusError as error:
        best = {"invalid": str(error)}
    return best


def memory_lower_bound(layout: Recipe, devices: int, report: Mapping[str, Any]) -> float:
    """Returns a lower bound of the memory that a layout needs on each device, without compiling it.

    Args:
      report: Report of the same layout with fewer microbatches, or an empty one.
    """
    resources = layout.resources
    if report:
        # With fewer sequences per microbatch, temporaries shrink at most in proportion.
        return float(report["programs"][0]["temporaries"] * report["microbatches"] / resources.microbatches)
    if resources.remat == "full":
        return 0.0
    # Policy "dots" stores the outputs of the language model's matrix products.
    llm, stage = layout.model_config.llm, layout.current
    heads = (llm.num_heads + 2 * llm.num_kv_heads) * llm.head_dim
    features = llm.depth * (heads + 2 * llm.width + 2 * llm.mlp_dim)
    tokens = stage.batch_size * stage.budget.tokens / resources.microbatches
    return float(features * tokens * jnp.dtype(layout.on_platform("tpu").execution.dtype).itemsize / devices)


def versions(topology: Topology) -> dict[str, str]:
    """Returns the versions of jax and of the compiler."""
    compiler = {"tpu": "libtpu", "gpu": "jax-cuda13-plugin", "cpu": "jaxlib"}[topology.accelerator.platform]
    return {name: metadata.version(name) for name in ("jax", compiler)}


def make_tables(reports: Mapping[Case, dict[str, Any]]) -> dict[str, str]:
    """Returns the tables of docs/scaling_tables.md by name."""
    in_order = {case: reports[case] for case in all_cases() if case in reports}
    return {"memory and step time": step_table(in_order), "data and checkpoints": data_table(in_order)}


def step_table(reports: Mapping[Case, dict[str, Any]]) -> str:
    """Returns the table of memory, step time and traffic in Markdown."""
    columns = ["topology", "devices", "model", "stage", "mesh", "microbatches", "remat"]
    columns += ["state GB", "total GB", "limit GB", "step s", "MFU", "bound by", "ICI GB", "DCN GB"]
    rows = []
    for case, report in reports.items():
        if "invalid" in report:
            rows.append([case.topology, "", case.model, case.stage, report["invalid"], *[""] * 10])
            continue
        program, roofline = report["programs"][0], report["roofline"]
        mesh = "x".join(str(size) for size in report["mesh"].values())
        cells = [case.topology, report["devices"], case.model, case.stage, mesh]
        cells += [report["microbatches"], report["remat"]]
        cells += map(_gb, (sum(program["inputs"].values()), program["total"], report["memory_limit"]))
        if report["fits"] and roofline:
            cells += [_range(roofline["step_seconds"], ".2f"), _range(roofline["mfu"], ".0%"), roofline["bound"]]
            cells += [_gb(sum(one[name] for one in program["traffic"])) for name in ("ici_bytes", "dcn_bytes")]
        else:
            cells += ["does not fit", "", "", "", ""]
        rows.append(cells)
    return markdown_table(columns, rows)


def data_table(reports: Mapping[Case, dict[str, Any]]) -> str:
    """Returns the table of the data rates that the shortest step times need, and of checkpoint sizes, in Markdown."""
    columns = ["topology", "model", "stage", "images/s", "MB/s of images", "checkpoint GB", "GB/s for a minute"]
    rows = []
    for case, report in reports.items():
        if not report.get("fits") or not report["roofline"]:
            continue
        stage = from_config(Recipe, MODELS[case.model]).stages[case.stage - 1]
        images = stage.batch_size * images_read(stage)
        images_per_second = images / report["roofline"]["step_seconds"]["overlapped"]
        checkpoint = report["checkpoint_bytes"]
        cells = [case.topology, case.model, case.stage]
        cells += [f"{images_per_second:.0f}", f"{images_per_second * _IMAGE_BYTES / 1e6:.0f}"]
        cells += [f"{checkpoint / 1e9:.1f}", f"{checkpoint / _CHECKPOINT_SECONDS / 1e9:.2f}"]
        rows.append(cells)
    return markdown_table(columns, rows)


def images_read(stage: Stage) -> int:
    """Returns the number of images that a full sequence reads from the data.

    A source image of an edit that is written as features and as image tokens is read once.
    """
    budget = stage.budget
    return budget.und_images + budget.gen_images + (0 if stage.editing.format.features else budget.context_images)


def insert_tables(page: str, tables: Mapping[str, str]) -> str:
    """Returns the page with new versions of the tables."""
    for name, text in tables.items():
        page = insert_table(page, f"python -m benchmarks.scaling --publish: {name}", text)
    return page


def main(_: Sequence[str]) -> None:
    """Compiles missing cases, and prints or writes the tables."""
    jax.config.update("jax_platforms", "cpu")
    folder = Path(_COMPILED.value)
    reports = read_reports(folder)
    cases = all_cases(_ONLY.value or TOPOLOGIES) if _COMPILE.value else []
    for case in cases:
        if case not in reports:
            reports[case] = compile_case(case)
            append_report(folder, case, reports[case])
        report = reports[case]
        print(f"{case.topology} {case.model} {case.stage}: {report.get('verdict') or report['invalid']}", flush=True)
    tables = make_tables(reports)
    if _PUBLISH.value:
        DOCUMENT.write_text(insert_tables(DOCUMENT.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        print("\n\n".join(tables.values()))


def _serial_seconds(report: Mapping[str, Any]) -> float:
    return float(report["roofline"]["step_seconds"]["serial"]) if report["fits"] else math.inf


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def _range(bounds: Mapping[str, float], form: str) -> str:
    return " to ".join(format(bounds[name], form) for name in ("overlapped", "serial"))


if __name__ == "__main__":
    cli.run(main)
