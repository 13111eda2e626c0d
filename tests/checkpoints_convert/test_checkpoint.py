import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import convert, open_checkpoint, released, released_flow, transformers_janus
from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.config import PRESETS, JanusFlowConfig
from janus_jax.errors import JanusError
from janus_jax.processing import Processor, make_byte_level_tokenizer
from tests.checkpoints_convert.checkpoints import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    SMALL,
    SMALL_FLOW,
    change_config,
    pseudo,
    save,
    save_released,
    save_transformers,
)
from tests.golden.pseudo_weights import tensor

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("config", [*PRESETS.values(), SMALL, SMALL_FLOW], ids=lambda config: config.name)
def test_a_released_config_json_describes_the_model(config):
    layout = released
    if isinstance(config, JanusFlowConfig):
        layout, config = released_flow, replace(config, vae=None)
    written = JsonObject(json.loads(json.dumps(layout.config_to_json(config, "bfloat16"))), "config.json")
    found = layout.config_from_json(written, layout.manifest(config))
    assert replace(found, name=config.name, conversation=config.conversation) == config


@pytest.mark.parametrize("name", ["janus_1.3b", "janus_pro_7b"])
def test_a_transformers_config_json_describes_the_model(name):
    config = PRESETS[name]
    written = json.loads(json.dumps(transformers_janus.config_to_json(config, "bfloat16", 7)))
    found = transformers_janus.config_from_json(JsonObject(written, "config.json"), {})
    assert replace(found, name=config.name, conversation=config.conversation) == config


def test_transformers_rejects_models_that_it_cannot_run():
    with pytest.raises(JanusError, match=r"8 groups, not 32; a target image has 64 tokens"):
        transformers_janus.config_to_json(PRESETS["tiny"], "bfloat16", 7)


def test_layout_and_config_are_detected(released_folder, converted_folder, tmp_path):
    folders = {
        "released": released_folder,
        "transformers": save_transformers(tmp_path / "Janus-Pro-small"),
        "orbax": converted_folder,
    }
    for layout, folder in folders.items():
        checkpoint = open_checkpoint(folder)
        assert (checkpoint.layout, checkpoint.config) == (layout, replace(SMALL, name="Janus-Pro-small"))


def test_parameters_have_the_shapes_and_axes_of_the_networks(released_folder):
    found = {(keys, layer): array for keys, layer, array in open_checkpoint(released_folder).params()}
    assert found.keys() == {(one.keys, layer) for one in model_parameters(SMALL) for layer in one.layer_indices}
    name = "language_model.model.layers.1.self_attn.k_proj.weight"
    key = found[("llm", "layers", "attn", "k", "weight"), 1]
    np.testing.assert_array_equal(key.reshape(32, 64), tensor(name, (32, 64)).astype(BFLOAT16))
    name = "gen_vision_model.encoder.conv_blocks.0.downsample.conv.weight"
    kernel = found[("gen_encoder", "encoder", "down_0", "downsample", "kernel"), None]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensor(name, (32, 32, 3, 3)).astype(BFLOAT16))
    name = "vision_model.vision_tower.blocks.1.attn.qkv.weight"
    qkv = found[("und_encoder", "blocks", "attn", "qkv", "weight"), 1]
    np.testing.assert_array_equal(qkv[2, 1], tensor(name, (192, 64)).astype(BFLOAT16)[160:])
    for keys in (("llm", "layers", "mlp", "up", "weight"), ("llm", "layers", "attn", "out", "weight")):
        assert not found[keys, 0].flags.owndata  # It is a view of the file.
        assert not found[keys, 0].flags.writeable


@pytest.mark.parametrize("kinds", [(BFLOAT16, FLOAT32), (BFLOAT16, FLOAT16)])
def test_a_stack_has_a_dtype_that_holds_all_layers(tmp_path, kinds):
    def dtype(name):
        return kinds[name.startswith("language_model.model.layers.1.mlp.up")]

    dtypes = open_checkpoint(save_released(tmp_path / "Janus-Pro", dtype=dtype)).dtypes()
    assert dtypes["llm/layers/mlp/up/weight"] == FLOAT32
    assert dtypes["llm/layers/mlp/down/weight"] == kinds[0]


def test_select_layer_sets_the_depth_of_the_encoder(tmp_path):
    folder = save_released(tmp_path / "Janus-Pro")
    params = json.loads((folder / "config.json").read_text())["vision_config"]["params"]
    assert params["select_layer"] == -23
    assert open_checkpoint(folder).config.und_encoder.depth == 2
    change_config(folder, lambda content: content["vision_config"]["params"].update(select_layer=-22))
    with pytest.raises(JanusError, match=r"12 missing: vision_model\.vision_tower\.blocks\.2"):
        open_checkpoint(folder)


def test_one_message_lists_all_mismatches_with_the_nearest_names(tmp_path):
    tensors = pseudo(released.manifest(SMALL))
    tensors["language_model.model.norms.weight"] = tensors.pop("language_model.model.norm.weight")
    tensors["gen_embed.weight"] = tensors["gen_embed.weight"][:, :7]
    tensors["aligner.layers.0.bias"] = np.zeros(64, np.int8)
    folder = save(tmp_path / "Janus-Pro", tensors, released.config_to_json(SMALL, "bfloat16"))
    with pytest.raises(JanusError) as raised:
        open_checkpoint(folder)
    message = str(raised.value)
    assert "1 missing: language_model.model.norm.weight (nearest: language_model.model.norms.weight)" in message
    assert "1 surplus: language_model.model.norms.weight (nearest: language_model.model.norm.weight)" in message
    assert "1 misshapen: gen_embed.weight is [96, 7], not [96, 8]" in message
    assert "1 not floating-point of 16 bits or more: aligner.layers.0.bias is int8" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["aligner_config"]["params"].update(projector_type="linear"), "projector_type is 'linear'"),
        (lambda c: c["gen_vision_config"].update(cls="VQ-8"), "cls is 'VQ-8'"),
        (lambda c: c["vision_config"]["params"].update(model_name="siglip_so400m_patch14_384"), "model_name"),
        (lambda c: c["vision_config"]["params"].update(heads="two"), "heads is 'two'"),
        (lambda c: c["language_config"].update(num_attention_heads=0), "must be positive"),
        (lambda c: c["language_config"].update(attention_bias=True), "attention_bias is True"),
        (lambda c: c["language_config"].update(rope_scaling={"type": "linear", "factor": 2}), "rotary"),
        (lambda c: c.update(language_config=3), "language_config is 3"),
        (
            lambda c: c.pop("language_config"),
            r"language_config is missing \(its fields are .*vision_config",
        ),
        (lambda c: c.update(language_config=None), "config.json: language_config is missing"),
        (lambda c: c.update(model_type="flamingo"), "model_type 'flamingo'"),
        (lambda c: c["language_config"].update(num_hidden_layers=1 << 31), "config.json: LlamaConfig.depth"),
        (lambda c: c["language_config"].update(num_hidden_layers=10**30), "config.json: LlamaConfig.depth"),
        (lambda c: c["vision_config"]["params"].update(layers=1 << 31), "config.json: SiglipConfig.depth"),
        (lambda c: c["gen_vision_config"]["params"].update(num_res_blocks=1 << 31), "config.json: VQConfig.num_res"),
        (lambda c: c["gen_vision_config"]["params"].update(ch_mult=[]), "config.json: VQConfig.channel_mult"),
        (lambda c: c["gen_vision_config"]["params"].update(ch_mult=["a"]), "config.json: VQConfig.channel_mult"),
        (lambda c: c["gen_vision_config"]["params"].update(ch_mult=[None]), "config.json: VQConfig.channel_mult"),
        (lambda c: c["vision_config"]["params"].update(mlp_ratio=float("nan")), "config.json is damaged"),
        (lambda c: c["vision_config"]["params"].update(mlp_ratio=float("inf")), "config.json is damaged"),
        (lambda c: c.update(model_type=["multi_modality"]), "config.json has model_type \\["),
    ],
)
def test_a_config_of_another_network_is_refused_by_field(tmp_path, change, message):
    folder = save_released(tmp_path / "Janus-Pro")
    change_config(folder, change)
    with pytest.raises(JanusError, match=message):
        open_checkpoint(folder)


def test_a_missing_text_config_is_named(tmp_path):
    folder = save_transformers(tmp_path / "Janus-Pro")
    change_config(folder, lambda content: content.pop("text_config"))
    with pytest.raises(JanusError, match=r"config\.json: text_config is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("shape", [(), (0,), (64, 1)], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "vision_model.vision_tower.patch_embed.proj.bias",
        "vision_model.vision_tower.blocks.0.mlp.fc1.bias",
        "vision_model.vision_tower.pos_embed",
        "gen_vision_model.encoder.conv_in.bias",
        "gen_vision_model.encoder.conv_blocks.0.res.0.conv1.bias",
        "gen_vision_model.quantize.embedding.weight",
        "gen_head.output_mlp_projector.bias",
    ],
)
def test_a_misshapen_tensor_is_named_when_sizes_are_inferred(name, shape):
    written = JsonObject(released.config_to_json(SMALL, "bfloat16"), "config.json")
    shapes = released.manifest(SMALL)
    if len(shape) == len(shapes[name]):
        shape = tuple(0 for _ in shape)
    with pytest.raises(JanusError, match=name):
        released.config_from_json(written, shapes | {name: shape})


def without_config(folder):
    (folder / "config.json").unlink()


def config_is_a_folder(folder):
    without_config(folder)
    (folder / "config.json").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_config, r"config\.json does not exist"),
        (config_is_a_folder, r"config\.json cannot be read \(Is a directory\)"),
        (
            lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff\xfe"),
            r"chat_template\.jinja is not UTF-8",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    folder = save_transformers(tmp_path / "Janus-Pro-1B")
    damage(folder)
    with pytest.raises(JanusError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("path", ["x" * 5000, "x\0y"], ids=["too long", "NUL"])
def test_an_invalid_path_is_refused(path):
    with pytest.raises(JanusError, match=r"does not exist|File name too long"):
        open_checkpoint(path)


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(JanusError, match="has no known layout"):
        open_checkpoint(save(tmp_path / "other", {"conv1.weight": np.zeros(3, FLOAT32)}))


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("Janus-Pro-1B", "janus_pro"),
        ("models--deepseek-ai--Janus-Pro-7B/snapshots/0a1b", "janus_pro"),
        ("janus_pro_mine", "janus_pro"),
        ("Janus-1.3B", "janus"),
        ("models--deepseek-ai--Janus-1.3B/snapshots/0a1b", "janus"),
        ("pro/Janus-1.3B", "janus"),
        ("Janus-1.3B/janus_pro_mine", "janus_pro"),
    ],
)
def test_the_conversation_is_detected_from_the_folder_name(tmp_path, name, style):
    folder = save_released(tmp_path / name)
    change_config(folder, lambda content: content.pop("conversation"))
    assert open_checkpoint(folder).config.conversation == style


@pytest.mark.parametrize("name", ["process", "improved-janus", "mine"])
def test_the_conversation_defaults_to_janus_pro_with_a_warning(tmp_path, name, caplog):
    folder = save_released(tmp_path / name)
    change_config(folder, lambda content: content.pop("conversation"))
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(folder).config.conversation == "janus_pro"
    assert "--conversation janus" in caplog.text


@pytest.mark.parametrize(("role", "style"), [("<|User|>", "janus_pro"), ("User", "janus")])
def test_the_chat_template_overrides_the_folder_name(tmp_path, role, style):
    folder = save_transformers(tmp_path / ("Janus-1.3B" if style == "janus_pro" else "Janus-Pro-1B"))
    (folder / "chat_template.jinja").write_text(f"{{{{ '{role}: ' }}}}")
    assert open_checkpoint(folder).config.conversation == style


def test_the_config_and_the_option_override_the_folder_name(tmp_path):
    folder = save_released(tmp_path / "Janus-Pro-1B", replace(SMALL, conversation="janus"))
    assert open_checkpoint(folder).config.conversation == "janus"
    assert open_checkpoint(folder, "janus_pro").config.conversation == "janus_pro"


def test_a_preset_is_recognized(tmp_path):
    assert open_checkpoint(save_released(tmp_path / "any", PRESETS["tiny"])).config.name == "tiny"


def test_only_tied_embeddings_replace_an_absent_head(tmp_path):
    folder = save_transformers(tmp_path / "whole")
    tensors = dict(open_checkpoint(folder).tensors)
    del tensors["lm_head.weight"]
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(JanusError, match=r"1 missing: lm_head\.weight"):
        open_checkpoint(save(tmp_path / "untied", tensors, config))
    del config["tie_word_embeddings"]
    tied = open_checkpoint(save(tmp_path / "tied", tensors, config))
    found = {keys: array for keys, _, array in tied.params(parts=("llm",))}
    np.testing.assert_array_equal(found["llm", "head", "weight"], found["llm", "embed", "embedding"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_are_removed(tmp_path, released_folder, prefix):
    plain = open_checkpoint(released_folder)
    config = json.loads((released_folder / "config.json").read_text())
    wrapped = {prefix + name: tensor for name, tensor in plain.tensors.items()}
    opened = open_checkpoint(save(tmp_path / "wrapped", wrapped, config))
    assert opened.tensors.keys() == plain.tensors.keys()
    # One name without the prefix: none is changed, and the message has the names of the file.
    wrapped["gen_embed.weight"] = wrapped.pop(f"{prefix}gen_embed.weight")
    with pytest.raises(JanusError, match=rf"surplus: .*{prefix.replace('.', '[.]')}"):
        open_checkpoint(save(tmp_path / "mixed", wrapped, config))


@pytest.mark.parametrize("layout", ["released", "transformers"])
def test_tied_embeddings_are_read_and_written(tmp_path, layout):
    folder = (save_released if layout == "released" else save_transformers)(tmp_path / "Janus-Pro-1B")
    head, part = (
        ("language_model.lm_head.weight", "language_config")
        if layout == "released"
        else ("lm_head.weight", "text_config")
    )
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    config[part]["tie_word_embeddings"] = True
    tensors = dict(open_checkpoint(folder).tensors)
    del tensors[head]
    tied = save(tmp_path / "tied", tensors, config)
    convert(tied, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", layout)
    found = open_tensors(tmp_path / "back")
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        np.testing.assert_array_equal(found[name], expected)
    assert json.loads((tmp_path / "back" / "config.json").read_text())[part]["tie_word_embeddings"] is True
    both = {keys: array for keys, _, array in open_checkpoint(tmp_path / "back").params(parts=("llm",))}
    np.testing.assert_array_equal(both["llm", "head", "weight"], both["llm", "embed", "embedding"])


def test_files_of_transformers_5_are_read(tmp_path):
    config = json.loads((DATA / "transformers5_config.json").read_text())
    model = transformers_janus.config_from_json(JsonObject(config, "config.json"), {})
    assert (model.llm.rope_theta, model.llm.max_positions, model.gen_encoder.image_size) == (50000.0, 512, 48)
    folder = save(tmp_path / "Janus-Pro", pseudo(transformers_janus.LAYOUT.manifest(model_parameters(model))), config)
    make_byte_level_tokenizer(folder, ["A boat."], model.llm.vocab_size, "janus_pro")
    (folder / "preprocessor_config.json").unlink()
    shutil.copy(DATA / "transformers5_processor_config.json", folder / "processor_config.json")
    processor = Processor.from_directory(folder, open_checkpoint(folder).model_config)
    assert (processor.und_image_size, processor.num_und_tokens, processor.min_side) == (48, 9, 14)


def test_a_resized_vocabulary_is_read(tmp_path):
    larger = replace(SMALL, llm=replace(SMALL.llm, vocab_size=136))
    folder = save_released(tmp_path / "Janus-Pro-1B", larger)
    assert open_checkpoint(folder).config.llm.vocab_size == 136
    change_config(folder, lambda content: content["language_config"].update(vocab_size=128))
    with pytest.raises(JanusError, match=r"embed_tokens\.weight is \[136, 64\], not \[128, 64\]"):
        open_checkpoint(folder)
