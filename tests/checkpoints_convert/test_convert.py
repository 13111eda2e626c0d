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

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
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
    change_config,
    pseudo,
    save,
    save_released,
    save_transformers,
)

ROOT = Path(__file__).parents[2]
INVALID_METADATA = ("[]", "null", '{"tree_metadata": []}', '{"tree_metadata": {"a": 1}}', "[[[[")


def assert_same_tensors(left, right):
    left, right = open_tensors(left), open_tensors(right)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].tobytes() == right[name].tobytes(), name


def assert_same_params(left, right, **options):
    pairs = zip(open_checkpoint(left, **options).params(), open_checkpoint(right).params(), strict=True)
    for (*position, array), (*position2, array2) in pairs:
        assert position == position2
        np.testing.assert_array_equal(array, array2, err_msg=str(position))


def mixed_dtypes(name):
    if name.startswith("gen_vision_model"):
        return FLOAT32
    if name.startswith("language_model.model.layers.1.mlp"):
        return FLOAT16
    if "norm" in name or name.endswith("layers.2.self_attn.q_proj.weight"):
        return FLOAT32
    return BFLOAT16


@pytest.mark.parametrize("dtype", [FLOAT32, mixed_dtypes], ids=["float32", "mixed"])
@pytest.mark.parametrize(("make", "layout"), [(save_released, "released"), (save_transformers, "transformers")])
def test_a_round_trip_changes_no_bit(tmp_path, make, layout, dtype):
    source = make(tmp_path / "Janus-Pro", dtype=dtype, shard_bytes=300_000)
    assert len(list(source.glob("*.safetensors"))) > 2
    convert(source, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", layout, shard_bytes=500_000)
    assert (tmp_path / "back" / "model.safetensors.index.json").exists()
    assert_same_tensors(source, tmp_path / "back")


def test_a_round_trip_through_transformers_changes_no_parameter(released_folder, tmp_path):
    convert(released_folder, tmp_path / "transformers", "transformers")
    convert(tmp_path / "transformers", tmp_path / "converted", conversation="janus_pro")
    summary = convert(tmp_path / "converted", tmp_path / "back", "released")
    assert any("zeros" in note for note in summary.notes)
    before, after = open_tensors(released_folder), open_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    unused = released.unused_shapes(SMALL)
    for name in before:
        expected = np.zeros_like(before[name]) if name in unused else before[name]
        np.testing.assert_array_equal(after[name], expected, err_msg=name)


def test_tokenizer_and_processor_files_are_copied(released_folder, tmp_path):
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
def test_own_fields_of_the_processor_are_written_in_every_layout(converted_folder, tmp_path, layout):
    folder = shutil.copytree(converted_folder, tmp_path / "trained")
    change_config(folder, lambda content: content.update(source={}))  # As in a folder that training exports.
    (folder / "processor_config.json").write_text(
        '{"system_prompt": "", "interleaved_features": true, "sft_format": "deepseek"}'
    )
    convert(folder, tmp_path / "exported", layout)
    written = json.loads((tmp_path / "exported" / "processor_config.json").read_text())
    assert written["system_prompt"] == ""
    assert written["interleaved_features"] is True
    assert written["num_image_tokens"] == SMALL.und_encoder.num_patches


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float32"])
def test_parameters_have_the_requested_dtype(released_folder, tmp_path, dtype):
    summary = convert(released_folder, tmp_path / "converted", dtype=dtype)
    stored, itemsize = ("float32", 4) if dtype == "float32" else ("bfloat16", 2)
    assert summary.parameters == sum(parameter.size for parameter in model_parameters(SMALL))
    assert summary.num_bytes == itemsize * summary.parameters
    content = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert (content["format"], content["dtype"], content["source"]["layout"]) == ("janus_jax", stored, "released")
    checkpoint = open_checkpoint(tmp_path / "converted")
    assert {array.dtype.name for *_, array in checkpoint.params()} == {stored}
    assert checkpoint.config == replace(SMALL, name=released_folder.name)


def abstract_tree(axis_names, shape, dtype):
    mesh = jax.make_mesh(shape, axis_names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))

    def leaf(shape):
        axes = [None] * len(shape)
        for axis in range(len(shape)):
            if shape[axis] % mesh.size == 0:
                axes[axis] = mesh.axis_names
                break
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    return unflatten_dict({parameter.keys: leaf(parameter.full_shape) for parameter in model_parameters(SMALL)})


def assert_holds(tree, folder):
    stacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for keys, _, array in open_checkpoint(folder).params():
        stacks.setdefault(keys, []).append(array)
    found = flatten_dict(tree)
    for keys, arrays in stacks.items():
        expected = arrays[0] if len(arrays) == 1 else np.stack(arrays)
        np.testing.assert_array_equal(np.asarray(found[keys]), expected, err_msg=str(keys))


@pytest.mark.parametrize(("axes", "shape"), [(("data",), (1,)), (("fsdp", "tensor"), (2, 4))])
def test_orbax_restores_the_parameters_onto_a_mesh(released_folder, converted_folder, axes, shape):
    target = abstract_tree(axes, shape, jax.numpy.bfloat16)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(converted_folder / "params", target)
        assert_holds(checkpointer.restore(converted_folder / "params"), released_folder)
    assert_holds(restored, released_folder)
    assert jax.tree.all(jax.tree.map(lambda array, to: array.sharding == to.sharding, restored, target))


def test_a_checkpoint_manager_restores_the_parameters(converted_folder, tmp_path):
    shutil.copytree(converted_folder / "params", tmp_path / "0" / "params")
    target = abstract_tree(("data",), (8,), jax.numpy.float32)
    with ocp.CheckpointManager(tmp_path, item_names=("params",)) as manager:
        restored = manager.restore(0, args=ocp.args.Composite(params=ocp.args.StandardRestore(target)))
    assert restored["params"]["llm"]["head"]["weight"].dtype == np.float32


@pytest.mark.parametrize("rows", [7, 1 << 30])
def test_chunks_of_any_size_hold_the_same_values(released_folder, tmp_path, monkeypatch, rows):
    # With 7 rows per chunk, the last chunk of most parameters is larger than the rest of the array.
    def chunk_shape(self):
        shape = self.parameter.shape
        return (*([] if self.parameter.layers is None else [1]), min(rows, shape[0]), *shape[1:])

    monkeypatch.setattr(orbax_params.DeferredParameter, "chunk_shape", property(chunk_shape))
    convert(released_folder, tmp_path / "converted")
    assert_same_params(released_folder, tmp_path / "converted")


def test_tensorstore_writes_chunks_of_another_format(released_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_params, "_chunks_are_raw", lambda *_: False)
    convert(released_folder, tmp_path / "converted")
    assert_same_params(released_folder, tmp_path / "converted")


def test_chunks_are_at_most_64_mib_and_one_layer():
    for parameter in model_parameters(PRESETS["janus_pro_7b"]):
        shape = orbax_params.DeferredParameter(parameter, BFLOAT16, lambda _: np.zeros(0)).chunk_shape
        assert np.prod(shape) * 2 <= 64 << 20
        assert parameter.layers is None or shape[0] == 1


def test_parameters_saved_by_orbax_are_converted(released_folder, converted_folder, tmp_path):
    (tmp_path / "trained").mkdir()
    shutil.copy(converted_folder / "config.json", tmp_path / "trained")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "trained" / "params", checkpointer.restore(converted_folder / "params"))
    convert(tmp_path / "trained", tmp_path / "back", "released")
    before, after = open_tensors(released_folder), open_tensors(tmp_path / "back")
    for name in before.keys() - released.unused_shapes(SMALL).keys():
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_saved_parameters_are_converted(converted_folder, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(converted_folder / "params", abstract_tree(("data",), (1,), np.float32))
    save_checkpoint(tmp_path / "trained", params, SMALL)
    assert open_checkpoint(tmp_path / "trained").config == SMALL
    assert_same_params(converted_folder, tmp_path / "trained")
    summary = convert(tmp_path / "trained", tmp_path / "back", "released")
    assert any("14 tensors" in note and "zeros" in note for note in summary.notes)
    del params["gen_embed"]
    with pytest.raises(JanusError, match="gen_embed/embedding is missing"):
        save_checkpoint(tmp_path / "other", params, SMALL)


def test_parameters_of_another_model_are_refused_with_all_mismatches(converted_folder, tmp_path):
    folder = shutil.copytree(converted_folder, tmp_path / "other")
    change_config(folder, lambda content: content["model"]["llm"].update(vocab_size=64))
    with pytest.raises(JanusError, match=r"llm/embed/embedding is \[128, 64\], not \[64, 64\], llm/head/weight"):
        convert(folder, tmp_path / "back", "released")


def test_an_existing_target_is_refused(released_folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(JanusError, match="there exists"):
        convert(released_folder, tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/out", "nowhere does not exist"),
        ("x\0y", "is not a valid folder name"),
        ("x" * 5000, "cannot be written"),
    ],
    ids=["missing parent", "NUL", "too long"],
)
def test_an_invalid_target_is_named(released_folder, tmp_path, name, message):
    with pytest.raises(JanusError, match=message):
        convert(released_folder, tmp_path / name)


def test_a_converted_folder_is_not_converted_again(converted_folder, tmp_path):
    with pytest.raises(JanusError, match="is converted already"):
        convert(converted_folder, tmp_path / "out")


def test_a_part_is_converted_only_to_orbax(tmp_path):
    convert(save(tmp_path / "vq", pseudo(VQ.manifest(model_parameters(SMALL.gen_encoder)))), tmp_path / "converted")
    with pytest.raises(JanusError, match="holds one part of a model"):
        convert(tmp_path / "converted", tmp_path / "back", "released")


@pytest.mark.parametrize("option", [{"dtype": "int8"}, {"layout": "other"}], ids=str)
def test_an_invalid_option_is_named(released_folder, tmp_path, option):
    ((name, value),) = option.items()
    with pytest.raises(JanusError, match=f"--{name} is '{value}'"):
        convert(released_folder, tmp_path / "out", **option)


def test_a_failed_conversion_leaves_no_files(released_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(orbax_params, "_write_file", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        convert(released_folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_killed_conversion_leaves_no_checkpoint_and_the_next_removes_its_files(released_folder, tmp_path):
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
    # A folder left by an earlier process with the same id, which is common in containers.
    (tmp_path / f".out.incomplete-{platform.node()}-{os.getpid()}").mkdir()
    convert(released_folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda params: (params / "llm.head.weight" / "0.0").unlink(),
        lambda params: os.truncate(params / "llm.head.weight" / "0.0", 5),
        lambda params: shutil.rmtree(params / "llm.head.weight"),
        lambda params: (params / "llm.head.weight" / ".zarray").unlink(),
        lambda params: (params / "llm.head.weight" / ".zarray").write_text("["),
        lambda params: (params / "_METADATA").unlink(),
        *(lambda params, text=text: (params / "_METADATA").write_text(text) for text in INVALID_METADATA),
    ],
    ids=["no chunk", "half a chunk", "no array", "no header", "half a header", "no metadata", *INVALID_METADATA],
)
def test_a_damaged_converted_folder_is_refused_before_reading(converted_folder, tmp_path, damage, capfd):
    folder = shutil.copytree(converted_folder, tmp_path / "damaged")
    damage(folder / "params")
    with pytest.raises(JanusError, match=r"damaged/params.*convert the checkpoint again"):
        next(open_checkpoint(folder).params())
    # If threads of Orbax hang, they print tracebacks when they are garbage-collected.
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
    change_config(folder, lambda content: content.update(change))
    with pytest.raises(JanusError, match=r"damaged/config\.json"):
        convert(folder, tmp_path / "back", "released")


@pytest.mark.parametrize("tokens", [[1], {"a": 1}, [{"content": []}], [{"content": "a", "id": None}]], ids=str)
def test_damaged_added_tokens_are_named(converted_folder, tmp_path, tokens):
    folder = shutil.copytree(converted_folder, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    with pytest.raises(JanusError, match=r"tokenizer\.json is damaged"):
        convert(folder, tmp_path / "back", "released")
