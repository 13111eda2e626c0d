"""README.md says what runs: its snippets are run as they stand, in a folder that has what they name."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from janus_jax.config import JanusConfig, VQConfig, janus_preset
from tests.pseudo import CORPUS, make_checkpoint
from tests.scenery import landscape

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^(?:python -m|janus-).*$", README, re.MULTILINE)


def small() -> JanusConfig:
    """A model that transformers' layout can hold (as many ids as patches, 32 groups), and four devices can share."""
    tokenizer = VQConfig(
        image_size=16, codebook_size=128, base_channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1
    )
    tiny = janus_preset("tiny")
    encoder = replace(tiny.und_encoder, num_heads=4)
    return replace(tiny, gen_encoder=tokenizer, und_encoder=encoder, llm=replace(tiny.llm, depth=1))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with small models under the names that README.md uses, and a photograph."""
    desk = tmp_path_factory.mktemp("desk")
    make_checkpoint(desk / "Janus-Pro-1B", small(), CORPUS)
    (desk / "Janus-Pro-7B").symlink_to("Janus-Pro-1B")
    landscape(96, 64).save(desk / "photo.jpg")
    (desk / "captions.jsonl").write_text('{"image": "photo.jpg", "caption": "Hills by a lake."}\n')
    return desk


def test_the_snippets_run(desk, monkeypatch):
    monkeypatch.chdir(desk)
    assert PYTHON
    for snippet in PYTHON:
        exec(compile(snippet, "README.md", "exec"), {})
    assert (desk / "lighthouse.png").is_file()


def test_the_commands_run(desk):
    assert COMMANDS
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for command in COMMANDS:
        words = shlex.split(
            re.sub("^(python -m |janus-)", lambda m: "-m launch." if m[1] == "janus-" else "-m ", command)
        )
        done = subprocess.run(
            [sys.executable, *words],
            cwd=desk,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (desk / "pictures" / "00000_1.png").is_file()
    before, after = (desk / folder / "model.safetensors" for folder in ("Janus-Pro-1B", "Janus-Pro-1B-back"))
    assert before.read_bytes() == after.read_bytes()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_what_a_page_links_to_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("https://arxiv.org/")]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
