"""The tables of docs/scaling_tables.md, from invented reports."""

from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.scaling import Case
from janus_jax.aot import topologies
from janus_jax.aot.topologies import find_topology
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.recipe import Recipe

REPORT = {
    "devices": 8,
    "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
    "microbatches": 2,
    "remat": "full",
    "memory_limit": 80e9,
    "checkpoint_bytes": 30e9,
    "fits": True,
    "programs": [{"inputs": {"batch": 1e9}, "total": 2e9, "traffic": [{"ici_bytes": 3e9, "dcn_bytes": 4e9}]}],
    "roofline": {
        "step_seconds": {"overlapped": 2.0, "serial": 3.0},
        "mfu": {"overlapped": 0.6, "serial": 0.4},
        "bound": "compute",
    },
}
REPORTS = {
    Case("Janus-Pro-1B", 2, "h100:1x8"): REPORT,
    Case("Janus-Pro-7B", 2, "h100:1x8"): REPORT | {"fits": False},
    Case("Janus-Pro-7B", 3, "h100:1x8"): {"invalid": "The mesh does not divide the batch."},
}


@pytest.mark.parametrize(("make", "lines"), [(scaling.step_table, 5), (scaling.data_table, 3)])
def test_every_table_row_has_a_cell_per_column(make, lines):
    table = make(REPORTS).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == lines


def test_page_shows_the_stored_reports():
    """`python -m benchmarks.scaling --nocompile --publish` updates the page."""
    stored = scaling.read_reports(scaling.DOCUMENT.parents[1] / "benchmarks" / "compiled")
    page = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert scaling.insert_tables(page, scaling.make_tables(stored)) == page


def test_page_without_marker_raises():
    with pytest.raises(JanusError, match="no place for a table"):
        scaling.insert_tables("# Tables\n", {"speed": "None."})


@pytest.mark.parametrize(
    ("stage", "topology", "devices", "expected"),
    [
        (2, "v5e:16x16", 256, [(1, 1), (1, 2)]),
        (3, "v5e:16x16", 256, [(2, 1)]),
        (3, "h100:1x8", 8, [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16)]),
    ],
)
def test_layouts_divide_the_batch_evenly(stage, topology, devices, expected):
    recipe = replace(from_config(Recipe, scaling.MODELS["Janus-Pro-7B"]), stage=stage)
    found = [layout.resources for layout in scaling.layouts(recipe, find_topology(topology), devices, "full")]
    assert [(resources.tensor, resources.microbatches) for resources in found] == expected


@pytest.mark.parametrize(
    ("gigabytes", "expected", "tried"),
    [
        # GB with "dots" and with "full" in one microbatch; half of it in two. More microbatches take longer.
        ((20, 10), ("dots", 1), ["dots 1"]),
        ((50, 20), ("dots", 2), ["dots 1", "dots 2", "full 1"]),
        ((90, 20), ("full", 1), ["dots 1", "dots 4", "full 1"]),
        ((900, 20), ("full", 1), ["dots 1", "full 1"]),
        ((900, 900), (None, 1), ["dots 1", "full 1"]),
    ],
)
def test_fastest_layout_that_fits_is_reported(monkeypatch, gigabytes, expected, tried):
    compiled = []

    def compile_report(layout, topology):
        resources = layout.resources
        compiled.append(f"{resources.remat} {resources.microbatches}")
        size = gigabytes[resources.remat == "full"] / resources.microbatches
        seconds = (resources.remat == "full") + resources.microbatches / 2
        return {
            "fits": size < 30,
            "remat": resources.remat,
            "microbatches": resources.microbatches,
            "programs": [{"temporaries": size * 1e9}],
            "roofline": {"step_seconds": {"serial": seconds}},
        }

    lower_bound = scaling.memory_lower_bound
    cpu = find_topology("cpu:1x8")
    topology = replace(cpu, accelerator=replace(cpu.accelerator, memory=30e9))
    monkeypatch.setattr(scaling, "find_topology", lambda name: topology)
    monkeypatch.setattr(scaling, "compile_report", compile_report)
    # Bounds that are known before the first compilation do not matter here.
    monkeypatch.setattr(
        scaling, "memory_lower_bound", lambda *arguments: lower_bound(*arguments) if arguments[-1] else 0.0
    )
    report = scaling.compile_case(Case("Janus-Pro-1B", 3, "cpu:1x8"))
    assert (report["remat"] if report["fits"] else None, report["microbatches"]) == expected
    assert compiled == tried


def test_reports_are_appended_and_the_later_one_counts(tmp_path):
    case, other = scaling.all_cases(("cpu:1x8",))[:2]
    for one, report in ((case, {"fits": False}), (other, REPORT), (case, REPORT)):
        scaling.append_report(tmp_path / "new", one, report)
    assert scaling.read_reports(tmp_path / "new") == {case: REPORT, other: REPORT}


def test_memory_lower_bound_needs_no_compilation():
    recipe = replace(from_config(Recipe, scaling.MODELS["Janus-Pro-7B"]), stage=2)
    dots, more_dots = scaling.layouts(recipe, find_topology("v5e:16x16"), 256, "dots")
    full, more_full = scaling.layouts(recipe, find_topology("v5e:16x16"), 256, "full")
    assert scaling.memory_lower_bound(full, 256, {}) == 0
    # 30 layers x (q, k, v, out, down: 5 x 4096, gate, up: 2 x 11008), bfloat16, two sequences of 4096 tokens a device.
    bound = 30 * (5 * 4096 + 2 * 11008) * 2 * 2 * 4096
    assert scaling.memory_lower_bound(dots, 256, {}) == bound
    assert scaling.memory_lower_bound(more_dots, 256, {}) == bound / 2
    report = {"programs": [{"temporaries": 50e9}], "microbatches": 1}
    assert scaling.memory_lower_bound(more_full, 256, report) == 25e9


def test_missing_compiler_raises(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(JanusError, match=r"pip install"):
        scaling.compile_case(Case("Janus-Pro-1B", 1, "v5e:16x16"))
