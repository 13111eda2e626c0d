"""Makes the tables of docs/performance.md from the results of benchmarks/device.sh.

    python -m benchmarks.device_tables OUT/device.json
    python -m benchmarks.device_tables OUT/device.json --write_docs

The first command prints the tables, the second writes them to docs/performance.md. The tables compare training steps
with reports of janus-compile in device_estimates.jsonl, for the same device, model, stage and batch:

    janus-compile --config janus_pro_1b --config.stage=1 --config.stages.stage_1.batch_size=8 \\
        --config.stages.stage_1.budget.und_images=2 --config.stages.stage_1.budget.gen_images=3 \\
        --config.resources.remat=full --config.resources.microbatches=1 --topology h200:1x1 --json REPORT
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.shared import insert_table, markdown_table
from janus_jax.commands import cli

_WRITE = flags.DEFINE_bool("write_docs", False, "write the tables to docs/performance.md instead of the terminal")

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
MARKER = "device"
REPORTS = Path(__file__).parent / "device_estimates.jsonl"

Part = Mapping[str, Any]


def generation(parts: Sequence[Part]) -> Iterator[Sequence[str]]:
    """Yields the rows of the table of image tokens."""
    for part in parts:
        for run in part.get("runs", ()):
            share = run.get("weights_share")
            yield (
                part["model"],
                part["quantization"],
                str(run["batch"]),
                str(run["window"]),
                f"{run['passes']:g} of {part['tokens'] - 1}",
                f"{1e3 * run['seconds'] / run['passes']:.2f}",
                f"{run['batch'] * part['tokens'] / run['seconds']:,.0f}",
                f"{run['ratio']:.2f}",
                "" if share is None else f"{share:.2f}",
            )


def training(parts: Sequence[Part]) -> Iterator[Sequence[str]]:
    """Yields the rows of the table of training steps."""
    for part in parts:
        prefixes = (name.removesuffix("_ms") for name in part if name.startswith("stage_") and name.endswith("l_ms"))
        for prefix in prefixes:
            found = {name: part.get(f"{prefix}_{name}") for name in ("mfu", "used_gib")}
            mfu, used = ("" if value is None else f"{value:.2f}" for value in found.values())
            stage = prefix.split("_")[1]
            estimate = estimates().get((part["device"], part["model"], int(stage), part["rows"], part["length"]), {})
            yield (
                part["model"],
                stage,
                f"{part['rows']} x {part['length']}",
                f"{part[f'{prefix}_ms']:.0f}",
                estimate.get("ms", ""),
                mfu,
                estimate.get("mfu", ""),
                f"{part[f'{prefix}_tokens_per_second']:,.0f}",
                used,
                f"{part[f'{prefix}_peak_gib']:.1f}",
                estimate.get("gib", ""),
                f"{part[f'{prefix}_compile_s']:.0f}",
            )


@functools.cache
def estimates() -> dict[tuple[Any, ...], dict[str, str]]:
    """Returns the estimates of janus-compile by device, model, stage, sequences and their length."""
    found = {}
    for report in map(json.loads, REPORTS.read_text().splitlines()):
        step, mfu = (report["roofline"][name] for name in ("step_seconds", "mfu"))
        key = tuple(report[name] for name in ("device", "model", "stage", "batch_size", "sequence_length"))
        found[key] = {
            "ms": _range(f"{1e3 * step['overlapped']:.0f}", f"{1e3 * step['serial']:.0f}"),
            "mfu": _range(f"{mfu['serial']:.2f}", f"{mfu['overlapped']:.2f}"),
            "gib": f"{sum(program['total'] for program in report['programs']) / 2**30:.1f}",
        }
    return found


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def comparison(parts: Sequence[Part]) -> Iterator[Sequence[str]]:
    """Yields the rows of the table of single networks."""
    for part in parts:
        for name in ("siglip", "prefill", "vq_decode", "token"):
            if f"{name}_ms" in part:
                torch, ratio = (part.get(f"{name}_{kind}") for kind in ("torch_ms", "ratio"))
                others = ("" if value is None else f"{value:.2f}" for value in (torch, ratio))
                yield part["model"], f"`{name}`", f"{part[f'{name}_ms']:.2f}", *others


def tables(parts: Sequence[Part]) -> str:
    """Returns the tables in Markdown, after a line about the device and before one about incomplete parts."""
    measured = [part for part in parts if "versions" in part]
    lines = []
    if measured:
        versions = ", ".join(f"{name} {number}" for name, number in measured[0]["versions"].items())
        lines += [f"{measured[0]['device']}, {versions}.", ""]
    columns = [
        "model",
        "weights",
        "batch",
        "window",
        "passes",
        "ms per pass",
        "tokens/s",
        "ratio",
        "share of the bound",
    ]
    lines += [markdown_table(columns, generation(measured)), ""]
    columns = ["model", "stage", "batch", "ms", "estimate", "MFU", "estimate", "tokens/s"]
    columns += ["GiB in use", "by the compiler", "estimate", "compile s"]
    lines += [markdown_table(columns, training(measured)), ""]
    lines += [markdown_table(["model", "figure", "ms", "PyTorch ms", "ratio"], comparison(measured))]
    incomplete = [f"`{part['part']}` ({part['state']})" for part in parts if part["state"] != "done"]
    if incomplete:
        lines += ["", f"Incomplete parts: {', '.join(incomplete)}."]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Prints or writes the tables."""
    (path,) = arguments
    content = tables(json.loads(Path(path).read_text()))
    if _WRITE.value:
        DOCUMENT.write_text(insert_table(DOCUMENT.read_text(), MARKER, content))
    else:
        print(content)


if __name__ == "__main__":
    cli.run(main, positional=("DEVICE_JSON",))
