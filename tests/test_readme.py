"""Checks that the snippets and commands of README.md run, and that the links of all pages exist."""

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
from tests.tiny import picture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^(?:python -m|janus-).*$", README, re.MULTILINE)
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]


def small_model() -> JanusConfig:
    """Returns a config that transformers' layout supports, and whose heads four devices can shard."""
    tokenizer = VQConfig(
        image_size=16, codebook_size=128, base_channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1
    )
    tiny = janus_preset("tiny")
    encoder = replace(tiny.und_encoder, num_heads=4)
    return replace(tiny, gen_encoder=tokenizer, und_encoder=encoder, llm=replace(tiny.llm, depth=1))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with small models that have the names in README.md, an image and a caption."""
    folder = tmp_path_factory.mktemp("workspace")
    make_checkpoint(folder / "Janus-Pro-1B", small_model(), CORPUS)
    (folder / "Janus-Pro-7B").symlink_to("Janus-Pro-1B")
    picture(0, (96, 64)).save(folder / "photo.jpg")
    (folder / "captions.jsonl").write_text('{"image": "photo.jpg", "caption": "Hills by a lake."}\n')
    return folder


@pytest.mark.slow
def test_snippets_run(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    assert SNIPPETS
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), {})
    assert (workspace / "lighthouse.png").is_file()


@pytest.mark.nightly
def test_commands_run(workspace):
    assert COMMANDS
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for command in COMMANDS:
        words = shlex.split(re.sub("^(python -m |janus-)", lambda m: "launch." if m[1] == "janus-" else "", command))
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (workspace / "pictures" / "00000_1.png").is_file()
    before, after = (workspace / folder / "model.safetensors" for folder in ("Janus-Pro-1B", "Janus-Pro-1B-back"))
    assert before.read_bytes() == after.read_bytes()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    # .ci/docs_site.py copies these pages into docs/.
    known = {"contributing.md", "changelog.md", "shapes.md"} if page.parent.name == "docs" else set()
    assert [link for link in local if link not in known and not page.parent.joinpath(link).exists()] == []


def test_api_pages_name_existing_modules():
    pages = ROOT.glob("docs/api/*.md")
    modules = [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)]
    missing = [name for name in modules if not ROOT.joinpath(*name.split(".")).with_suffix(".py").exists()]
    assert modules
    assert missing == []


def test_architecture_names_existing_files():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = re.findall(r"`(\w+/[\w/]+\.py)", text)
    assert files
    assert [file for file in files if not any((root / file).exists() for root in (ROOT, ROOT / "janus_jax"))] == []
