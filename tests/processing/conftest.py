"""A small tokenizer in the released layout, and edited copies of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from janus_jax.config import JanusConfig, janus_preset
from janus_jax.processing import Processor, Tokenizer, make_byte_level_tokenizer

CORPUS = [
    "The picture shows a red square above a blue circle. What is to the left of the green triangle?",
    "User: What is this? Assistant: A photograph of a dog on a beach, with 12 gulls. 晚上好 naïve café 🙂",
]

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def config() -> JanusConfig:
    return janus_preset("tiny")


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory, config: JanusConfig) -> Path:
    """A model folder with tokenizer and JSON files. Read only."""
    directory = tmp_path_factory.mktemp("released")
    make_byte_level_tokenizer(
        directory,
        CORPUS,
        config.llm.vocab_size,
        config.conversation,
        image_size=config.und_encoder.image_size,
        num_image_tokens=config.und_encoder.num_patches,
    )
    return directory


@pytest.fixture
def edited(released: Path, tmp_path: Path) -> Callable[[str, Edit], Path]:
    """Copies `released` and changes one JSON file."""

    def edit(name: str, change: Edit) -> Path:
        for file in released.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        values = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        change(values)
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
        return tmp_path

    return edit


@pytest.fixture(scope="session")
def tokenizer(released: Path) -> Tokenizer:
    return Tokenizer.from_directory(released)


@pytest.fixture(scope="session")
def processor(released: Path, config: JanusConfig) -> Processor:
    return Processor.from_directory(released, config)
