from dataclasses import replace

import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
import pytest

from checkpoints_convert import convert, open_checkpoint
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.parts import LLAMA, OPEN_CLIP_SIGLIP, SIGLIP, SIGLIP_VISION, TIMM_SIGLIP, VQ
from checkpoints_convert.released import llama_to_json
from janus_jax.config import SiglipConfig
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import FLOAT32, SMALL, pseudo, save

# With heads of dimension 64, like all published SigLIP encoders.
ENCODER = SiglipConfig(image_size=32, patch_size=8, width=128, depth=2, num_heads=2, mlp_dim=192, gelu="tanh")
VISION_CONFIG = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 192,
}
TOKENIZER = replace(SMALL.gen_encoder, image_size=384)


def test_a_language_model_with_unused_tensors_is_read(tmp_path):
    tensors = pseudo(LLAMA.manifest(model_parameters(SMALL.llm)))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, FLOAT32)
    folder = save(tmp_path / "llm", tensors, llama_to_json(SMALL.llm, "bfloat16"))
    source = open_checkpoint(folder)
    assert source.config == SMALL.llm
    assert list(source.unused()) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert {keys[0] for keys, *_ in source.params()} == {"llm"}


def test_a_language_model_needs_its_config(tmp_path):
    with pytest.raises(JanusError, match=r"config\.json does not exist"):
        open_checkpoint(save(tmp_path / "llm", pseudo(LLAMA.manifest(model_parameters(SMALL.llm)))))


def siglip(tmp_path):
    extra = {"text_model.head.weight": (3, 3), "logit_scale": (1,), "vision_model.head.probe": (1, 1, 128)}
    tensors = pseudo(SIGLIP.manifest(model_parameters(ENCODER)) | extra)
    return save(tmp_path / "siglip", tensors, {"model_type": "siglip", "vision_config": VISION_CONFIG})


def siglip_vision(tmp_path):
    tensors = pseudo(SIGLIP_VISION.manifest(model_parameters(ENCODER)) | {"head.probe": (1, 1, 128)})
    return save(tmp_path / "tower", tensors, {"model_type": "siglip_vision_model", **VISION_CONFIG})


def timm(tmp_path):
    return save(
        tmp_path / "timm", pseudo(TIMM_SIGLIP.manifest(model_parameters(ENCODER)) | {"attn_pool.latent": (1, 1, 128)})
    )


def open_clip(tmp_path):
    extra = {"text.positional_embedding": (3, 3), "visual.trunk.attn_pool.latent": (1, 1, 128), "logit_bias": ()}
    folder = save(tmp_path / "open_clip", pseudo(OPEN_CLIP_SIGLIP.manifest(model_parameters(ENCODER)) | extra))
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("make", [siglip, siglip_vision, timm, open_clip])
def test_siglip_is_read_from_every_layout(tmp_path, make):
    source = open_checkpoint(make(tmp_path))
    assert source.config == ENCODER
    assert len(list(source.params())) == sum(len(parameter.layer_indices) for parameter in model_parameters(ENCODER))


def test_split_and_fused_projections_give_the_same_parameter(tmp_path):
    fused = pseudo(TIMM_SIGLIP.manifest(model_parameters(ENCODER)))
    mapped = zip(TIMM_SIGLIP.map(model_parameters(ENCODER)), SIGLIP.map(model_parameters(ENCODER)), strict=True)
    split = {name: part for source, target in mapped for name, part in target.write(source.read(fused))}
    values = {"model_type": "siglip", "vision_config": VISION_CONFIG}
    first = open_checkpoint(save(tmp_path / "fused", fused)).params()
    second = open_checkpoint(save(tmp_path / "split", split, values)).params()
    for (keys, _, array), (_, _, array2) in zip(first, second, strict=True):
        np.testing.assert_array_equal(array, array2, err_msg=str(keys))


def test_sizes_of_the_image_tokenizer_are_inferred_from_shapes(tmp_path):
    tensors = pseudo(VQ.manifest(model_parameters(TOKENIZER)) | {"quantize.codebook_used": (65536,)}, FLOAT32)
    source = open_checkpoint(save(tmp_path / "vq", tensors))
    assert source.config == TOKENIZER
    assert list(source.unused()) == ["quantize.codebook_used"]


def test_parameters_of_a_converted_part_are_under_its_key(tmp_path):
    summary = convert(timm(tmp_path), tmp_path / "out")
    assert any("'tanh'" in note for note in summary.notes)
    assert open_checkpoint(tmp_path / "out").config == ENCODER
    assert not (tmp_path / "out" / "unused.safetensors").exists()
    with ocp.StandardCheckpointer() as checkpointer:
        assert list(checkpointer.restore(tmp_path / "out" / "params")) == ["und_encoder"]
