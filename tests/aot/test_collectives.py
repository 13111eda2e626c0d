"""Tests of reading collectives from HLO text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.aot.collectives import Collective, read_collectives
from janus_jax.aot.topologies import find_topology
from janus_jax.sharding import make_mesh

TEXT = """HloModule jit_step

%all-reduce-scatter.1 (a: f32[64]) -> f32[8] {
  %a = f32[64]{0} parameter(0)
  ROOT %all-reduce.9 = f32[64]{0} all-reduce(%a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%body (s: (s32[], f32[64])) -> (s32[], f32[64]) {
  %s = (s32[], f32[64]) parameter(0)
  %ag = (bf16[8]{0}, bf16[16,4]{1,0:T(8,128)}) all-gather-start(%x), replica_groups=[4,2]<=[8], dimensions={0}
  %agd = bf16[16,4]{1,0} all-gather-done(%ag)
  %f = f32[8]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (s: (s32[], f32[64])) -> pred[] {
  %bound = s32[]{:T(128)} constant(24)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[64]) while(%t), condition=%condition, body=%body
  %cp = s32[512]{0} collective-permute(%q), source_target_pairs={{0,0},{1,4},{4,1}}
  %a2a = f32[32]{0} all-to-all(%q), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %alone = f32[32]{0} all-reduce(%q), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""


def read(hlo, topology="cpu:1x8"):
    return read_collectives(hlo, make_mesh(2, 2, 2), find_topology(topology))


def test_operations_have_trip_counts_axes_and_slices():
    gather, scatter, permute, exchange = read(TEXT, "cpu:2x4")
    assert gather == Collective("all-gather", 128, "bf16", ("tensor",), 2, 1, 0, (24,))
    assert scatter == Collective("reduce-scatter", 256, "f32", ("data", "fsdp", "tensor"), 8, 2, 0, (24,))
    assert permute == Collective("collective-permute", 2048, "s32", ("data", "tensor"), 2, 2, 0)
    assert exchange == Collective("all-to-all", 128, "f32", ("data", "fsdp"), 4, 2, 0)


def test_multi_line_kernel_does_not_end_a_computation():
    """The text has the form of the TPU compiler's attention kernel."""
    text = r"""HloModule jit_step

%body (t: (s32[], f32[64])) -> (s32[], f32[64]) {
  %kernel = bf16[8]{0} custom-call(%t), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 512, \"block_kv\": 512}"
}}, metadata={op_name="jit(step)/splash"}
  %ar = f32[64]{0} all-reduce(%kernel), replica_groups=[1,8]<=[8]
}

%condition (t: (s32[], f32[64])) -> pred[] {
  %bound = s32[] constant(24)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[64]) while(%t), condition=%condition, body=%body
}
"""
    assert [(one.kind, one.size, one.trip_counts) for one in read(text)] == [("all-reduce", 256, (24,))]


def test_sends_to_megascale_are_collectives_between_slices():
    """The text has the form of the TPU compiler."""
    to_all, to_one = '"{1,2}x{0:3}"', "{{200000->100000},{100001->200001}}"

    def attributes(kind, target):
        return f'frontend_attributes={{_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}'

    text = f"""HloModule jit_step

%body (t: (s32[], f32[64])) -> (s32[], f32[64]) {{
  %r = (bf16[64,8]{{1,0:T(8,128)}}, u32[], token[]) recv(%a), {attributes("ALL_REDUCE", to_all)}
  %s = (bf16[64,8]{{1,0:T(8,128)}}, u32[], token[]) send(%g, %a), {attributes("ALL_REDUCE", to_all)}
  %d = token[] send-done(%s), frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime"}}
}}

%condition (t: (s32[], f32[64])) -> pred[] {{
  %bound = s32[] constant(24)
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %w = (s32[], f32[64]) while(%t), condition=%condition, body=%body
  %g = (f32[16]{{0}}, u32[], token[]) send(%p, %a), {attributes("ALL_GATHER", to_all)}
  %o = (f32[16]{{0}}, u32[], token[]) send(%p, %a), {attributes("ONE_TO_ONE", to_one)}
}}
"""
    assert read(text, "cpu:2x4") == [
        Collective("all-reduce", 1024, "bf16", ("data",), 2, 2, 0, (24,)),
        Collective("all-gather", 128, "f32", ("data",), 2, 2, 0),
        Collective("collective-permute", 64, "f32", ("data",), 2, 2, 0),
    ]


def test_start_operation_has_the_size_of_its_outputs():
    """The text has the form of the GPU compiler."""
    text = """HloModule jit_step

ENTRY %main (p: f32[8]) -> f32[8] {
  %rs = ((f32[16,8]{0,1}, bf16[8]{0}), (f32[16,1]{0,1}, bf16[1]{0})) reduce-scatter-start(%a), replica_groups=[1,8]<=[8]
  %a2a = ((f32[64]{0}), f32[64]{0}) all-to-all-start(%a), replica_groups=[1,8]<=[8]
  %ar = f32[64]{0} all-reduce-start(%a), replica_groups=[1,8]<=[8]
}
"""
    assert [(one.kind, one.size) for one in read(text)] == [
        ("reduce-scatter", 4 * 128 + 2 * 8),
        ("all-to-all", 256),
        ("all-reduce", 256),
    ]


@pytest.mark.parametrize(
    ("kind", "group_size", "slices", "ici", "dcn"),
    [
        ("all-gather", 8, 1, 700, 0),
        ("all-reduce", 8, 1, 1400, 0),
        ("all-gather", 8, 2, 600, 100),
        ("all-reduce", 8, 2, 1200, 200),
        ("all-to-all", 8, 2, 300, 400),
        ("all-gather", 2, 2, 0, 400),
        ("collective-permute", 2, 2, 0, 800),
    ],
)
def test_bytes_are_divided_between_ici_and_dcn(kind, group_size, slices, ici, dcn):
    one = Collective(kind, 800, "f32", ("fsdp",), group_size, slices, 1)
    assert (one.ici_bytes, one.dcn_bytes) == (ici, dcn)


def compile_and_read(step, weight_shape, *arguments):
    """Returns the collectives of `step(weights, x, *arguments)` with split weights, compiled for the CPU."""
    mesh = make_mesh(2, 2, 2)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    weights = jax.ShapeDtypeStruct(weight_shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=rows)
    return read(jax.jit(step, out_shardings=rows).lower(weights, x, *arguments).compile().as_text())


def test_loop_of_a_compiled_program_has_its_trip_count():
    def step(weights, x):
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]

    found = compile_and_read(step, (5, 64, 64))
    assert any(one.trip_counts == (5,) and one.axes == ("fsdp",) for one in found)
    assert {one.trip_counts for one in found} <= {(), (5,)}


def test_data_dependent_loop_counts_once():
    def step(weight, x, trips):
        return jax.lax.fori_loop(0, trips, lambda _, x: jnp.tanh(x @ weight), x)

    inside = [one for one in compile_and_read(step, (64, 64), 5) if one.trip_counts]
    assert inside
    assert {(one.trip_counts, one.count) for one in inside} == {((None,), 1)}


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("[4,2]<=[8]", ("tensor",)),
        ("[2,4]<=[2,2,2]T(2,0,1)", ("data", "fsdp")),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",)),
        ("mesh['a'=4,'b'=2] {'a'}", ("data", "fsdp")),
        ("mesh['a'=8] {'a':(2)2}", ("fsdp",)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("data", "fsdp")),
    ],
)
def test_all_notations_of_groups_are_read(groups, axes):
    line = f"  %r = f32[8]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add"
    (one,) = read(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}\n")
    assert one.axes == axes


def test_collective_in_pieces_counts_once():
    gather = "  %g = f32[16]{0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}"
    pieces = "".join(
        f"%{name} (p: f32[8]) -> f32[16] {{\n{gather}\n}}\n" for name in ("first", "async_collective_fusion.1", "last")
    )
    entry = """ENTRY %main (p: f32[8]) -> f32[8] {
  %async-collective-start.1 = f32[16]{0} fusion(%p), kind=kCustom, calls=%first
  %fusion.3 = f32[16]{0} fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  %async-collective-done.1 = f32[16]{0} fusion(%p), kind=kCustom, calls=%last
}
"""
    assert len(read(pieces + entry)) == 1
