import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from checkpoints_convert import open_checkpoint, released, released_flow, transformers_janus
from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.parameters import model_parameters
from janus_jax.config import PRESETS, JanusFlowConfig
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    SMALL,
    SMALL_FLOW,
    pseudo,
    save,
    save_released,
    save_transformers,
)
from tests.golden.pseudo_weights import tensor


def rewrite(folder, change):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("config", [*PRESETS.values(), SMALL, SMALL_FLOW], ids=lambda config: config.name)
def test_a_released_config_says_all_that_the_model_is(config):
    if isinstance(config, JanusFlowConfig):
        layout, config = released_flow, replace(config, vae=None)
    else:
        layout = released
    said = JsonObject(json.loads(json.dumps(layout.config_to_json(config, "bfloat16"))), "config.json")
    found = layout.config_from_json(said, layout.manifest(config))
    assert replace(found, name=config.name, conversation=config.conversation) == config


@pytest.mark.parametrize("name", ["janus_1.3b", "janus_pro_7b"])
def test_transformers_config_says_all_that_the_model_is(name):
    config = PRESETS[name]
    said = JsonObject(json.loads(json.dumps(transformers_janus.config_to_json(config, "bfloat16", 7))), "config.json")
    found = transformers_janus.config_from_json(said, {})
    assert replace(found, name=config.name, conversation=config.conversation) == config


def test_the_config_is_read_with_its_name_and_style(released_folder):
    assert open_checkpoint(released_folder).config == replace(SMALL, name="Janus-Pro-small")


def test_the_layouts_are_told_apart(released_folder, converted_folder, tmp_path):
    assert open_checkpoint(released_folder).layout == "released"
    assert open_checkpoint(save_transformers(tmp_path / "transformers")).layout == "transformers"
    assert open_checkpoint(converted_folder).layout == "orbax"


def test_leaves_come_in_our_shapes_and_orientation(released_folder):
    found = {(keys, layer): array for keys, layer, array in open_checkpoint(released_folder).params()}
    assert found.keys() == {
        (parameter.keys, layer) for parameter in model_parameters(SMALL) for layer in parameter.layer_indices
    }
    name = "language_model.model.layers.1.self_attn.k_proj.weight"
    key = found[("llm", "layers", "attn", "k", "weight"), 1]
    np.testing.assert_array_equal(key.reshape(32, 64), tensor(name, (32, 64)).astype(BFLOAT16))
    name = "gen_vision_model.encoder.conv_blocks.0.downsample.conv.weight"
    kernel = found[("gen_encoder", "encoder", "down_0", "downsample", "kernel"), None]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensor(name, (32, 32, 3, 3)).astype(BFLOAT16))
    name = "vision_model.vision_tower.blocks.1.attn.qkv.weight"
    qkv = found[("und_encoder", "blocks", "attn", "qkv", "weight"), 1]
    np.testing.assert_array_equal(qkv[2, 1], tensor(name, (192, 64)).astype(BFLOAT16)[160:])


def test_linear_weights_are_views_of_the_file(released_folder):
    arrays = {keys: array for keys, _, array in open_checkpoint(released_folder).params()}
    for keys in (("llm", "layers", "mlp", "up", "weight"), ("llm", "layers", "attn", "out", "weight")):
        assert not arrays[keys].flags.owndata
        assert not arrays[keys].flags.writeable


def test_both_layouts_give_the_same_tree(released_folder, tmp_path):
    theirs = open_checkpoint(save_transformers(tmp_path / "transformers")).params()
    for (keys, layer, array), (keys2, layer2, array2) in zip(
        open_checkpoint(released_folder).params(), theirs, strict=True
    ):
        assert (keys, layer) == (keys2, layer2)
        np.testing.assert_array_equal(array, array2, err_msg=str(keys))


def test_params_are_cast_on_demand(released_folder):
    assert {array.dtype for *_, array in open_checkpoint(released_folder).params("float32")} == {FLOAT32}


@pytest.mark.parametrize(("kinds", "joint"), [((BFLOAT16, FLOAT32), FLOAT32), ((BFLOAT16, FLOAT16), FLOAT32)])
def test_a_stack_of_several_dtypes_takes_one_that_holds_them_all(tmp_path, kinds, joint):
    def dtype(name):
        return kinds[name.startswith("language_model.model.layers.1.mlp.up")]

    source = open_checkpoint(save_released(tmp_path / "Janus-Pro", dtype=dtype))
    assert source.dtypes()["llm/layers/mlp/up/weight"] == joint
    assert source.dtypes()["llm/layers/mlp/down/weight"] == kinds[0]


def test_a_tower_cut_by_select_layer_has_that_many_blocks(tmp_path):
    # The file holds the kept blocks alone: with -k, the first depth - k + 1.
    folder = save_released(tmp_path / "Janus-Pro")
    params = json.loads((folder / "config.json").read_text())["vision_config"]["params"]
    assert params["select_layer"] == -23
    assert open_checkpoint(folder).config.und_encoder.depth == 2


def test_a_select_layer_that_the_file_does_not_hold_is_told(tmp_path):
    folder = save_released(tmp_path / "Janus-Pro")
    rewrite(folder, lambda content: content["vision_config"]["params"].update(select_layer=-22))
    with pytest.raises(JanusError, match=r"12 missing: vision_model\.vision_tower\.blocks\.2"):
        open_checkpoint(folder)


def test_all_mismatches_are_told_at_once_with_the_nearest_names(tmp_path):
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
    assert "1 not floating-point: aligner.layers.0.bias is int8" in message


def test_only_a_few_of_many_mismatches_are_told_by_name(tmp_path):
    folder = save_released(tmp_path / "Janus-Pro")
    rewrite(folder, lambda content: content["language_config"].update(num_hidden_layers=30))
    with pytest.raises(JanusError, match=r"243 missing: .* and 235 more"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c["aligner_config"]["params"].update(projector_type="linear"), "projector_type is 'linear'"),
        (lambda c: c["gen_vision_config"].update(cls="VQ-8"), "cls is 'VQ-8'"),
        (lambda c: c["vision_config"]["params"].update(model_name="siglip_so400m_patch14_384"), "model_name"),
        (lambda c: c["vision_config"]["params"].update(heads="two"), "heads is 'two'"),
        (lambda c: c["language_config"].update(num_attention_heads=0), "must be positive"),
        (lambda c: c["language_config"].update(attention_bias=True), "attention_bias is True"),
        (lambda c: c["language_config"].update(rope_scaling={"type": "linear", "factor": 2}), "rotary"),
        (lambda c: c.update(language_config=3), "language_config is 3"),
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
def test_a_config_of_another_network_is_refused_by_field(tmp_path, change, field):
    folder = save_released(tmp_path / "Janus-Pro")
    rewrite(folder, change)
    with pytest.raises(JanusError, match=field):
        open_checkpoint(folder)


def test_weights_without_their_config_say_what_is_missing(tmp_path):
    folder = save_released(tmp_path / "Janus-Pro")
    (folder / "config.json").unlink()
    with pytest.raises(JanusError, match=r"config\.json does not exist"):
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
def test_a_tensor_that_gives_no_size_away_is_named(name, shape):
    said = JsonObject(released.config_to_json(SMALL, "bfloat16"), "config.json")
    shapes = released.manifest(SMALL)
    if len(shape) == len(shapes[name]):
        shape = tuple(0 for _ in shape)
    with pytest.raises(JanusError, match=name):
        released.config_from_json(said, shapes | {name: shape})


def test_a_chat_template_that_is_no_text_is_named(tmp_path):
    folder = save_transformers(tmp_path / "Janus-Pro-1B")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(JanusError, match=r"chat_template\.jinja is damaged"):
        open_checkpoint(folder)


def test_a_folder_in_place_of_the_config_is_told(tmp_path):
    folder = save_released(tmp_path / "Janus-Pro")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(JanusError, match=r"config\.json cannot be read \(Is a directory\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("path", ["x" * 5000, "x\0y"], ids=["too long", "a NUL"])
def test_what_cannot_be_a_path_is_told(path):
    with pytest.raises(JanusError, match=r"does not exist|File name too long"):
        open_checkpoint(path)


def test_weights_of_no_known_layout_are_told(tmp_path):
    with pytest.raises(JanusError, match="no known layout"):
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
def test_the_conversation_is_told_from_the_folders_name(tmp_path, name, style):
    folder = save_released(tmp_path / name)
    rewrite(folder, lambda content: content.pop("conversation"))
    assert open_checkpoint(folder).config.conversation == style


@pytest.mark.parametrize("name", ["process", "improved-janus", "mine"])
def test_a_folder_that_does_not_tell_is_taken_for_pro_with_a_warning(tmp_path, name, caplog):
    folder = save_released(tmp_path / name)
    rewrite(folder, lambda content: content.pop("conversation"))
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(folder).config.conversation == "janus_pro"
    assert "--conversation janus" in caplog.text


def test_the_option_outweighs_every_sign(tmp_path):
    assert open_checkpoint(save_released(tmp_path / "Janus-Pro-1B"), "janus").config.conversation == "janus"


@pytest.mark.parametrize(("role", "style"), [("<|User|>", "janus_pro"), ("User", "janus")])
def test_the_chat_template_outweighs_the_name(tmp_path, role, style):
    folder = save_transformers(tmp_path / ("Janus-1.3B" if style == "janus_pro" else "Janus-Pro-1B"))
    (folder / "chat_template.jinja").write_text(f"{{{{ '{role}: ' }}}}")
    assert open_checkpoint(folder).config.conversation == style


def test_the_released_config_remembers_the_conversation(tmp_path):
    folder = save_released(tmp_path / "mine", replace(SMALL, conversation="janus"))
    assert open_checkpoint(folder).config.conversation == "janus"


def test_a_known_model_has_its_name(tmp_path):
    assert open_checkpoint(save_released(tmp_path / "any", PRESETS["tiny"])).config.name == "tiny"


def test_a_tied_output_matrix_is_the_embedding(tmp_path):
    folder = save_transformers(tmp_path / "tied")
    tensors = dict(open_checkpoint(folder).tensors)
    del tensors["lm_head.weight"]
    tied = save(tmp_path / "without", tensors, json.loads((folder / "config.json").read_text()))
    rewrite(tied, lambda content: content.pop("tie_word_embeddings"))
    found = {keys: array for keys, _, array in open_checkpoint(tied).params()}
    np.testing.assert_array_equal(found["llm", "head", "weight"], found["llm", "embed", "embedding"])


def test_a_missing_output_matrix_is_missing_where_nothing_is_tied(tmp_path):
    folder = save_transformers(tmp_path / "untied")
    tensors = {name: array for name, array in open_checkpoint(folder).tensors.items() if name != "lm_head.weight"}
    with pytest.raises(JanusError, match=r"1 missing: lm_head\.weight"):
        open_checkpoint(save(tmp_path / "without", tensors, json.loads((folder / "config.json").read_text())))


def test_transformers_is_not_given_what_it_cannot_run():
    with pytest.raises(JanusError, match=r"8 groups, not 32; a generated image has 64 tokens"):
        transformers_janus.config_to_json(PRESETS["tiny"], "bfloat16", 7)
