"""Trains tokenizers for models that are trained from scratch."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from janus_jax.config import ConversationStyle
from janus_jax.errors import JanusError
from janus_jax.processing.conversation import TEMPLATES
from janus_jax.processing.settings import IMAGE_MEAN
from janus_jax.processing.tokenizer import (
    BEGIN_OF_SENTENCE,
    END_OF_SENTENCE,
    IMAGE_PLACEHOLDER,
    PAD,
    REQUIRED_TOKENS,
    Tokenizer,
)

_NUM_BYTES = 256


def make_byte_level_tokenizer(
    directory: str | Path,
    corpus: Iterable[str],
    vocab_size: int,
    style: ConversationStyle,
    image_size: int = 384,
    num_image_tokens: int = 576,
    system_prompt: str | None = None,
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer, and writes it and the processor files of a model folder.

    The tokenizer encodes any text. Training is deterministic.

    Args:
      directory: Folder of the files. It is created if missing.
      corpus: Texts to train on.
      vocab_size: Maximum number of tokens: special tokens, the 256 bytes, and merges.
      style: Conversation template. Its role strings become tokens if they look like special tokens ("<|User|>").
      image_size: Side of an input image in pixels.
      num_image_tokens: Number of tokens of an input image.
      system_prompt: Default system prompt of conversations. None: the released models' system prompt.

    Returns:
      The tokenizer.

    Raises:
      JanusError: `vocab_size` is too small for the bytes and special tokens.
    """
    template = TEMPLATES[style]
    roles = [role for role in (template.user, template.assistant) if role.startswith("<")]
    special = [*REQUIRED_TOKENS, *roles]
    if vocab_size < _NUM_BYTES + len(special):
        raise JanusError(
            f"vocab_size is {vocab_size}; {_NUM_BYTES} bytes and {len(special)} special tokens need at least "
            f"{_NUM_BYTES + len(special)}."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[tokenizers.AddedToken(token, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_SENTENCE} $A",
        pair=f"{BEGIN_OF_SENTENCE} $A {BEGIN_OF_SENTENCE}:1 $B:1",
        special_tokens=[(BEGIN_OF_SENTENCE, backend.token_to_id(BEGIN_OF_SENTENCE))],
    )

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    named = {"bos_token": BEGIN_OF_SENTENCE, "eos_token": END_OF_SENTENCE, "pad_token": PAD}
    files = {
        "special_tokens_map.json": named | {"additional_special_tokens": [IMAGE_PLACEHOLDER, *roles]},
        "tokenizer_config.json": named
        | {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 16384,
            "tokenizer_class": "LlamaTokenizerFast",
            "unk_token": None,
        },
        "preprocessor_config.json": {
            "background_color": [int(IMAGE_MEAN * 255)] * 3,
            "do_normalize": True,
            "image_mean": [IMAGE_MEAN] * 3,
            "image_processor_type": "VLMImageProcessor",
            "image_size": image_size,
            "image_std": [IMAGE_MEAN] * 3,
            "min_size": 14,
            "processor_class": "VLChatProcessor",
            "rescale_factor": 1 / 255,
        },
        "processor_config.json": {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": IMAGE_PLACEHOLDER,
            "mask_prompt": True,
            "num_image_tokens": num_image_tokens,
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
        }
        | ({} if system_prompt is None else {"system_prompt": system_prompt}),
    }
    for name, values in files.items():
        (directory / name).write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return Tokenizer.from_directory(directory)
