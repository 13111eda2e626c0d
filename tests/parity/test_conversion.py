"""Checks that files saved by torch and transformers are read, and that transformers loads converted files."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from checkpoints_convert import convert, open_checkpoint
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.config import SiglipConfig
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import SMALL, save_released

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGE_TOKEN = 7
CONFIG = replace(SMALL, name="small")


def transformers_model(seed=0):
    from checkpoints_convert.transformers_janus import config_to_json

    torch.manual_seed(seed)
    config = transformers.JanusConfig(**config_to_json(CONFIG, "float32", IMAGE_TOKEN))
    return transformers.JanusForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint saved by transformers."""
    folder = tmp_path_factory.mktemp("parity") / "Janus-Pro-small"
    transformers_model().save_pretrained(folder)
    return folder


def outputs(folder):
    model, report = transformers.JanusForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(8, CONFIG.llm.vocab_size, (2, 24), generator=generator)
    ids[:, 2 : 2 + CONFIG.und_encoder.num_patches] = IMAGE_TOKEN
    side, gen_side = CONFIG.und_encoder.image_size, CONFIG.gen_encoder.image_size
    pixels = torch.rand((2, 3, side, side), generator=generator) * 2 - 1
    codes = torch.randint(0, CONFIG.gen_encoder.codebook_size, (2, CONFIG.gen_encoder.num_tokens), generator=generator)
    with torch.inference_mode():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        generated = model.model.generation_head(model.prepare_embeddings_for_image_generation(codes))
        encoded = model.model.vqmodel.encode(pixels[:, :, :gen_side, :gen_side]).image_tokens
        decoded = model.decode_image_tokens(codes)
    return {"logits": logits, "generated": generated, "encoded": encoded, "decoded": decoded}


def assert_equal(left, right):
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_outputs_are_equal_after_a_round_trip(original, tmp_path):
    convert(original, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", "transformers")
    assert_equal(outputs(original), outputs(tmp_path / "back"))


def test_outputs_are_equal_after_a_round_trip_through_the_released_layout(original, tmp_path):
    # The released config does not state the image placeholder's id, so it is read from the tokenizer.
    write_tokenizer(original)
    convert(original, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "Janus-Pro", "released")
    convert(tmp_path / "Janus-Pro", tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "back", "transformers")
    assert_equal(outputs(original), outputs(tmp_path / "back"))


def test_a_config_saved_by_transformers_is_read(original):
    assert open_checkpoint(original, "janus").config == replace(CONFIG, name=original.name, conversation="janus")


def test_a_checkpoint_with_tied_embeddings_is_read(tmp_path):
    model = transformers_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "Janus-Pro-tied")
    found = {keys: array for keys, _, array in open_checkpoint(tmp_path / "Janus-Pro-tied").params()}
    np.testing.assert_array_equal(found["llm", "head", "weight"], found["llm", "embed", "embedding"])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_torch_file_is_converted_without_torch(tmp_path, sharded):
    folder = save_released(tmp_path / "Janus-Pro")
    tensors = open_tensors(folder)
    saved = {name: torch.tensor(array.view(np.uint16)).view(torch.bfloat16) for name, array in tensors.items()}
    (folder / "model.safetensors").unlink()
    if sharded:
        names = list(saved)
        halves = {"pytorch_model-00001-of-00002.bin": names[:100], "pytorch_model-00002-of-00002.bin": names[100:]}
        for file, part in halves.items():
            torch.save({name: saved[name] for name in part}, folder / file)
        weight_map = {name: file for file, part in halves.items() for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(saved, folder / "pytorch_model.bin")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from checkpoints_convert import convert\n"
        f"convert({str(folder)!r}, {str(tmp_path / 'converted')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    convert(tmp_path / "converted", tmp_path / "back", "released")
    for name, array in open_tensors(tmp_path / "back").items():
        assert array.tobytes() == tensors[name].tobytes(), name


def test_strided_and_shared_tensors_are_read(tmp_path):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    saved = {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:, ::2, 3:],
        "transposed view": base.flatten()[7:31].view(4, 6).T,
        "expanded": torch.ones(1, 4).expand(3, 4),
        "parameter": torch.nn.Parameter(base[0]),
    }
    torch.save(saved, tmp_path / "pytorch_model.bin")
    found = open_tensors(tmp_path)
    for name, tensor in saved.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy(), err_msg=name)


def test_a_pickled_module_is_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(JanusError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_tensors(tmp_path)


SIGLIP_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def siglip():
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"vocab_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=dict(SIGLIP_TOWER), text_config=text | special)
    )


def siglip_tower():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP_TOWER))


@pytest.mark.parametrize("make", [siglip, siglip_tower])
def test_siglip_saved_by_transformers_is_read(tmp_path, make):
    make().save_pretrained(tmp_path / "siglip")
    tower = SiglipConfig(image_size=32, patch_size=8, width=128, depth=2, num_heads=2, mlp_dim=192, gelu="tanh")
    assert open_checkpoint(tmp_path / "siglip").config == tower


def test_llama_saved_by_transformers_is_read(tmp_path):
    llama = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        rope_theta=5000.0,
        max_position_embeddings=512,
    )
    transformers.LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    source = open_checkpoint(tmp_path / "llama")
    assert source.config == replace(SMALL.llm, rope_theta=5000.0)


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    from checkpoints_convert import sidecars

    names = [sidecars.BOS, sidecars.EOS, sidecars.PAD, "x", sidecars.BEGIN_OF_IMAGE, sidecars.END_OF_IMAGE, "y"]
    vocabulary = {name: number for number, name in enumerate([*names, sidecars.IMAGE, "hello", "User", ":"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([name for name in vocabulary if name.startswith("<")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))


@pytest.mark.parametrize("style", ["janus", "janus_pro"])
def test_transformers_loads_processor_template_and_generation_config(tmp_path, style):
    folder = save_released(tmp_path / "source", replace(SMALL, conversation=style))
    write_tokenizer(folder)
    convert(folder, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "exported", "transformers")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "exported")
    assert type(processor).__name__ == "JanusProcessor"
    image = np.zeros((20, 32, 3), np.uint8)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " hello "}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    user, assistant = {"janus": ("User", "Assistant"), "janus_pro": ("<|User|>", "<|Assistant|>")}[style]
    assert prompt == f"{user}: <image_placeholder>\nhello\n\n{assistant}:"
    batch = processor(text=prompt, images=[image], return_tensors="pt")
    assert int((batch["input_ids"] == IMAGE_TOKEN).sum()) == SMALL.und_encoder.num_patches
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert float(batch["pixel_values"][0, 0, 16, 16]) == -1.0
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "exported")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (0, 1, 2)
    assert generation.generation_kwargs == {"boi_token_id": 4}
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["image_token_id"] == IMAGE_TOKEN
    assert open_checkpoint(tmp_path / "exported").config.conversation == style
