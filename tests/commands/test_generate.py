import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax import load
from janus_jax.errors import StorageFull
from janus_jax.image_files import save_png
from janus_jax.storage import output_folder
from tests.commands.conftest import run
from tests.tiny import picture


@pytest.fixture(scope="module")
def generated(checkpoint, tmp_path_factory):
    """Runs the command once. Returns its output folder and the finished process."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "prompts.txt").write_text("\ufeffthe sea\n\n  a map \n", encoding="utf-8")
    done = run(
        "launch.generate",
        f"--model={checkpoint}",
        "--prompt=晚上的湖",
        "--prompts_file=prompts.txt",
        "--num_images=2",
        "--seed=5",
        "--guidance_scale=3",
        "--parallel_window=4",
        "--dtype=float32",
        "--out=new/pictures",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "new" / "pictures", done


@pytest.mark.slow
def test_all_images_are_written(generated):
    folder, done = generated
    names = [f"{prompt:05}_{image}.png" for prompt in range(3) for image in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert done.stdout.split() == [f"new/pictures/{name}" for name in names]


def test_progress_bar_reaches_its_end(generated):
    _, done = generated
    assert "384/384" in done.stderr
    assert "100%" in done.stderr


@pytest.mark.slow
def test_images_equal_those_of_the_library(generated, checkpoint):
    folder, _ = generated
    images = load(checkpoint, "float32").generate(["晚上的湖", "the sea", "a map"], 2, guidance_scale=3.0, seed=5)
    for prompt, group in enumerate(images):
        for index, image in enumerate(group):
            np.testing.assert_array_equal(np.array(Image.open(folder / f"{prompt:05}_{index}.png")), np.array(image))


def test_metadata_contains_prompt_seed_and_settings(generated, checkpoint):
    folder, _ = generated
    metadata = Image.open(folder / "00002_1.png").info
    assert metadata["prompt"] == "a map"
    assert (metadata["seed"], metadata["prompt_number"], metadata["image_number"]) == ("5", "2", "1")
    assert str(checkpoint) in metadata["model"]
    assert json.loads(metadata["settings"]) == {
        "guidance_scale": 3.0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "parallel_window": 4,
        "dtype": "float32",
    }
    assert Image.open(folder / "00000_0.png").info["prompt"] == "晚上的湖"


USER_ERRORS = {
    "no such folder": (["--model=absent"], "absent does not exist"),
    "an empty prompt": (["--prompt="], "--prompt is empty"),
    "no such prompts file": (["--prompts_file=absent.txt"], "absent.txt does not exist"),
    "a prompts file in UTF-16": (["--prompts_file=utf_16.txt"], "save it as UTF-8, or write one prompt per line"),
    "a prompts file with blank lines only": (["--prompts_file=blank.txt"], "blank.txt contains no prompts"),
    "no images": (["--num_images=0"], "--num_images=0"),
    "a negative batch": (["--batch_size=-4"], "--batch_size=-4"),
    "a negative scale": (["--guidance_scale=-1"], "--guidance_scale=-1"),
    "an infinite scale": (["--guidance_scale=inf"], "--guidance_scale=inf"),
    "an unknown window": (["--parallel_window=many"], "--parallel_window=many"),
    "a window that is too large": (["--parallel_window=1000"], "parallel_window is 1000"),
    "a negative top-k": (["--top_k=-1"], "--top_k=-1"),
    "no such image": (["--image=absent.png"], "absent.png does not exist"),
    "an editing style without an image": (["--editing_style=janus_4o"], "--editing_style needs --image"),
    "an output folder that is a file": (["--out=taken"], "taken cannot be written"),
    "an output folder in a file": (["--out=taken/pictures"], "taken/pictures cannot be written"),
}


@pytest.mark.parametrize("case", USER_ERRORS)
def test_user_error_is_one_sentence_before_devices_are_initialized(refuses, spoiled, checkpoint, case):
    arguments, words = USER_ERRORS[case]
    given = {argument.split("=")[0] for argument in arguments}
    usual = {"--model": checkpoint, "--prompt": "the sea", "--out": "pictures"}
    arguments = [*arguments, *(f"{flag}={value}" for flag, value in usual.items() if flag not in given)]
    assert words in refuses("launch.generate", *arguments, cwd=spoiled)
    assert not (spoiled / "pictures").exists()


@pytest.mark.nightly
def test_edited_images_equal_those_of_the_library(checkpoint, tmp_path):
    picture(0, (60, 40)).save(tmp_path / "a.png")
    picture(1, (40, 60)).save(tmp_path / "b.png")
    images, prompts = ("a.png", "b.png"), ("add a boat", "make it blue")
    done = run(
        "launch.generate",
        f"--model={checkpoint}",
        *(f"--image={image}" for image in images),
        *(f"--prompt={prompt}" for prompt in prompts),
        "--num_images=2",
        "--seed=5",
        "--guidance_scale=3",
        "--image_guidance_scale=2",
        "--dtype=float32",
        "--out=edited",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    names = [f"{prompt:05}_{number}.png" for prompt in range(2) for number in range(2)]
    assert done.stdout.split() == [f"edited/{name}" for name in names]
    model, sources = load(checkpoint, "float32"), [tmp_path / image for image in images]
    settings = {"guidance_scale": 3.0, "image_guidance_scale": 2.0}
    for generated in model.edit_stream([(sources, prompt) for prompt in prompts], 2, 5, **settings):
        file = tmp_path / "edited" / f"{generated.prompt:05}_{generated.number}.png"
        np.testing.assert_array_equal(np.array(Image.open(file)), np.array(generated.image))
    (one,) = model.sample_edits([(sources, prompts[1])], [(1, 1)], 5, **settings)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "edited" / "00001_1.png")), np.array(one))
    metadata = Image.open(tmp_path / "edited" / "00001_0.png").info
    assert metadata["prompt"] == "make it blue"
    assert json.loads(metadata["settings"])["style"] == "janus_4o"


@pytest.mark.nightly
def test_a_folder_with_weights_of_8_bits_generates_the_images_of_its_source(checkpoint, tmp_path):
    done = run("launch.convert", checkpoint, tmp_path / "int8", "--quantization=int8")
    assert done.returncode == 0, done.stderr
    assert "in the released layout" in done.stdout
    for model, out, quantization in ((checkpoint, "a", "int8"), ("int8", "b", "none")):
        options = (f"--model={model}", f"--quantization={quantization}", f"--out={out}", "--dtype=float32")
        done = run("launch.generate", *options, "--prompt=the sea", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    expected, image = (Image.open(tmp_path / out / "00000_0.png") for out in "ab")
    np.testing.assert_array_equal(np.array(image), np.array(expected))
    assert json.loads(image.info["settings"])["quantization"] == "int8"


@pytest.mark.nightly
def test_the_best_images_are_those_that_the_judge_prefers(checkpoint, tmp_path):
    (tmp_path / "mine.py").write_text("def light(prompts, images, metadata):\n    return images.mean(axis=(1, 2, 3))\n")
    flags = [f"--model={checkpoint}", "--prompt=the sea", "--prompt=a map", "--dtype=float32"]
    candidates = run("launch.generate", *flags, "--num_images=2", "--out=all", cwd=tmp_path)
    best = run("launch.generate", *flags, "--best_of=2", "--judge=mine:light", "--out=best", cwd=tmp_path)
    assert candidates.returncode == best.returncode == 0, best.stderr
    for prompt in range(2):
        chosen = Image.open(tmp_path / "best" / f"{prompt:05}_0.png")
        images = [np.array(Image.open(tmp_path / "all" / f"{prompt:05}_{number}.png")) for number in range(2)]
        np.testing.assert_array_equal(np.array(chosen), max(images, key=np.mean))
        assert float(chosen.info["score"]) == pytest.approx(np.mean(np.array(chosen)), rel=1e-5)
        assert json.loads(chosen.info["settings"])["judge"] == "mine:light"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judge=self"], "--judge needs --best_of"),
        (["--best_of=2", "--judge=nobody"], "--judge nobody is unknown; use"),
        (["--best_of=2", "--judge_option=size=3"], "--judge self has no option 'size'"),
        (["--best_of=2", "--image=half.jpg"], "--best_of selects generated images, not edits"),
    ],
)
def test_a_judge_is_checked_before_devices_are_initialized(refuses, spoiled, checkpoint, flags, message):
    flags = [f"--model={checkpoint}", "--prompt=the sea", "--out=out", *flags]
    assert message in refuses("launch.generate", *flags, cwd=spoiled)


def test_missing_prompts_are_reported(refuses, spoiled, checkpoint):
    assert "no prompts" in refuses("launch.generate", f"--model={checkpoint}", "--out=pictures", cwd=spoiled)


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "00000_0.png"
    save_png(Image.new("RGB", (4, 4), "red"), path, {})

    def fill_the_disk(file, _):
        with file.open("wb") as stream:
            stream.write(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(StorageFull, match="the disk is full"):
        save_png(Image.new("RGB", (4, 4), "blue"), path, {})
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["00000_0.png"]
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)


def test_unused_output_folder_is_removed(tmp_path):
    with pytest.raises(RuntimeError), output_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
