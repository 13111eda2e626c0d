"""The tables of docs/scaling.md, of reports that are made up."""

from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.scaling import Row
from janus_jax.ahead import topologies
from janus_jax.ahead.topologies import find_topology
from janus_jax.errors import JanusError
from janus_jax.train.config_dicts import from_config
from janus_jax.train.recipe import Recipe

TOLD = {
    "devices": 8,
    "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
    "microbatches": 2,
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
    found = [layout.resources for layout in scaling.layouts(recipe, find_topology(topology), devices)]
    assert [(resources.tensor, resources.microbatches) for resources in found] == expected


def test_a_row_is_kept_as_soon_as_it_is_done_and_the_later_counts(tmp_path):
    row, other = scaling.rows(("cpu:1x8",))[:2]
    for one, told in ((row, {"fits": False}), (other, TOLD), (row, TOLD)):
        scaling.keep(tmp_path / "new", one, told)
    assert scaling.read(tmp_path / "new") == {row: TOLD, other: TOLD}


def test_parts_of_a_batch_are_tried_where_they_may_help():
    told = {"programs": [{"temporaries": 50e9}], "microbatches": 2, "limit": 30e9}
    assert not scaling.may_fit(told, 3)
    assert scaling.may_fit(told, 4)


def test_without_the_compiler_no_row_is_kept(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(JanusError, match=r"pip install"):
        scaling.compiled(Row("Janus-Pro-1B", 1, "v5e:16x16"))
