"""Tests of the search for a layout, and of the tables of docs/scaling_tables.md."""

from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.scaling import Case
from janus_jax.aot.topologies import find_topology
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.recipe import Recipe


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
        # GB with one microbatch under "dots" and under "full"; n microbatches need 1/n of it, but take longer.
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
    # Disables the bound before the first compilation, because the invented sizes are not those of the model.
    monkeypatch.setattr(
        scaling, "memory_lower_bound", lambda *arguments: lower_bound(*arguments) if arguments[-1] else 0.0
    )
    report = scaling.compile_case(Case("Janus-Pro-1B", 3, "cpu:1x8"))
    assert (report["remat"] if report["fits"] else None, report["microbatches"]) == expected
    assert compiled == tried


def test_last_appended_report_of_a_case_is_read(tmp_path):
    case, other = scaling.all_cases(("cpu:1x8",))[:2]
    for one, report in ((case, {"fits": False}), (other, {"fits": True}), (case, {"fits": True})):
        scaling.append_report(tmp_path / "new", one, report)
    assert scaling.read_reports(tmp_path / "new") == {case: {"fits": True}, other: {"fits": True}}


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
