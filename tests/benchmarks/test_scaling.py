"""The tables of docs/scaling.md, of reports that are made up."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from benchmarks import scaling
from benchmarks.scaling import Row
from janus_jax.aot import topologies
from janus_jax.aot.topologies import find_topology
from janus_jax.errors import JanusError
from janus_jax.training.config_dicts import from_config
from janus_jax.training.recipe import Recipe

TOLD = {
    "devices": 8,
    "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
    "microbatches": 2,
    "remat": "full",
    "limit": 80e9,
    "checkpoint": 30e9,
    "fits": True,
    "programs": [{"inputs": {"batch": 1e9}, "total": 2e9, "collectives": [{"near": 3e9, "far": 4e9}]}],
    "roofline": {
        "seconds": {"at best": 2.0, "at worst": 3.0},
        "mfu": {"at best": 0.6, "at worst": 0.4},
        "bound": "computing",
    },
}
FOUND = {
    Row("Janus-Pro-1B", 2, "h100:1x8"): TOLD,
    Row("Janus-Pro-7B", 2, "h100:1x8"): TOLD | {"fits": False},
    Row("Janus-Pro-7B", 3, "h100:1x8"): {"mistake": "The mesh does not divide the batch."},
}


@pytest.mark.parametrize("make", [scaling.table, scaling.feeding])
def test_every_line_of_a_table_has_a_cell_for_each_column(make):
    lines = make(FOUND).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == (5 if make is scaling.table else 3)


def test_the_page_has_a_place_for_each_table():
    page = scaling.DOCUMENT.read_text(encoding="utf-8")
    once = scaling.written(page, {"what fits": "A", "feeding": "B", "not compiled": "C"})
    assert all(f"-->\n{text}\n<!-- end -->" in once for text in "ABC")
    assert scaling.written(once, {"what fits": "D", "feeding": "E", "not compiled": "F"}).count("<!-- end -->") == 3


def test_the_page_shows_what_is_kept():
    """`python -m benchmarks.scaling --nocompile --publish` brings it up to date."""
    kept = scaling.read(scaling.DOCUMENT.parents[1] / "benchmarks" / "compiled")
    page = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert scaling.written(page, scaling.tables(kept)) == page


def test_what_is_not_compiled_is_named():
    every = dict.fromkeys(scaling.rows())
    gone = Row("Janus-Pro-7B", 2, "v5e:16x16")
    assert scaling.missing(every) == "None."
    assert scaling.missing({row: None for row in every if row != gone}) == "- v5e:16x16: Janus-Pro-7B 2"


@pytest.mark.parametrize(
    ("stage", "topology", "devices", "expected"),
    [
        (2, "v5e:16x16", 256, [(1, 1), (1, 2)]),
        (3, "v5e:16x16", 256, [(2, 1)]),
        (3, "h100:1x8", 8, [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16)]),
    ],
)
def test_layouts_share_the_batch_out_evenly(stage, topology, devices, expected):
    recipe = replace(from_config(Recipe, scaling.MODELS["Janus-Pro-7B"]), stage=stage)
    found = [layout.resources for layout in scaling.layouts(recipe, find_topology(topology), devices, "full")]
    assert [(resources.tensor, resources.microbatches) for resources in found] == expected


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        # Gigabytes with "dots" and with "full" in one part; half of it in two. More parts take longer.
        ((20, 10), ("dots", 1, ["dots 1"])),
        ((50, 20), ("dots", 2, ["dots 1", "dots 2", "full 1"])),
        ((90, 20), ("full", 1, ["dots 1", "dots 4", "full 1"])),
        ((900, 20), ("full", 1, ["dots 1", "full 1"])),
        ((900, 900), (None, 1, ["dots 1", "full 1"])),
    ],
)
def test_the_quicker_layout_that_fits_is_told(monkeypatch, needs, expected):
    tried = []

    def report(layout, topology):
        resources = layout.resources
        tried.append(f"{resources.remat} {resources.microbatches}")
        size = needs[resources.remat == "full"] / resources.microbatches
        told = {
            "fits": size < 30,
            "remat": resources.remat,
            "microbatches": resources.microbatches,
            "programs": [{"temporaries": size * 1e9}],
            "roofline": {"seconds": {"at worst": (resources.remat == "full") + resources.microbatches / 2}},
        }
        return SimpleNamespace(to_json=lambda: told)

    chip = replace(find_topology("cpu:1x8").chip, memory=30e9)
    topology = replace(find_topology("cpu:1x8"), chip=chip)
    monkeypatch.setattr(scaling, "find_topology", lambda name: topology)
    monkeypatch.setattr(scaling, "report", report)
    monkeypatch.setattr(scaling, "wanted", partial(wanted_once_told, scaling.wanted))
    told = scaling.compiled(Row("Janus-Pro-1B", 3, "cpu:1x8"))
    remat, microbatches, in_order = expected
    assert (told["remat"] if told["fits"] else None, told["microbatches"], tried) == (remat, microbatches, in_order)


def wanted_once_told(wanted, layout, devices, told):
    """What is known beforehand does not matter here."""
    return wanted(layout, devices, told) if told else 0.0


def test_a_row_is_kept_as_soon_as_it_is_done_and_the_later_counts(tmp_path):
    row, other = scaling.rows(("cpu:1x8",))[:2]
    for one, told in ((row, {"fits": False}), (other, TOLD), (row, TOLD)):
        scaling.keep(tmp_path / "new", one, told)
    assert scaling.read(tmp_path / "new") == {row: TOLD, other: TOLD}


def test_what_cannot_fit_is_known_before_it_is_compiled():
    recipe = replace(from_config(Recipe, scaling.MODELS["Janus-Pro-7B"]), stage=2)
    dots, more_dots = scaling.layouts(recipe, find_topology("v5e:16x16"), 256, "dots")
    full, more_full = scaling.layouts(recipe, find_topology("v5e:16x16"), 256, "full")
    assert scaling.wanted(full, 256, {}) == 0
    # 30 layers x (q, k, v, out, down: 5 x 4096, gate, up: 2 x 11008), bfloat16, two rows of 4096 places a device.
    assert scaling.wanted(dots, 256, {}) == 30 * (5 * 4096 + 2 * 11008) * 2 * 2 * 4096
    assert scaling.wanted(more_dots, 256, {}) == scaling.wanted(dots, 256, {}) / 2
    told = {"programs": [{"temporaries": 50e9}], "microbatches": 1}
    assert scaling.wanted(more_full, 256, told) == 25e9


def test_without_the_compiler_no_row_is_kept(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(JanusError, match=r"pip install"):
        scaling.compiled(Row("Janus-Pro-1B", 1, "v5e:16x16"))
