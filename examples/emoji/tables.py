"""Writes the pictures and tables of the emoji example, and trains its text tokenizer.

    npm pack emoji-datasource-google@16.0.0
    python -m examples.emoji.tables emoji-datasource-google-16.0.0.tgz data

writes these files, which are what you would write for your own data:

    pictures/          PNG, 64 x 64 pixels, transparent
    train.jsonl        picture, name and captions, for `janus-prepare --source captions`
    held_out.jsonl     the same for the held-out pictures
    questions.jsonl    conversations about the training pictures, for `janus-prepare --source conversations`
    chat.jsonl         conversations without pictures
    test.jsonl         questions about held-out pictures, for the benchmark emoji
    prompts.jsonl      prompts for the benchmark emoji_generation
    text/              text tokenizer
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.emoji.configs.janus import MODEL
from examples.emoji.dataset import Emoji, Split, read_package
from examples.emoji.questions import CATEGORY, NAME, Questions, chat
from janus_jax.commands import cli
from janus_jax.processing import make_byte_level_tokenizer

_CONVERSATIONS = 5
"""Conversations about each training picture."""

_PROMPTS = 100
"""Prompts of each split. Generated pictures are ranked among the names of their split."""


def main(arguments: Sequence[str]) -> None:
    """Writes all files."""
    package, folder = map(Path, arguments)
    write_tables(package, folder)


def write_tables(package: Path, folder: Path) -> list[Emoji]:
    """Writes the files of this example for a package, and returns its emoji."""
    emoji = read_package(package, folder / "pictures")
    train = [one for one in emoji if one.split is Split.TRAIN]
    held_out = [one for one in emoji if one.split is not Split.TRAIN]
    questions = Questions(emoji)
    conversations = [questions.conversation(one, number) for number in range(_CONVERSATIONS) for one in train]
    chats = chat(train)
    _write(folder / "train.jsonl", map(_captions, train))
    _write(folder / "held_out.jsonl", map(_captions, held_out))
    _write(folder / "questions.jsonl", conversations)
    _write(folder / "chat.jsonl", chats)
    _write(folder / "test.jsonl", _test(questions, held_out))
    _write(folder / "prompts.jsonl", _prompts(emoji))
    turns = [turn["value"] for row in chats for turn in row["conversations"]]
    make_byte_level_tokenizer(
        folder / "text",
        [NAME, CATEGORY, *turns, *(name for one in train for name in (one.name, *one.keywords))],
        MODEL.llm.vocab_size,
        MODEL.conversation,
        MODEL.und_encoder.image_size,
        MODEL.und_encoder.num_patches,
        system_prompt="",
    )
    return emoji


def _captions(one: Emoji) -> dict[str, Any]:
    return {"image": one.file, "name": one.name, "caption": [one.name, *one.keywords]}


def _test(questions: Questions, held_out: Sequence[Emoji]) -> Iterator[dict[str, Any]]:
    for one in held_out:
        for question in questions.test(one):
            yield {"image": one.file, "split": one.split.value, **question._asdict()}


def _prompts(emoji: Sequence[Emoji]) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for split in Split:
        # One variant of each emoji, because the names of two variants are easily confused.
        chosen = {one.base: one for one in rng.permutation(np.array([e for e in emoji if e.split is split], object))}
        for one in list(chosen.values())[:_PROMPTS]:
            yield {"prompt": one.name, "split": split.value, "image": one.file}


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, positional=("PACKAGE", "FOLDER"))
