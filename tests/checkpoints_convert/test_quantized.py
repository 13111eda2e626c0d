"""Folders with weights of 8 bits: writing, reading, and refusals."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoints_convert import convert, open_checkpoint
from checkpoints_convert.adapter import LowRank, write_adapter
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.models.layers import quantize
from janus_jax.pretrained import load_params
from tests.checkpoints_convert.checkpoints import BFLOAT16, change_config, save, save_flow, save_transformers

QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"
SIGLIP = "vision_model.vision_tower.blocks.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def int8_folder(released_folder):
    target = released_folder.parent / "int8"
    convert(released_folder, target, quantization="int8")
    return target


def changed(folder, tmp_path, change):
    """Returns a copy of a folder in which a function has changed the tensors."""
    tensors = {name: np.array(tensor) for name, tensor in open_tensors(folder).items()}
    change(tensors)
    copy = save(tmp_path / "changed", tensors)
    shutil.copy(folder / "config.json", copy)
    return copy


def params_of(checkpoint, quantization):
    execution = Execution(layers="unrolled", quantization=quantization)
    return load_params(checkpoint.params("float32"), checkpoint.config, execution, None)


@pytest.mark.parametrize(("quantization", "dtype"), [("int8", np.int8), ("fp8", ml_dtypes.float8_e4m3fn)])
def test_a_folder_stores_each_matrix_in_8_bits_with_a_scale_per_output(released_folder, tmp_path, quantization, dtype):
    convert(released_folder, tmp_path / "small", quantization=quantization)
    before, after = open_tensors(released_folder), open_tensors(tmp_path / "small")
    for name in (QUERY, SIGLIP, "language_model.lm_head.weight"):
        values, scale = quantize(before[name], 1, dtype)
        np.testing.assert_array_equal(after[name], values)
        np.testing.assert_array_equal(after[f"{name}_scale"], scale)
        assert (after[name].dtype, after[f"{name}_scale"].dtype) == (dtype, np.float32)
    exact = [name for name in before if f"{name}_scale" not in after]
    assert {"gen_head.vision_head.weight", "language_model.model.embed_tokens.weight"} <= set(exact)
    assert all(after[name].tobytes() == before[name].tobytes() for name in exact)
    assert (
        json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["weights"] == quantization
    )


def test_other_programs_read_the_file(int8_folder):
    assert load_file(int8_folder / "model.safetensors")[QUERY].dtype == np.int8


@pytest.mark.parametrize(("make", "layout"), [(None, None), (save_transformers, "transformers"), (save_flow, None)])
def test_a_loaded_folder_equals_a_model_that_is_quantized_while_it_is_loaded(released_folder, tmp_path, make, layout):
    source = released_folder if make is None else make(tmp_path / "Janus-Pro")
    convert(source, tmp_path / "small", layout, quantization="int8", shard_bytes=100_000)
    stored = open_checkpoint(tmp_path / "small")
    assert (stored.quantization, stored.sampling_quantization("none")) == ("int8", "int8")
    loaded, expected = params_of(stored, "int8"), params_of(open_checkpoint(source), "int8")
    assert loaded.keys() == expected.keys()
    assert loaded["llm"]["layers_1"]["attn"]["qkv"]["weight"].dtype == np.int8
    import jax

    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_the_host_reads_the_stored_values_themselves(int8_folder):
    stored = open_checkpoint(int8_folder)
    arrays = {(keys, layer): array for keys, layer, array in stored.params("bfloat16")}
    weight = arrays[("llm", "layers", "mlp", "up", "weight"), 0]
    assert weight.dtype == np.int8
    assert not weight.flags.owndata
    assert arrays[("llm", "layers", "mlp", "up", "weight_scale"), 0].dtype == np.float32
    assert arrays[("llm", "embed", "embedding"), None].dtype == BFLOAT16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}_scale"), f"1 missing: {QUERY}_scale"),
        (lambda t: t.update({QUERY: t[QUERY].astype(np.float32)}), f"1 of another dtype: {QUERY} is float32, not int8"),
        (
            lambda t: t.update({f"{QUERY}_scale": t[f"{QUERY}_scale"].astype(BFLOAT16)}),
            f"1 of another dtype: {QUERY}_scale is bfloat16, not float32",
        ),
        (lambda t: t.update({f"{QUERY}_scale": t[f"{QUERY}_scale"][:5]}), f"1 misshapen: {QUERY}_scale is [5], not"),
    ],
)
def test_missing_or_wrong_scales_are_reported_before_values_are_read(int8_folder, tmp_path, change, message):
    with pytest.raises(JanusError) as error:
        open_checkpoint(changed(int8_folder, tmp_path, change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "surplus: "),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quant_method is 'bitsandbytes'"),
        ({"quant_method": "janus_jax", "weights": "int4"}, "weights is 'int4'; it must be one of int8, fp8."),
        ({"quant_method": "janus_jax", "weights": "fp8"}, "is int8, not float8_e4m3fn"),
        ("int8", "it must be an object"),
    ],
)
def test_a_config_that_names_another_format_is_refused(int8_folder, tmp_path, entry, message):
    copy = shutil.copytree(int8_folder, tmp_path / "copy")
    change_config(copy, lambda json: json.update(quantization_config=entry))
    with pytest.raises(JanusError, match=message):
        open_checkpoint(copy)


def test_values_of_8_bits_without_scales_are_refused(released_folder, tmp_path):
    copy = changed(released_folder, tmp_path, lambda t: t.update({QUERY: t[QUERY].astype(ml_dtypes.float8_e4m3fn)}))
    with pytest.raises(JanusError, match=f"1 not floating-point of 16 bits or more: {QUERY} is float8_e4m3fn"):
        open_checkpoint(copy)


@pytest.mark.parametrize("options", [{}, {"layout": "released"}, {"quantization": "int8"}, {"quantization": "fp8"}])
def test_a_folder_with_8_bits_is_not_converted_again(int8_folder, tmp_path, options):
    with pytest.raises(
        JanusError, match=r"has weights of 8 bits \(int8\), which are for sampling only; conversion needs"
    ):
        convert(int8_folder, tmp_path / "again", **options)
    assert not (tmp_path / "again").exists()


def test_an_adapter_is_not_merged_into_8_bits(int8_folder, tmp_path):
    change = LowRank(np.ones((1, 64), np.float32), np.ones((64, 1), np.float32), 1.0)
    write_adapter(tmp_path, {("llm/layers/attn/q/weight", 0): change}, str(int8_folder), "released")
    with pytest.raises(JanusError, match="merging an adapter needs the checkpoint that they were made from"):
        open_checkpoint(tmp_path)


def test_requests_that_do_not_fit_are_refused(released_folder, int8_folder, tmp_path):
    stored = open_checkpoint(int8_folder)
    assert stored.sampling_quantization("int8_dynamic") == "int8_dynamic"
    with pytest.raises(JanusError, match="in the format int8, and quantization is 'fp8'"):
        stored.sampling_quantization("fp8")
    with pytest.raises(JanusError, match="not stored in the layout orbax"):
        convert(released_folder, tmp_path / "out", "orbax", quantization="int8")
    with pytest.raises(JanusError, match="--quantization is 'int8_dynamic'; it must be one of none, int8, fp8"):
        convert(released_folder, tmp_path / "out", quantization="int8_dynamic")
