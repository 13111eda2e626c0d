"""Makes the tables of docs/performance.md from the results of benchmarks/device.sh.

    python -m benchmarks.device_tables OUT/device.json
    python -m benchmarks.device_tables OUT/device.json --write

The first command prints the tables, the second writes them to docs/performance.md.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.shared import insert_table, markdown_table
from janus_jax.commands import cli

_WRITE = flags.DEFINE_bool("write", False, "write the tables to docs/performance.md instead of the terminal")

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
MARKER = "device"

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
            yield (
                part["model"],
                prefix.split("_")[1],
                f"{part['rows']} x {part['length']}",
                f"{part[f'{prefix}_ms']:.0f}",
                f"{part[f'{prefix}_tokens_per_second']:,.0f}",
                *("" if value is None else f"{value:.2f}" for value in found.values()),
                f"{part[f'{prefix}_peak_gib']:.2f}",
                f"{part[f'{prefix}_compile_s']:.0f}",
            )


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
    columns = ["model", "stage", "batch", "ms", "tokens/s", "MFU", "GiB in use", "GiB by the compiler", "compile s"]
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
