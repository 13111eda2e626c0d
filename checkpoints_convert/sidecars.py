"""Files of a checkpoint folder other than weights and config.json: tokenizer, processor, generation settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.config import ModelConfig
from janus_jax.files import read_json, read_json_if_exists, reading
from janus_jax.storage import write_bytes, write_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROCESSOR = "processor_config.json"
_OWN_FIELDS = ("system_prompt", "interleaved_features")
"""Fields of processor_config.json that only janus_jax uses."""
PROCESSOR_FILES = (
    "preprocessor_config.json",
    PROCESSOR,
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"

_IMAGE_PREPROCESSING = {
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_size": 14,
    "rescale_factor": 1 / 255,
}
_ROLES = {"janus": ("User", "Assistant"), "janus_pro": ("<|User|>", "<|Assistant|>")}
# The format that Janus was trained with: a blank line after a user's turn, the end-of-sentence token after an answer.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] | lower == 'system' %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '\\n\\n' }}"
    "{% else %}"
    "{% if message['role'] | lower == 'user' %}{{ 'USER: ' }}{% else %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE\\n' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] | lower == 'user' %}{{ '\\n\\n' }}{% else %}{{ 'EOS' }}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def copy_sidecars(source: Path, target: Path, names: tuple[str, ...] = TOKENIZER_FILES + PROCESSOR_FILES) -> list[str]:
    """Copies those of the named files that exist, and returns their names."""
    found = [name for name in names if (source / name).is_file()]
    for name in found:
        write_bytes(target / name, (source / name).read_bytes())
    return found


def copy_own_fields(source: Path, target: Path) -> None:
    """Copies the fields that only janus_jax uses from the source's to the target's processor_config.json."""
    content = read_json_if_exists(source / PROCESSOR)
    if own := {name: content[name] for name in _OWN_FIELDS if name in content}:
        set_processor_fields(target, own)


def set_processor_fields(folder: Path, fields: Mapping[str, Any]) -> None:
    """Sets fields of processor_config.json."""
    write_json(folder / PROCESSOR, {**read_json_if_exists(folder / PROCESSOR), **fields})


def token_ids(folder: Path) -> dict[str, int]:
    """Returns the ids of the tokenizer's added tokens; an empty dict if there is no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    with reading(file):
        return {token["content"]: int(token["id"]) for token in content.get("added_tokens") or []}


def write_released_sidecars(folder: Path, config: ModelConfig) -> None:
    """Writes the preprocessor and processor configs of the released layout."""
    image = {
        "image_processor_type": "VLMImageProcessor",
        "processor_class": "VLChatProcessor",
        **_IMAGE_PREPROCESSING,
        "image_size": config.und_encoder.image_size,
        "background_color": [127, 127, 127],
    }
    processor = {
        "processor_class": "VLChatProcessor",
        "image_tag": IMAGE,
        "num_image_tokens": config.und_encoder.num_patches,
        "add_special_token": False,
        "ignore_id": -100,
        "mask_prompt": True,
        "sft_format": "deepseek",
    }
    _write_all(folder, {"preprocessor_config.json": image, PROCESSOR: processor})


def write_transformers_sidecars(folder: Path, config: ModelConfig) -> None:
    """Writes the files that transformers' `JanusProcessor` and `generate` need in addition to tokenizer.json."""
    side = config.und_encoder.image_size
    image = {
        "image_processor_type": "JanusImageProcessor",
        "processor_class": "JanusProcessor",
        **_IMAGE_PREPROCESSING,
        "size": {"height": side, "width": side},
        "do_resize": True,
        "do_pad": True,
        "resample": 3,
    }
    processor = {
        "processor_class": "JanusProcessor",
        "num_image_tokens": config.und_encoder.num_patches,
        "use_default_system_prompt": False,
    }
    files: dict[str, Mapping[str, Any]] = {"preprocessor_config.json": image, PROCESSOR: processor}
    if ids := token_ids(folder):
        generation = {"bos_token_id": ids.get(BOS), "eos_token_id": ids.get(EOS), "pad_token_id": ids.get(PAD)}
        image_start = {"boi_token_id": ids[BEGIN_OF_IMAGE]} if BEGIN_OF_IMAGE in ids else {}
        files["generation_config.json"] = {
            **{name: value for name, value in generation.items() if value is not None},
            "generation_kwargs": image_start,
        }
        files["tokenizer_config.json"] = _tokenizer_config(folder)
    user, assistant = _ROLES[config.conversation]
    template = _CHAT_TEMPLATE.replace("USER", user).replace("ASSISTANT", assistant)
    template = template.replace("IMAGE", IMAGE).replace("EOS", EOS)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_all(folder, files)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    own = read_json_if_exists(folder / "tokenizer_config.json")
    return {name: value for name, value in own.items() if name != "chat_template"} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "JanusProcessor",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "extra_special_tokens": {"image_token": IMAGE, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE},
    }


def _write_all(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, content in files.items():
        write_json(folder / name, content)
