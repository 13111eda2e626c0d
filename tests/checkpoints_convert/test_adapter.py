"""LoRA adapters in peft's layout. `tests/parity/test_peft.py` compares with peft itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from checkpoints_convert import convert, open_checkpoint
from checkpoints_convert.adapter import LLM_PREFIXES, open_adapter, write_adapter
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import FLOAT32, SMALL, save, save_released

USER_CONFIG = Path(__file__).parent / "data" / "adapter_config.json"
"""As peft 0.21 wrote it for an adapter of transformers' Janus."""
LLM = SMALL.llm


def save_adapter(folder, prefix=LLM_PREFIXES["released"], layers=(0, 2), rank=4, **fields):
    """Writes an adapter of the value and down projections with random values, and returns its factors by module."""
    rng = np.random.default_rng(0)
    widths = {"self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64), "mlp.down_proj": (64, 160)}
    factors = {
        f"{prefix}layers.{layer}.{name}": (
            rng.standard_normal((rank, inputs), np.float32),
            rng.standard_normal((outputs, rank), np.float32),
        )
        for layer in layers
        for name, (outputs, inputs) in widths.items()
    }
    tensors = {
        f"base_model.model.{module}.lora_{kind}.weight": array
        for module, pair in factors.items()
        for kind, array in zip("AB", pair, strict=True)
    }
    save(folder, tensors)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = json.loads(USER_CONFIG.read_text())
    config |= {"modules_to_save": None, "base_model_name_or_path": "", "r": rank, "lora_alpha": 8} | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return factors


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_released(tmp_path_factory.mktemp("base") / "Janus-Pro-small", dtype=FLOAT32)


def matrices(checkpoint, layer):
    """Returns the adapted matrices of a layer as (outputs, inputs)."""
    found = {keys[-2]: array for keys, at, array in checkpoint.params(parts=("llm",)) if at == layer}
    return {
        "self_attn.v_proj": found["v"].reshape(32, 64),
        "self_attn.o_proj": found["out"].reshape(64, 64),
        "mlp.down_proj": found["down"],
    }


@pytest.mark.parametrize("prefix", [*LLM_PREFIXES.values(), "model.", ""])
def test_an_adapter_is_merged(base, tmp_path, prefix):
    factors = save_adapter(tmp_path / "adapter", prefix)
    plain, adapted = open_checkpoint(base), open_checkpoint(base, adapter=tmp_path / "adapter")
    for layer in range(LLM.depth):
        before, after = matrices(plain, layer), matrices(adapted, layer)
        for name, weight in before.items():
            a, b = factors.get(f"{prefix}layers.{layer}.{name}", (np.zeros((1, 1)), np.zeros((1, 1))))
            np.testing.assert_allclose(after[name], weight + 8 / 4 * (b @ a), rtol=1e-5, atol=1e-5)


def test_ranks_scales_and_rslora(tmp_path):
    patterns = {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {r"layers\.2.*down_proj": 32, "mlp.down_proj": 16}}
    save_adapter(tmp_path / "plain", r=4, **patterns)
    scales = {(path.split("/")[-2], layer): one.scale for (path, layer), one in read(tmp_path / "plain").items()}
    assert scales == {("v", 0): 2, ("v", 2): 2, ("out", 0): 2, ("out", 2): 2, ("down", 0): 4, ("down", 2): 8}
    save_adapter(tmp_path / "rslora", use_rslora=True)
    assert {one.scale for one in read(tmp_path / "rslora").values()} == {4}


def read(folder):
    return open_adapter(folder).matrices


def test_stacked_adapters_change_a_model_as_merged_ones(base, tmp_path):
    save_adapter(tmp_path / "adapter")
    adapted = open_checkpoint(base, adapter=tmp_path / "adapter")
    stacked = adapted.adapter.stacked(adapted.parameters)
    v = {keys[-1]: array for keys, array in stacked.items() if keys[-2] == "v"}
    assert v["lora_a"].shape == (3, 4, 64)
    assert v["lora_b"].shape == (3, 2, 16, 4)
    change = np.einsum("l,lhkr,lrd->lhkd", v["lora_scale"], v["lora_b"], v["lora_a"])
    for layer in range(LLM.depth):
        expected = (
            matrices(adapted, layer)["self_attn.v_proj"] - matrices(open_checkpoint(base), layer)["self_attn.v_proj"]
        )
        np.testing.assert_allclose(change[layer].reshape(32, 64), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["released", "transformers"])
def test_written_adapters_are_read(tmp_path, layout):
    save_adapter(tmp_path / "adapter", layers=range(3))
    (tmp_path / "mine").mkdir()
    write_adapter(tmp_path / "mine", read(tmp_path / "adapter"), "me/base@v1", layout)
    assert open_adapter(tmp_path / "mine").base == "me/base@v1"
    for key, change in read(tmp_path / "mine").items():
        for found, expected in zip(change, read(tmp_path / "adapter")[key], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_an_adapter_alone_opens_its_base_and_converts(base, tmp_path):
    save_adapter(tmp_path / "adapter", base_model_name_or_path=str(base))
    merged = open_checkpoint(base, adapter=tmp_path / "adapter")
    convert(tmp_path / "adapter", tmp_path / "merged", "released")
    converted = open_checkpoint(tmp_path / "merged")
    assert converted.adapter is None
    for name, weight in matrices(merged, 0).items():
        np.testing.assert_array_equal(matrices(converted, 0)[name], weight)
    save_adapter(tmp_path / "nameless")
    with pytest.raises(JanusError, match="names no base model; give that model, and the adapter with --adapter"):
        open_checkpoint(tmp_path / "nameless")


def change_config(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora is True, which janus_jax does not support; merge the adapter into its base"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which janus_jax does not support"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"layers_to_transform": [1]}, r"layers_to_transform is \[1\]"),
        ({"some_later_field": 3}, "some_later_field is 3"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights is 'pissa_niter_4', which changes the base model's",
        ),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; janus_jax supports only 'LORA'"),
        ({"r": 8}, r"A and B of shapes \[4, 64\] and \[32, 4\], but adapter_config.json has rank 8"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, fields, words):
    save_adapter(tmp_path / "adapter", layers=(0,))
    change_config(tmp_path / "adapter", **fields)
    with pytest.raises(JanusError, match=words):
        open_adapter(tmp_path / "adapter")


def test_a_config_that_peft_wrote_is_refused_for_the_head_it_saves(tmp_path):
    save_adapter(tmp_path / "adapter", layers=(0,))
    shutil.copy(USER_CONFIG, tmp_path / "adapter" / "adapter_config.json")
    with pytest.raises(JanusError, match=r"modules_to_save is \['lm_head'\]"):
        open_adapter(tmp_path / "adapter")


def test_adapters_of_other_modules_and_models_are_refused(base, tmp_path):
    save_adapter(tmp_path / "vision", "model.vision_model.encoder.")
    with pytest.raises(
        JanusError, match=r"holds base_model\.model\.model\.vision_model\.encoder\..*only LoRA of the LLM's"
    ):
        open_adapter(tmp_path / "vision")
    save_adapter(tmp_path / "deeper", layers=(7,))
    with pytest.raises(JanusError, match="adapts layer 7, which the base model does not have"):
        open_checkpoint(base, adapter=tmp_path / "deeper")


@pytest.mark.slow
def test_a_loaded_model_computes_the_same_with_a_merged_and_a_separate_adapter(tmp_path):
    import janus_jax
    from janus_jax.config import preset
    from tests.pseudo import CORPUS, make_checkpoint

    config = preset("tiny")
    make_checkpoint(tmp_path / "model", config, CORPUS)
    rng, llm = np.random.default_rng(0), config.llm
    a = rng.standard_normal((2, llm.width), np.float32)
    b = rng.standard_normal((llm.num_heads * llm.head_dim, 2), np.float32)
    name = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save(tmp_path / "adapter", {name.format("A"): a, name.format("B"): b})
    (tmp_path / "adapter" / "model.safetensors").rename(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    models = {
        "plain": janus_jax.load(tmp_path / "model", "float32"),
        "merged": janus_jax.load(tmp_path / "model", "float32", adapter=tmp_path / "adapter"),
        "separate": janus_jax.load(tmp_path / "model", "float32", adapter=tmp_path / "adapter", merge_adapter=False),
    }
    assert ("llm", "layers", "attn", "q", "lora_a") in flatten_dict(models["separate"].params)
    batch = models["plain"].processor.left_pad([models["plain"].processor.text_sequence("A boat.")])
    logits = {
        kind: np.asarray(
            one.model.apply({"params": one.params}, batch, method=lambda model, batch: model.text_logits(model(batch)))
        )
        for kind, one in models.items()
    }
    np.testing.assert_allclose(logits["separate"], logits["merged"], rtol=1e-4, atol=1e-4)
    assert np.abs(logits["plain"] - logits["merged"]).max() > 0.01
