"""Tests of JanusFlow in the released layout, with its VAE in diffusers' layout."""

import shutil
from dataclasses import replace

import pytest

from checkpoints_convert import convert, open_checkpoint
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import SMALL_FLOW, change_config, save_flow, save_released, save_vae
from tests.checkpoints_convert.test_convert import assert_same_params, assert_same_tensors

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_name(name):
    for new, old in OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


@pytest.fixture(scope="module")
def released_flow(tmp_path_factory):
    """A released JanusFlow folder that contains its VAE."""
    folder = save_flow(tmp_path_factory.mktemp("flow") / "JanusFlow-small")
    save_vae(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def converted(released_flow):
    target = released_flow.parent / "converted"
    convert(released_flow, target)
    return target


@pytest.mark.slow
def test_a_round_trip_changes_no_bit(released_flow, converted, tmp_path):
    convert(converted, tmp_path / "back", "released")
    assert_same_tensors(released_flow, tmp_path / "back")
    assert_same_tensors(released_flow / "vae", tmp_path / "back" / "vae")
    assert open_checkpoint(tmp_path / "back").config == replace(SMALL_FLOW, name="back")


def test_a_round_trip_without_a_vae_changes_no_bit(tmp_path):
    source = save_flow(tmp_path / "JanusFlow-small")
    summary = convert(source, tmp_path / "converted")
    assert any("There is no VAE" in note for note in summary.notes)
    assert open_checkpoint(tmp_path / "converted").config == replace(SMALL_FLOW, vae=None)
    convert(tmp_path / "converted", tmp_path / "back", "released")
    assert_same_tensors(source, tmp_path / "back")
    assert not (tmp_path / "back" / "vae").exists()


def test_the_vae_can_be_in_another_folder(released_flow, tmp_path):
    source = save_flow(tmp_path / released_flow.name)
    vae = save_vae(tmp_path / "sdxl-vae")
    assert open_checkpoint(source, vae=vae).config == open_checkpoint(released_flow).config
    assert_same_params(source, released_flow, vae=vae)


def test_tensor_names_of_older_diffusers_versions_are_read(tmp_path):
    new, old = save_vae(tmp_path / "new"), save_vae(tmp_path / "old", rename=old_name)
    assert set(open_tensors(old)) != set(open_tensors(new))
    assert_same_params(old, new)


def test_a_vae_is_converted_separately(tmp_path):
    convert(save_vae(tmp_path / "vae"), tmp_path / "converted")
    assert open_checkpoint(tmp_path / "converted").config == SMALL_FLOW.vae


def changed(folder, target, change):
    shutil.copytree(folder, target)
    change_config(target, change)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
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
        (lambda c: c.pop("language_config"), "config.json: language_config is missing"),
    ],
)
def test_a_config_of_another_network_is_refused_by_field(released_flow, tmp_path, change, message):
    with pytest.raises(JanusError, match=message):
        open_checkpoint(changed(released_flow, tmp_path / "other", change))


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_a_config_of_another_vae_is_refused_by_field(released_flow, tmp_path, change, message):
    with pytest.raises(JanusError, match=message):
        open_checkpoint(changed(released_flow / "vae", tmp_path / "other", change))


def test_a_vae_with_other_latent_channels_is_refused(released_flow, tmp_path):
    other = save_vae(tmp_path / "vae", replace(SMALL_FLOW.vae, latent_channels=8))
    with pytest.raises(JanusError, match="latent_channels 8 and gen_encoder 4"):
        open_checkpoint(released_flow, vae=other)


def test_a_model_is_refused_as_a_vae(released_flow):
    with pytest.raises(JanusError, match="is not a VAE"):
        open_checkpoint(released_flow, vae=released_flow)


def test_a_vae_is_refused_for_other_checkpoints(released_flow, converted, tmp_path):
    with pytest.raises(JanusError, match="is not a JanusFlow"):
        open_checkpoint(save_released(tmp_path / "Janus-Pro"), vae=released_flow / "vae")
    with pytest.raises(JanusError, match="is converted"):
        open_checkpoint(converted, vae=released_flow / "vae")


def test_janusflow_cannot_be_converted_to_transformers(converted, tmp_path):
    with pytest.raises(JanusError, match="transformers layout does not support JanusFlow"):
        convert(converted, tmp_path / "transformers", "transformers")
