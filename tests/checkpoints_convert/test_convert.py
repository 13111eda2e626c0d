import gc
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from checkpoints_convert import convert, open_checkpoint, orbax_params, released, save_checkpoint
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.parts import VQ
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.config import PRESETS
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    SMALL,
    pseudo,
    save,
    save_released,
    save_transformers,
)

ROOT = Path(__file__).parents[2]
NO_METADATA = ("[]", "null", '{"tree_metadata": []}', '{"tree_metadata": {"a": 1}}', "[[[[")


def assert_same_tensors(left, right):
    left, right = open_tensors(left), open_tensors(right)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].tobytes() == right[name].tobytes(), name


def by_place(name):
    if name.startswith("gen_vision_model"):
        return FLOAT32
    if name.startswith("language_model.model.layers.1.mlp"):
        return FLOAT16
    if "norm" in name or name.endswith("layers.2.self_attn.q_proj.weight"):
        return FLOAT32
    return BFLOAT16


@pytest.mark.parametrize("dtype", [FLOAT32, by_place], ids=["float32", "mixed"])
@pytest.mark.parametrize(("make", "layout"), [(save_released, "released"), (save_transformers, "transformers")])
def test_there_and_back_changes_no_bit(tmp_path, make, layout, dtype):
    source = make(tmp_path / "Janus-Pro", dtype=dtype)
    convert(source, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", layout)
    assert_same_tensors(source, tmp_path / "back")


def test_a_released_folder_comes_back_with_its_pool_and_counter(released_folder, converted_folder, tmp_path):
    convert(converted_folder, tmp_path / "back", "released")
    assert_same_tensors(released_folder, tmp_path / "back")
    assert (tmp_path / "back" / "config.json").exists()
    assert (
        replace(open_checkpoint(tmp_path / "back").config, name=released_folder.name)
        == open_checkpoint(released_folder).config
    )


def test_through_transformers_layout_nothing_in_use_changes(released_folder, converted_folder, tmp_path):
    convert(converted_folder, tmp_path / "theirs", "transformers")
    convert(tmp_path / "theirs", tmp_path / "again", conversation="janus_pro")
    summary = convert(tmp_path / "again", tmp_path / "back", "released")
    assert any("zeros" in note for note in summary.notes)
    before, after = open_tensors(released_folder), open_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    unused = released.unused_shapes(SMALL)
    for name in before:
        expected = np.zeros_like(before[name]) if name in unused else before[name]
        np.testing.assert_array_equal(after[name], expected, err_msg=name)


def test_shards_in_and_out(tmp_path):
    source = save_released(tmp_path / "Janus-Pro", shard_bytes=300_000)
    assert len(list(source.glob("*.safetensors"))) > 2
    convert(source, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", "released", shard_bytes=500_000)
    assert (tmp_path / "back" / "model.safetensors.index.json").exists()
    assert_same_tensors(source, tmp_path / "back")


def test_files_beside_the_weights_travel_untouched(released_folder, tmp_path):
    source = shutil.copytree(released_folder, tmp_path / "Janus-Pro")
    (source / "tokenizer.json").write_text('{"added_tokens":[]}')
    (source / "preprocessor_config.json").write_text('{ "image_size":32}')
    (source / "README.md").write_text("not needed")
    convert(source, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", "released")
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "back" / "README.md").exists()


@pytest.mark.parametrize("layout", ["released", "transformers"])
def test_its_own_system_prompt_travels_into_layouts_that_know_none(released_folder, tmp_path, layout):
    convert(released_folder, tmp_path / "converted")
    trained = json.loads((tmp_path / "converted" / "config.json").read_text())
    trained["source"] = {}  # As training leaves it.
    (tmp_path / "converted" / "config.json").write_text(json.dumps(trained))
    (tmp_path / "converted" / "processor_config.json").write_text('{"system_prompt": "", "sft_format": "deepseek"}')
    convert(tmp_path / "converted", tmp_path / "exported", layout)
    written = json.loads((tmp_path / "exported" / "processor_config.json").read_text())
    assert written["system_prompt"] == ""
    assert written["num_image_tokens"] == SMALL.und_encoder.num_patches


def test_the_converted_config_is_ours(released_folder, converted_folder):
    content = json.loads((converted_folder / "config.json").read_text())
    assert content["format"] == "janus_jax"
    assert content["dtype"] == "bfloat16"
    assert content["source"]["layout"] == "released"
    assert open_checkpoint(converted_folder).config == replace(SMALL, name=released_folder.name)


def sharded(axis_names, shape):
    return jax.make_mesh(shape, axis_names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))


def abstract_tree(mesh, dtype):
    def spec(shape):
        axes = [None] * len(shape)
        for axis in range(len(shape)):
            if shape[axis] % mesh.size == 0:
                axes[axis] = mesh.axis_names
                break
        return P(*axes)

    tree: dict[str, Any] = {}
    for parameter in model_parameters(SMALL):
        node = tree
        for key in parameter.keys[:-1]:
            node = node.setdefault(key, {})
        sharding = NamedSharding(mesh, spec(parameter.full_shape))
        node[parameter.keys[-1]] = jax.ShapeDtypeStruct(parameter.full_shape, dtype, sharding=sharding)
    return tree


def expected_leaves(folder):
    stacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for keys, _, array in open_checkpoint(folder).params():
        stacks.setdefault(keys, []).append(array)
    return {keys: arrays[0] if len(arrays) == 1 else np.stack(arrays) for keys, arrays in stacks.items()}


def at(tree, keys):
    for key in keys:
        tree = tree[key]
    return tree


@pytest.mark.parametrize(("axes", "shape"), [(("data",), (1,)), (("fsdp", "tensor"), (2, 4))])
def test_plain_orbax_restores_it_onto_a_mesh(released_folder, converted_folder, axes, shape):
    target = abstract_tree(sharded(axes, shape), jax.numpy.bfloat16)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(converted_folder / "params", target)
    for keys, array in expected_leaves(released_folder).items():
        found = at(restored, keys)
        assert found.sharding == at(target, keys).sharding
        np.testing.assert_array_equal(np.asarray(found), array, err_msg=str(keys))


def test_plain_orbax_restores_it_without_a_target(released_folder, converted_folder):
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(converted_folder / "params")
    for keys, array in expected_leaves(released_folder).items():
        np.testing.assert_array_equal(at(restored, keys), array, err_msg=str(keys))


def test_a_checkpoint_manager_restores_it(converted_folder, tmp_path):
    shutil.copytree(converted_folder / "params", tmp_path / "0" / "params")
    target = abstract_tree(sharded(("data",), (8,)), jax.numpy.float32)
    with ocp.CheckpointManager(tmp_path, item_names=("params",)) as manager:
        restored = manager.restore(0, args=ocp.args.Composite(params=ocp.args.StandardRestore(target)))
    assert restored["params"]["llm"]["head"]["weight"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_params_are_stored_as_asked(released_folder, tmp_path, dtype):
    convert(released_folder, tmp_path / "converted", dtype=dtype)
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["dtype"] == dtype
    found = {keys: array for keys, _, array in open_checkpoint(tmp_path / "converted").params()}
    assert {array.dtype.name for array in found.values()} == {dtype}


@pytest.mark.parametrize("rows", [7, 1 << 30])
def test_chunks_of_any_size_hold_the_same_numbers(released_folder, tmp_path, monkeypatch, rows):
    # With 7 rows, the last chunk of most leaves reaches past the array's edge.
    monkeypatch.setattr(orbax_params.DeferredParameter, "chunk_shape", property(lambda self: chunked(self, rows)))
    convert(released_folder, tmp_path / "converted")
    assert_same_params(released_folder, tmp_path / "converted")


def chunked(deferred, rows):
    shape = deferred.parameter.shape
    return (*([] if deferred.parameter.layers is None else [1]), min(rows, shape[0]), *shape[1:])


def test_chunks_that_are_not_raw_are_left_to_tensorstore(released_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_params, "_chunks_are_raw", lambda *_: False)
    convert(released_folder, tmp_path / "converted")
    assert_same_params(released_folder, tmp_path / "converted")


def assert_same_params(left, right):
    for (keys, layer, array), (keys2, layer2, array2) in zip(
        open_checkpoint(left).params(), open_checkpoint(right).params(), strict=True
    ):
        assert (keys, layer) == (keys2, layer2)
        np.testing.assert_array_equal(array, array2, err_msg=str(keys))


def test_chunks_are_at_most_64_mib_and_one_layer():
    for parameter in model_parameters(PRESETS["janus_pro_7b"]):
        shape = orbax_params.DeferredParameter(parameter, BFLOAT16, lambda _: np.zeros(0)).chunk_shape
        assert np.prod(shape) * 2 <= 64 << 20
        assert parameter.layers is None or shape[0] == 1


def test_params_saved_by_orbax_itself_are_exported(released_folder, converted_folder, tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_bytes((converted_folder / "config.json").read_bytes())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", checkpointer.restore(converted_folder / "params"))
    convert(folder, tmp_path / "back", "released")
    before, after = open_tensors(released_folder), open_tensors(tmp_path / "back")
    for name in before.keys() - released.unused_shapes(SMALL).keys():
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_a_tree_in_memory_is_saved_as_a_converted_folder(released_folder, converted_folder, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(converted_folder / "params", abstract_tree(sharded(("data",), (1,)), np.float32))
    save_checkpoint(tmp_path / "trained", params, SMALL)
    assert open_checkpoint(tmp_path / "trained").config == SMALL
    assert_same_params(converted_folder, tmp_path / "trained")
    summary = convert(tmp_path / "trained", tmp_path / "back", "released")
    assert any("14 tensors" in note and "zeros" in note for note in summary.notes)


def test_a_tree_of_another_model_is_not_saved(converted_folder, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(converted_folder / "params")
    del params["gen_embed"]
    with pytest.raises(JanusError, match="gen_embed/embedding is missing"):
        save_checkpoint(tmp_path / "trained", params, SMALL)


def test_a_params_folder_of_another_model_tells_all_mismatches(converted_folder, tmp_path):
    folder = shutil.copytree(converted_folder, tmp_path / "other")
    content = json.loads((folder / "config.json").read_text())
    content["model"]["llm"]["vocab_size"] = 64
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(JanusError, match=r"llm/embed/embedding is \[128, 64\], not \[64, 64\], llm/head/weight"):
        convert(folder, tmp_path / "back", "released")


def test_a_damaged_params_folder_is_named(converted_folder, tmp_path):
    folder = shutil.copytree(converted_folder, tmp_path / "damaged")
    (folder / "params" / "_METADATA").unlink()
    with pytest.raises(JanusError, match=r"damaged/params is not a complete Orbax checkpoint"):
        convert(folder, tmp_path / "back", "released")


def test_an_existing_target_is_left_alone(released_folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(JanusError, match="there exists"):
        convert(released_folder, tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


def test_a_missing_parent_is_named(released_folder, tmp_path):
    with pytest.raises(JanusError, match="nowhere does not exist"):
        convert(released_folder, tmp_path / "nowhere" / "out")


def test_what_is_converted_is_not_converted_again(converted_folder, tmp_path):
    with pytest.raises(JanusError, match="is converted already"):
        convert(converted_folder, tmp_path / "out")


def test_nothing_is_left_of_a_failed_run(released_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(orbax_params, "_write_file", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        convert(released_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_clears_it(released_folder, tmp_path):
    code = (
        "import sys, time\n"
        "from checkpoints_convert import convert, orbax_params\n"
        "write = orbax_params._write_file\n"
        "def slowly(*a): time.sleep(0.5); write(*a)\n"
        "orbax_params._write_file = slowly\n"
        f"convert({str(released_folder)!r}, {str(tmp_path / 'out')!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.incomplete-*/params*/*/0*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert not (left / "config.json").exists()
    convert(released_folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_summary_counts_parameters_and_bytes(released_folder, tmp_path):
    summary = convert(released_folder, tmp_path / "converted")
    assert summary.parameters == sum(parameter.size for parameter in model_parameters(SMALL))
    assert summary.num_bytes == 2 * summary.parameters


def test_a_part_alone_is_not_exported(tmp_path):
    convert(save(tmp_path / "vq", pseudo(VQ.manifest(model_parameters(SMALL.gen_encoder)))), tmp_path / "converted")
    with pytest.raises(JanusError, match="holds one part of a model"):
        convert(tmp_path / "converted", tmp_path / "back", "released")


@pytest.mark.parametrize(
    "damage",
    [
        lambda params: (params / "llm.head.weight" / "0.0").unlink(),
        lambda params: os.truncate(params / "llm.head.weight" / "0.0", 5),
        lambda params: shutil.rmtree(params / "llm.head.weight"),
        lambda params: (params / "llm.head.weight" / ".zarray").unlink(),
        lambda params: (params / "llm.head.weight" / ".zarray").write_text("["),
        lambda params: (params / "_METADATA").unlink(),
        *(lambda params, text=text: (params / "_METADATA").write_text(text) for text in NO_METADATA),
    ],
    ids=["no chunk", "half a chunk", "no array", "no header", "half a header", "no metadata", *NO_METADATA],
)
def test_a_damaged_converted_folder_is_refused_before_anything_is_read(converted_folder, tmp_path, damage, capfd):
    folder = shutil.copytree(converted_folder, tmp_path / "damaged")
    damage(folder / "params")
    with pytest.raises(JanusError, match="convert the checkpoint again"):
        next(open_checkpoint(folder).params())
    # Of what hangs, Orbax's threads tell when they are collected.
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"part": ["janus"]},
        {"part": "llm", "model": [1]},
        {"part": "llm", "model": {"depth": 1 << 31}},
        {"model": [1]},
        {"model": None},
        {"source": "x"},
        {"source": {"dtypes": {"a": "nonsense"}}},
        {"source": {"dtypes": {"a": [1]}}},
        {"source": {"dtypes": [1]}},
        {"source": {"image_token_id": "x"}},
    ],
    ids=str,
)
def test_a_damaged_converted_config_is_named(converted_folder, tmp_path, change):
    folder = shutil.copytree(converted_folder, tmp_path / "damaged")
    content = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(JanusError, match=r"damaged/config\.json"):
        convert(folder, tmp_path / "back", "released")


@pytest.mark.parametrize("tokens", [[1], {"a": 1}, [{"content": []}], [{"content": "a", "id": None}]], ids=str)
def test_damaged_added_tokens_are_named(converted_folder, tmp_path, tokens):
    folder = shutil.copytree(converted_folder, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    with pytest.raises(JanusError, match=r"tokenizer\.json is damaged"):
        convert(folder, tmp_path / "back", "released")


def test_parameters_are_stored_as_no_other_dtype(released_folder, tmp_path):
    with pytest.raises(JanusError, match="--dtype is 'int8'"):
        convert(released_folder, tmp_path / "out", dtype="int8")


@pytest.mark.parametrize("name", ["x\0y", "x" * 5000], ids=["a NUL", "too long"])
def test_a_target_that_cannot_be_a_path_is_told(released_folder, tmp_path, name):
    with pytest.raises(JanusError, match=r"not a valid folder name|cannot be written"):
        convert(released_folder, tmp_path / name)


def test_a_leftover_of_an_earlier_run_with_our_own_process_number_is_abandoned(released_folder, tmp_path):
    (tmp_path / f".out.incomplete-{platform.node()}-{os.getpid()}").mkdir()
    convert(released_folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
