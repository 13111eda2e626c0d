"""JanusFlow in the released layout, its VAE in diffusers'."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from checkpoints_convert import convert, open_checkpoint
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import SMALL_FLOW, save_flow, save_released, save_vae
from tests.checkpoints_convert.test_convert import assert_same_tensors

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_name(name):
    for new, old in OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A released folder with its VAE within."""
    folder = save_flow(tmp_path_factory.mktemp("flow") / "JanusFlow-small")
    save_vae(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def converted(whole):
    target = whole.parent / "converted"
    convert(whole, target)
    return target


def test_there_and_back_changes_no_bit(whole, converted, tmp_path):
    convert(converted, tmp_path / "back", "released")
    assert_same_tensors(whole, tmp_path / "back")
    assert_same_tensors(whole / "vae", tmp_path / "back" / "vae")
    assert open_checkpoint(tmp_path / "back").config == replace(SMALL_FLOW, name="back")


def test_a_converted_folder_holds_the_vae(converted):
    found = open_checkpoint(converted)
    assert found.config == SMALL_FLOW
    assert {keys for keys, _, _ in found.params()} == {parameter.keys for parameter in model_parameters(SMALL_FLOW)}


def test_without_a_vae_the_rest_converts_and_comes_back(tmp_path):
    source = save_flow(tmp_path / "JanusFlow-small")
    summary = convert(source, tmp_path / "converted")
    assert any("There is no VAE" in note for note in summary.notes)
    assert open_checkpoint(tmp_path / "converted").config == replace(SMALL_FLOW, vae=None)
    convert(tmp_path / "converted", tmp_path / "back", "released")
    assert_same_tensors(source, tmp_path / "back")
    assert not (tmp_path / "back" / "vae").exists()


def test_a_named_vae_is_that_within(whole, tmp_path):
    source = save_flow(tmp_path / whole.name)
    vae = save_vae(tmp_path / "sdxl-vae")
    assert open_checkpoint(source, vae=vae).config == open_checkpoint(whole).config
    pairs = zip(open_checkpoint(source, vae=vae).params(), open_checkpoint(whole).params(), strict=True)
    for (keys, layer, ours), (other_keys, other_layer, expected) in pairs:
        assert (keys, layer) == (other_keys, other_layer)
        np.testing.assert_array_equal(ours, expected)


def test_the_names_of_older_diffusers_mean_the_same(tmp_path):
    new, old = save_vae(tmp_path / "new"), save_vae(tmp_path / "old")
    tensors = open_tensors(old)
    renamed = save_vae(tmp_path / "renamed", rename=old_name)
    assert set(open_tensors(renamed)) != set(tensors)
    assert open_checkpoint(renamed).config == open_checkpoint(new).config
    found = {keys: array for keys, _, array in open_checkpoint(new).params()}
    shapes = {name: array.shape for name, array in open_checkpoint(renamed).tensors.items()}
    assert shapes == {name: array.shape for name, array in tensors.items()}
    assert {keys for keys, _, _ in open_checkpoint(renamed).params()} == found.keys()


def test_a_vae_converts_by_itself(tmp_path):
    convert(save_vae(tmp_path / "vae"), tmp_path / "converted")
    assert open_checkpoint(tmp_path / "converted").config == SMALL_FLOW.vae


def rewritten(folder, target, change):
    shutil.copytree(folder, target)
    content = json.loads((target / "config.json").read_text())
    change(content)
    (target / "config.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["vision_gen_enc_config"].update(cls="UNet"), "cls is 'UNet'"),
        (lambda c: c["vision_gen_enc_config"]["params"].update(stride=1), "stride is 1"),
        (lambda c: c["vision_gen_enc_config"]["params"].update(padding=1), "padding is 1"),
        (lambda c: c["vision_gen_enc_config"]["params"].update(hidden_size=7), "hidden_size is 7"),
        (lambda c: c["vision_gen_enc_config"]["params"].update(block_out_channels=[32, 64]), "block_out_channels"),
        (lambda c: c["vision_gen_dec_config"]["params"].update(upsamples=2), "upsamples is 2"),
        (lambda c: c["vision_gen_dec_config"]["params"].update(out_channels=8), "out_channels is 8"),
        (lambda c: c["vision_gen_enc_config"]["params"].update(layers_in_middle=3), "missing"),
        (lambda c: c["vision_gen_enc_config"]["params"].update(layers_in_middle=0), "encoder_depth is 0"),
        (lambda c: c["language_config"].update(num_hidden_layers=1 << 31), "LlamaConfig.depth"),
    ],
)
def test_a_config_of_another_network_is_refused_by_field(whole, tmp_path, change, told):
    with pytest.raises(JanusError, match=told):
        open_checkpoint(rewritten(whole, tmp_path / "other", change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(_class_name="VQModel"), "_class_name is 'VQModel'"),
        (lambda c: c.update(latent_channels=16), "misshapen"),
        (lambda c: c.update(block_out_channels=[32, 48]), "whole multiples"),
        (lambda c: c.update(block_out_channels=[]), "whole multiples"),
        (lambda c: c.update(block_out_channels=["a"]), "whole multiples"),
        (lambda c: c.update(down_block_types=["AttnDownEncoderBlock2D"]), "AttnDownEncoderBlock2D"),
        (lambda c: c.update(shift_factor=0.1), "shift_factor is 0.1"),
        (lambda c: c.update(scaling_factor="much"), "scaling_factor"),
    ],
)
def test_another_vae_is_refused_by_field(whole, tmp_path, change, told):
    with pytest.raises(JanusError, match=told):
        open_checkpoint(rewritten(whole / "vae", tmp_path / "other", change))


def test_a_vae_of_other_latents_is_refused(whole, tmp_path):
    other = save_vae(tmp_path / "vae", replace(SMALL_FLOW.vae, latent_channels=8))
    with pytest.raises(JanusError, match="latent_channels 8 and gen_encoder 4"):
        open_checkpoint(whole, vae=other)


def test_what_is_no_vae_is_refused_as_one(whole):
    with pytest.raises(JanusError, match="is not a VAE"):
        open_checkpoint(whole, vae=whole)


def test_only_an_unconverted_flow_takes_a_vae(whole, converted, tmp_path):
    with pytest.raises(JanusError, match="is not a JanusFlow"):
        open_checkpoint(save_released(tmp_path / "Janus-Pro"), vae=whole / "vae")
    with pytest.raises(JanusError, match="is converted"):
        open_checkpoint(converted, vae=whole / "vae")


def test_transformers_has_no_flow(converted, tmp_path):
    with pytest.raises(JanusError, match="transformers layout has no JanusFlow"):
        convert(converted, tmp_path / "theirs", "transformers")


def test_a_flow_speaks_as_the_first_janus(whole):
    assert open_checkpoint(whole).config.conversation == "janus"
