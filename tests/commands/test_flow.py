"""Commands with JanusFlow."""

import json

import pytest
from PIL import Image

from tests.checkpoints_convert.checkpoints import save_flow_with_tokenizer
from tests.commands.conftest import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_flow_with_tokenizer(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
def test_commands_generate_images_and_answer(folder, photo, tmp_path):
    vae = f"--vae={folder.parent / 'sdxl-vae'}"
    done = run("launch.generate", f"--model={folder}", vae, "--prompt=a map", "--steps=3", "--out=new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stderr
    settings = json.loads(Image.open(tmp_path / "new" / "00000_0.png").info["settings"])
    assert settings == {"guidance_scale": 2.0, "steps": 3, "sampler": "euler", "dtype": "float32"}
    asked = run("launch.chat", f"--model={folder}", f"--image={photo}", "--prompt=What?", "--max_new_tokens=4")
    assert asked.returncode == 0, asked.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has no VAE"),
        (["--vae=absent"], "absent does not exist"),
        (["--vae=VAE", "--temperature=1"], "has no setting temperature"),
        (["--vae=VAE", "--sampler=dopri"], "sampler is 'dopri'"),
    ],
    ids=str,
)
def test_user_error_is_one_sentence_before_devices_are_initialized(refuses, folder, tmp_path, arguments, message):
    given = [argument.replace("VAE", str(folder.parent / "sdxl-vae")) for argument in arguments]
    usual = [f"--model={folder}", "--prompt=the sea", "--out=pictures"]
    assert message in refuses("launch.generate", *usual, *given, cwd=tmp_path)
    assert not (tmp_path / "pictures").exists()
