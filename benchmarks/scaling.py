"""Compiles every model and stage for the papers' clusters and today's usual pods, none of which need be here.

    python -m benchmarks.scaling                        all of it; what is done already is read, not compiled again
    python -m benchmarks.scaling --only v5e:16x16       one topology
    python -m benchmarks.scaling --publish              and the tables into docs/scaling.md
    python -m benchmarks.scaling --nocompile --publish  only the tables, of what is done

It takes minutes a row, and jax[tpu] and jax[cuda13]. Each row is kept as soon as it is done, a line of json in
`benchmarks/compiled/`, and so a run can be interrupted. The batch is the recipe's. Of the layouts that share it out
evenly the one with the fewest parts is taken that fits: microbatches are doubled until it does. That is done for each
way to compute activations again, and the quicker is told.
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

from configs import janus_1_3b, janus_pro_1b, janus_pro_7b, janusflow_1_3b
from janus_jax.aot.chip_specs import KERNELS, USABLE
from janus_jax.aot.report import report
from janus_jax.aot.topologies import Topology, find_topology
from janus_jax.commands import cli
from janus_jax.config import RematPolicy
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.recipe import Recipe

_PUBLISH = flags.DEFINE_bool("publish", False, "put the tables of what is compiled into docs/scaling.md")
_COMPILE = flags.DEFINE_bool("compile", True, "compile the rows that are missing")
_ONLY = flags.DEFINE_list("only", [], "topologies (default: all)")
_COMPILED = flags.DEFINE_string("compiled", "benchmarks/compiled", "folder of what is done, a file of lines a topology")

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
MODELS = {
    "Janus-1.3B": janus_1_3b.get_config(),
    "Janus-Pro-1B": janus_pro_1b.get_config(),
    "Janus-Pro-7B": janus_pro_7b.get_config(),
    "JanusFlow-1.3B": janusflow_1_3b.get_config(),
}
STAGES = (1, 2, 3)
# The papers' own, then what is rented. Google's v5p-128 is 64 chips.
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

# What a disk has to give so that a checkpoint is read or written in a minute, and an image as data sets have it.
_MINUTE = 60
_IMAGE_BYTES = 100e3


@dataclass(frozen=True)
class Row:
    """Of the tables: one stage of one model on one topology."""

    model: str
    stage: int
    topology: str


REMAT: tuple[RematPolicy, ...] = ("dots", "full")
"""What is tried, that which computes less again first."""

# What most depends on: the largest model in its longest stage, on the usual pods and on its paper's cluster.
FIRST = tuple(
    Row("Janus-Pro-7B", 2, topology) for topology in ("v5e:16x16", "v5p:4x4x8", "v6e:16x16", "a100:32x8", "v5p:4x4x4")
)


def rows(topologies: Sequence[str] = TOPOLOGIES) -> list[Row]:
    """All of them, in the order of the tables."""
    return [Row(model, stage, topology) for topology in topologies for model in MODELS for stage in STAGES]


def read(folder: Path) -> dict[Row, dict[str, Any]]:
    """What is compiled; of a row that is there twice the later."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    return {Row(**kept["row"]): kept["told"] for kept in map(json.loads, lines)}


def keep(folder: Path, row: Row, told: Mapping[str, Any]) -> None:
    """Adds a line."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{row.topology.replace(':', '_')}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"row": asdict(row), "told": told}) + "\n")


def layouts(recipe: Recipe, topology: Topology, devices: int, remat: RematPolicy) -> Iterator[Recipe]:
    """The recipe in ways to share its batch out, those of the fewest microbatches first.

    A batch smaller than the number of devices is shared with the tensor axis.
    """
    batch = recipe.current.batch_size
    tensor = max(1, devices // batch)
    data = topology.islands if topology.chip.platform == "tpu" else 1
    each = max(1, batch * tensor // devices)
    kernel = KERNELS[topology.chip.platform]
    shared = replace(recipe.resources, data=data, fsdp=-1, tensor=tensor, attention=kernel, remat=remat)
    microbatches = 1
    while microbatches <= each:
        if each % microbatches == 0:
            yield replace(recipe, resources=replace(shared, microbatches=microbatches))
        microbatches *= 2


def compiled(row: Row) -> dict[str, Any]:
    """The quicker of the layouts that fit, or the last that was tried; `mistake` where none is a layout at all."""
    topology = find_topology(row.topology)
    recipe = replace(from_config(Recipe, MODELS[row.model]), stage=row.stage)
    devices, best = len(topology.devices()), dict[str, Any]()
    try:
        for remat in REMAT:
            told = dict[str, Any]()
            for layout in layouts(recipe, topology, devices, remat):
                # With no fewer parts, what computes more again is no quicker.
                if best.get("fits") and layout.resources.microbatches >= best["microbatches"]:
                    break
                if wanted(layout, devices, told) > topology.chip.memory * USABLE[topology.chip.platform]:
                    continue
                # Of the processors, which other work does not change.
                start = time.process_time()
                told = report(layout, topology).to_json()
                told |= {"compile_cpu_seconds": round(time.process_time() - start), "versions": versions(topology)}
                if told["fits"]:
                    break
            if told and (not best.get("fits") or _at_worst(told) < _at_worst(best)):
                best = told
    except JanusError as error:
        best = {"mistake": str(error)}
    return best


def wanted(layout: Recipe, devices: int, told: Mapping[str, Any]) -> float:
    """Bytes that a layout cannot do without on each device, known before it is compiled.

    Args:
      told: of the same in fewer microbatches, or nothing; a part of the rows takes that part of the temporaries, or
        more.
    """
    resources = layout.resources
    if told:
        return float(told["programs"][0]["temporaries"] * told["microbatches"] / resources.microbatches)
    if resources.remat == "full":
        return 0.0
    # The results of the products of the language model's layers.
    llm, stage = layout.model_config.llm, layout.current
    heads = (llm.num_heads + 2 * llm.num_kv_heads) * llm.head_dim
    numbers = llm.depth * (heads + 2 * llm.width + 2 * llm.mlp_dim)
    places = stage.batch_size * stage.budget.tokens / resources.microbatches
    return float(numbers * places * jnp.dtype(stage.precision.compute).itemsize / devices)


def versions(topology: Topology) -> dict[str, str]:
    """Of what compiled."""
    compiler = {"tpu": "libtpu", "gpu": "jax-cuda13-plugin", "cpu": "jaxlib"}[topology.chip.platform]
    return {name: metadata.version(name) for name in ("jax", compiler)}


def tables(found: Mapping[Row, dict[str, Any]]) -> dict[str, str]:
    """All of the page, by the names of their marks."""
    in_order = {row: found[row] for row in rows() if row in found}
    return {"what fits": table(in_order), "feeding": feeding(in_order), "not compiled": missing(found)}


def table(found: dict[Row, dict[str, Any]]) -> str:
    """What it takes and may reach, in Markdown."""
    head = (
        "topology|devices|model|stage|mesh|microbatches|again|state GB|in all GB|of|step s|MFU|bound by|near GB|far GB"
    )
    lines = [f"| {head.replace('|', ' | ')} |", "|---" * (head.count("|") + 1) + "|"]
    for row, told in found.items():
        if "mistake" in told:
            lines.append(f"| {row.topology} | | {row.model} | {row.stage} | {told['mistake']} " + "| " * 10 + "|")
            continue
        program, line = told["programs"][0], told["roofline"]
        mesh = "x".join(str(size) for size in told["mesh"].values())
        cells = [row.topology, told["devices"], row.model, row.stage, mesh, told["microbatches"], told["remat"]]
        cells += [_gb(sum(program["inputs"].values())), _gb(program["total"]), _gb(told["limit"])]
        if told["fits"] and line:
            near, far = (sum(one[name] for one in program["collectives"]) for name in ("near", "far"))
            cells += [
                _between(line["seconds"], ".2f"),
                _between(line["mfu"], ".0%"),
                line["bound"],
                _gb(near),
                _gb(far),
            ]
        else:
            cells += ["does not fit", "", "", "", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def missing(found: Mapping[Row, Any]) -> str:
    """The rows that are not compiled, in Markdown."""
    gone: dict[str, list[str]] = {}
    for topology, model in dict.fromkeys((row.topology, row.model) for row in rows()):
        if stages := [str(stage) for stage in STAGES if Row(model, stage, topology) not in found]:
            gone.setdefault(topology, []).append(f"{model} {', '.join(stages)}")
    return "\n".join(f"- {topology}: {'; '.join(models)}" for topology, models in gone.items()) or "None."


def feeding(found: dict[Row, dict[str, Any]]) -> str:
    """What disks and hosts have to give, in Markdown: if steps are as fast as they may be."""
    lines = [
        "| topology | model | stage | images/s | MB/s of images | checkpoint GB | GB/s for a minute |",
        "|---" * 7 + "|",
    ]
    for row, told in found.items():
        if not told.get("fits") or not told["roofline"]:
            continue
        stage = from_config(Recipe, MODELS[row.model]).stages[row.stage - 1]
        images = stage.batch_size * (stage.budget.und_images + stage.budget.gen_images)
        images_a_second = images / told["roofline"]["seconds"]["at best"]
        size = told["checkpoint"]
        cells = [
            row.topology,
            row.model,
            row.stage,
            f"{images_a_second:.0f}",
            f"{images_a_second * _IMAGE_BYTES / 1e6:.0f}",
        ]
        cells += [f"{size / 1e9:.1f}", f"{size / _MINUTE / 1e9:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def written(page: str, tables: Mapping[str, str]) -> str:
    """The page with the tables between their marks."""
    for name, text in tables.items():
        begin, end = f"<!-- python -m benchmarks.scaling --publish: {name} -->", "<!-- end -->"
        before, mark, rest = page.partition(begin)
        _old, _end, after = rest.partition(end)
        if not mark or not _end:
            raise JanusError(f"{DOCUMENT} has no place for the table {name!r}: {begin} ... {end}.")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def main(_: Sequence[str]) -> None:
    """Compiles what is missing, and prints or writes the tables."""
    jax.config.update("jax_platforms", "cpu")
    out = Path(_COMPILED.value)
    found = read(out)
    asked = rows(_ONLY.value or TOPOLOGIES)
    for row in sorted(asked, key=lambda row: row not in FIRST) if _COMPILE.value else ():
        if row not in found:
            found[row] = compiled(row)
            keep(out, row, found[row])
        told = found[row]
        print(f"{row.topology} {row.model} {row.stage}: {told.get('verdict') or told['mistake']}", flush=True)
    if _PUBLISH.value:
        DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8"), tables(found)), encoding="utf-8")
    else:
        print("\n\n".join(tables(found).values()))


def _at_worst(told: Mapping[str, Any]) -> float:
    return float(told["roofline"]["seconds"]["at worst"]) if told["fits"] else math.inf


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def _between(values: dict[str, float], form: str) -> str:
    return " to ".join(format(values[name], form) for name in ("at best", "at worst"))


if __name__ == "__main__":
    cli.run(main)
