import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import (
    PRESETS,
    Execution,
    JanusConfig,
    JanusFlowConfig,
    LlamaConfig,
    SiglipConfig,
    VAEConfig,
    VQConfig,
    flow_preset,
    janus_preset,
    preset,
)
from janus_jax.errors import JanusError
from janus_jax.models.factory import abstract_params
from janus_jax.models.janus import Janus
from janus_jax.models.siglip import Siglip
from janus_jax.models.vae import VAE
from janus_jax.models.vq import VQTokenizer
from tests import tiny

DATA = Path(__file__).parent / "golden" / "data"
COUNTER = 65536


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_the_config_counts_the_parameters_that_the_networks_make(name, layers):
    config = PRESETS[name]
    shapes = jax.tree.leaves(nn.unbox(abstract_params(config, Execution(layers=layers))))
    assert sum(int(np.prod(leaf.shape)) for leaf in shapes) == config.num_params


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("janus_1.3b", 2_089_297_547), ("janus_pro_1b", 2_089_297_547), ("janus_pro_7b", 7_420_434_059)],
)
def test_released_files_hold_the_parameters_the_unused_pool_and_the_counter(name, numbers):
    config = PRESETS[name]
    assert config.num_params + config.und_encoder.num_attention_pool_params + COUNTER == numbers


def test_a_released_flow_holds_the_parameters_but_its_vaes_and_the_unused_pool():
    config = PRESETS["janusflow_1.3b"]
    shapes = json.loads((DATA / "janusflow_1b" / "manifest.json").read_text()).values()
    held = config.num_params - config.vae.num_params + config.und_encoder.num_attention_pool_params
    assert held == sum(int(np.prod(shape)) for shape in shapes) == 2_046_367_504
    assert len(shapes) == 587


def test_the_vae_has_the_size_of_sdxls():
    assert VAEConfig().num_params == 83_653_863


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_vae_flops_are_those_of_the_compiled_network(direction):
    config = VAEConfig(base_channels=64, channel_multipliers=(1, 2))
    module = VAE(config)
    params = abstract(module, jnp.zeros((1, 64, 64, 3)))
    given = jnp.zeros((1, 64, 64, 3)) if direction == "encode" else jnp.zeros((1, 32, 32, 4))
    counted = flops_of(lambda params: module.apply(params, given, method=getattr(module, direction)), params)
    # The enlargement is computed in 4/9 of the operations that the definition has.
    saved = 5 / 9 * 2 * 64**2 * 9 * 128**2 if direction == "decode" else 0
    assert getattr(config, f"{direction}_flops")(64) - saved == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gen_encoder": {"latent_size": 15}}, "latent_size 15 is not a multiple of patch_size 2"),
        ({"gen_encoder": {"latent_channels": 8}}, "latent_channels 4 and gen_encoder 8"),
        ({"gen_encoder": {"kernel_size": 4}}, "kernel_size is 4"),
        ({"gen_encoder": {"width": 33}}, "width is 33"),
        ({"vae": {"norm_groups": 7}}, "VAEConfig.norm_groups 7 does not divide 16"),
        ({"vae": {"scaling_factor": 0}}, "VAEConfig.scaling_factor is 0"),
        ({"vae": 3}, "JanusFlowConfig.vae is 3"),
        ({"gen_encoder": None}, "JanusFlowConfig.gen_encoder is None"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_flow_is_named(change, told):
    values = PRESETS["tiny_flow"].to_dict()
    for name, fields in change.items():
        values[name] = values[name] | fields if isinstance(fields, dict) else fields
    with pytest.raises(JanusError, match=told):
        JanusFlowConfig.from_dict(values)


def test_a_flow_without_a_vae_survives_json():
    config = dataclasses.replace(PRESETS["tiny_flow"], vae=None)
    assert JanusFlowConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("ask", "name"), [(janus_preset, "janusflow_1.3b"), (flow_preset, "janus_pro_1b")])
def test_a_model_of_the_other_kind_is_refused_with_those_that_will_do(ask, name):
    with pytest.raises(JanusError, match=f"'{name}' is of another kind .* take one of "):
        ask(name)


@pytest.mark.parametrize(("name", "folder"), [("janus_pro_1b", "janus_1b"), ("janus_pro_7b", "janus_pro_7b")])
def test_the_manifests_hold_as_many(name, folder):
    shapes = json.loads((DATA / folder / "manifest.json").read_text()).values()
    config = PRESETS[name]
    expected = config.num_params + config.und_encoder.num_attention_pool_params + COUNTER
    assert sum(int(np.prod(shape)) for shape in shapes) == expected


def test_the_image_tokenizer_has_the_size_of_its_paper():
    assert VQConfig().num_params == 71_883_403


def flops_of(function, *args):
    """Floating-point operations of a compiled function, as XLA counts them."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def abstract(module, *args):
    return nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *args)))


def test_siglip_flops_are_those_of_the_compiled_network():
    # One block: XLA counts a scan's body once.
    config = SiglipConfig(image_size=64, patch_size=8, width=512, depth=1, num_heads=2, mlp_dim=2048)
    module, pixels = Siglip(config), jnp.zeros((1, 64, 64, 3))
    counted = flops_of(module.apply, abstract(module, pixels), pixels)
    assert config.flops_per_image == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_image_tokenizer_flops_are_those_of_the_compiled_network(direction):
    config = VQConfig(image_size=64, codebook_size=256, base_channels=64, channel_multipliers=(1, 2), z_channels=64)
    module, pixels = VQTokenizer(config), jnp.zeros((1, 64, 64, 3))
    params = abstract(module, pixels)
    if direction == "encode":
        counted = flops_of(lambda params: module.apply(params, pixels, method=module.encode), params)
        assert config.encode_flops_per_image == pytest.approx(counted, rel=0.05)
    else:
        ids = jnp.zeros((1, config.num_tokens), jnp.int32)
        counted = flops_of(lambda params: module.apply(params, ids, method=module.decode), params)
        # The enlargements are computed in 4/9 of the operations that the definition has.
        saved = 5 / 9 * 2 * 64**2 * 9 * 128**2
        assert config.decode_flops_per_image - saved == pytest.approx(counted, rel=0.05)


def test_language_model_flops_are_those_of_the_compiled_network():
    length = 64
    model = Janus(tiny.CONFIG, Execution(layers="unrolled"))
    batch = tiny.processor().left_pad([tiny.processor().text_sequence("Hello")], length)
    counted = flops_of(
        lambda params: model.apply(
            {"params": params}, batch, method=lambda model, batch: model.text_logits(model(batch))
        ),
        nn.unbox(abstract_params(tiny.CONFIG, model.execution)),
    )
    # Computed densely, every place attends to all.
    assert length * tiny.CONFIG.llm.flops_per_token(length) == pytest.approx(counted, rel=0.1)


def test_an_image_id_costs_the_transformer_the_adaptor_and_the_image_head():
    config = PRESETS["janus_pro_1b"]
    heads = 2 * (8 * 2048 + 2048**2 + 2048**2 + 2048 * 16384)
    assert config.flops_per_image_token(100) == config.llm.flops_per_token(100, text_logits=False) + heads


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_config_survives_json(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def damaged(path, value):
    values = PRESETS["tiny"].to_dict()
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
        ("und_encoder.patch_size", 7),
        ("und_encoder.num_heads", 3),
        ("gen_encoder.image_size", 30),
        ("gen_encoder.norm_groups", 7),
        ("gen_encoder", 5),
        ("conversation", "klingon"),
        ("llm.depht", 3),
    ],
)
def test_a_wrong_field_is_named(path, value):
    with pytest.raises(JanusError, match=path.rpartition(".")[2]):
        JanusConfig.from_dict(damaged(path, value))


def test_a_missing_field_is_named():
    values = PRESETS["tiny"].to_dict()
    del values["llm"]["mlp_dim"]
    with pytest.raises(JanusError, match="mlp_dim"):
        JanusConfig.from_dict(values)


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(JanusError, match="janus_pro_7b"):
        preset("janus_pro_70b")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Execution)])
def test_an_unknown_way_to_run_is_refused_by_name(field):
    with pytest.raises(JanusError, match=field):
        Execution(**{field: "fastest"})


def test_grouped_queries_are_counted():
    full, grouped = LlamaConfig(), LlamaConfig(num_kv_heads=4)
    assert full.num_params - grouped.num_params == full.depth * 2 * 12 * full.head_dim * full.width


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("llm.depth", 2**31),
        ("llm.depth", True),
        ("llm.depth", 2.0),
        ("llm.rms_norm_eps", float("nan")),
        ("llm.rope_theta", 0),
        ("llm.rope_theta", [1]),
        ("und_encoder.gelu", "Tanh"),
        ("und_encoder.gelu", []),
        ("und_encoder.layer_norm_eps", -1e-6),
        ("gen_encoder.image_size", 2**31),
        ("gen_encoder.norm_groups", 0),
        ("gen_encoder.num_res_blocks", 2**31),
        ("gen_encoder.channel_multipliers", []),
        ("gen_encoder.channel_multipliers", [None]),
        ("gen_encoder.channel_multipliers", 2),
        ("name", 7),
    ],
)
def test_a_hostile_field_is_named_before_anything_is_computed_from_it(path, value):
    with pytest.raises(JanusError, match=path.rpartition(".")[2]):
        JanusConfig.from_dict(damaged(path, value))


def test_one_encoder_serves_both_tasks_only_where_its_ids_are_as_many_as_the_others_patches():
    with pytest.raises(JanusError, match="makes 64 ids of 32 pixels, where und_encoder makes 16 patches of 32"):
        dataclasses.replace(preset("tiny"), understands_by="gen_encoder")
