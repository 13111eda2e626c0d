import dataclasses
import json
import re

import pytest

from janus_jax.config import (
    PRESETS,
    Execution,
    JanusConfig,
    JanusFlowConfig,
    config_from_dict,
    flow_preset,
    janus_preset,
    preset,
)
from janus_jax.errors import JanusError

WITHOUT_VAE = dataclasses.replace(flow_preset("tiny_flow"), vae=None)


@pytest.mark.parametrize("config", [*PRESETS.values(), WITHOUT_VAE], ids=[*PRESETS, "without VAE"])
def test_a_config_is_restored_from_json(config):
    assert config_from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(config)))) == config


def changed(preset, path, value):
    values = dataclasses.asdict(PRESETS[preset])
    *parents, last = path.split(".")
    target = values
    for key in parents:
        target = target[key]
    target[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("llm.width", "wide"),
        ("llm.width", -64),
        ("llm.num_kv_heads", 3),
        ("llm.head_dim", 15),
        ("llm.head_dim", 2**30),
        ("llm.depth", 2**31),
        ("llm.depth", True),
        ("llm.depth", 2.0),
        ("llm.rms_norm_eps", float("nan")),
        ("llm.rope_theta", 0),
        ("llm.rope_theta", [1]),
        ("llm.depht", 3),
        ("und_encoder.patch_size", 7),
        ("und_encoder.num_heads", 3),
        ("und_encoder.gelu", "Tanh"),
        ("und_encoder.gelu", []),
        ("und_encoder.layer_norm_eps", -1e-6),
        ("gen_encoder", 5),
        ("gen_encoder.image_size", 30),
        ("gen_encoder.image_size", 2**31),
        ("gen_encoder.norm_groups", 0),
        ("gen_encoder.norm_groups", 7),
        ("gen_encoder.num_res_blocks", 2**31),
        ("gen_encoder.channel_multipliers", []),
        ("gen_encoder.channel_multipliers", [None]),
        ("gen_encoder.channel_multipliers", 2),
        ("conversation", "klingon"),
        ("name", 7),
    ],
)
def test_an_invalid_field_of_janus_is_named(path, value):
    with pytest.raises(JanusError, match=path.rpartition(".")[2]):
        config_from_dict(JanusConfig, changed("tiny", path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gen_encoder.latent_size", 15, "latent_size 15 is not a multiple of patch_size 2"),
        ("gen_encoder.latent_channels", 8, "latent_channels 4 and gen_encoder 8"),
        ("gen_encoder.kernel_size", 4, "kernel_size is 4"),
        ("gen_encoder.kernel_size", 1023, "kernel_size is 1023"),
        ("gen_encoder.encoder_depth", 1000, "encoder_depth is 1000"),
        ("gen_encoder.width", 33, "width is 33"),
        ("gen_encoder", None, "JanusFlowConfig.gen_encoder is None"),
        ("vae.norm_groups", 7, "VAEConfig.norm_groups 7 does not divide 16"),
        ("vae.scaling_factor", 0, "VAEConfig.scaling_factor is 0"),
        ("vae", 3, "JanusFlowConfig.vae is 3"),
    ],
)
def test_an_invalid_field_of_janusflow_is_named(path, value, message):
    with pytest.raises(JanusError, match=re.escape(message)):
        config_from_dict(JanusFlowConfig, changed("tiny_flow", path, value))


def test_a_missing_field_is_named():
    values = dataclasses.asdict(PRESETS["tiny"])
    del values["llm"]["mlp_dim"]
    with pytest.raises(JanusError, match=r"JanusConfig\.llm\.mlp_dim is missing"):
        config_from_dict(JanusConfig, values)


@pytest.mark.parametrize(
    ("get", "name", "known"),
    [
        (preset, "janus_pro_70b", "janus_pro_7b"),
        (janus_preset, "janusflow_1.3b", "janus_pro_7b"),
        (flow_preset, "janus_pro_1b", "janusflow_1.3b"),
    ],
)
def test_an_invalid_preset_is_refused_with_the_valid_ones(get, name, known):
    with pytest.raises(JanusError, match=f"'{name}' is .*{known}"):
        get(name)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Execution)])
def test_an_invalid_execution_setting_is_named(field):
    with pytest.raises(JanusError, match=field):
        Execution(**{field: "fastest"})


def test_an_image_tokenizer_with_another_number_of_tokens_cannot_replace_the_encoder():
    with pytest.raises(JanusError, match=r"32 pixels as 64 tokens, but und_encoder .* 16 patches"):
        dataclasses.replace(preset("tiny"), understanding_encoder="gen_encoder")
