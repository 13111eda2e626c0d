import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from janus_jax import load
from janus_jax.commands import chat_repl
from janus_jax.commands.chat_repl import Conversation, ImageOutput, question, typed_paths
from janus_jax.config import preset
from janus_jax.errors import JanusError
from janus_jax.processing import ImageWithTokens, Processor
from tests.commands.conftest import run


class FakeModel:
    """A model that answers with the number of messages and images, and records its inputs."""

    def __init__(self):
        self.asked = []

    def respond(self, messages, **options):
        self.asked.append((messages, options))
        if any("too long" in message["content"] for message in messages):
            raise JanusError("The prompt is too long.")
        yield from ["  ", f"turn {len(messages)},", f" {sum(len(m.get('images', ())) for m in messages)} images"]


def chat(lines, conversation, capsys, images=None):
    """Runs the chat on these input lines and returns its output. An exception among the lines is raised."""
    rest = iter(lines)

    def read():
        try:
            line = next(rest)
        except StopIteration:
            raise EOFError from None
        if isinstance(line, BaseException):
            raise line
        return line

    chat_repl.chat(conversation, images or ImageOutput(Path("unused")), read)
    return capsys.readouterr().out


def test_question_has_a_placeholder_line_per_image():
    message = question("What changed?", ["before.png", "after.png"])
    assert message["content"] == "<image_placeholder>\n<image_placeholder>\nWhat changed?"
    assert message["images"] == ["before.png", "after.png"]


def test_placeholders_in_the_text_stand_for_the_images():
    text = "Is <image_placeholder> older than <image_placeholder>?"
    assert question(text, ["a.png", "b.png"]) == {"role": "user", "content": text, "images": ["a.png", "b.png"]}


@pytest.mark.parametrize("images", [[], ["a.png"], ["a.png", "b.png", "c.png"]])
def test_wrong_number_of_placeholders_is_reported(images):
    with pytest.raises(JanusError, match=f"contains 2 <image_placeholder>, but {len(images)} images are given"):
        question("Compare <image_placeholder> and <image_placeholder>.", images)


def test_images_stay_attached_if_the_placeholders_are_wrong(capsys, photo):
    lines = [f"/image {photo}", "<image_placeholder><image_placeholder> What?", "<image_placeholder> What is it?"]
    fake = FakeModel()
    shown = chat(lines, Conversation(fake.respond), capsys)
    assert "contains 2 <image_placeholder>, but 1 images are given" in shown
    ((messages, _),) = fake.asked
    assert [message["content"] for message in messages] == ["<image_placeholder> What is it?"]
    assert len(messages[0]["images"]) == 1


NAME = "Mein Ürlaub (1) it's 100% #2.png"
DROPPED = {
    "as it is": lambda path: str(path),
    "with backslashes": lambda path: re.sub(r"([^\w/.])", r"\\\1", str(path)),
    "in single quotes": lambda path: shlex.quote(str(path)),
    "in double quotes": lambda path: f'"{path}"',
    "as a URL": lambda path: path.as_uri(),
    "as a URL with a host": lambda path: path.as_uri().replace("file://", "file://my-computer"),
    "as a URL in quotes": lambda path: f"'{path.as_uri()}'",
    "in the home folder": lambda path: f"~/{path.name}",
    "with spaces around it": lambda path: f"  {shlex.quote(str(path))}  ",
}


@pytest.mark.parametrize("kind", DROPPED)
def test_typed_and_dropped_paths_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / NAME
    path.touch()
    assert typed_paths(DROPPED[kind](path)) == [str(path)]


@pytest.mark.parametrize("name", ["it's.png", "a\\ b.png", "'quoted'.png", "two  spaces.png", "file.png"])
def test_existing_name_is_taken_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert typed_paths(name) == [name]


def test_several_dropped_files_are_several_paths(tmp_path):
    paths = [tmp_path / name for name in ("a b.png", "c.png")]
    for path in paths:
        path.touch()
    assert typed_paths(" ".join(shlex.quote(str(path)) for path in paths)) == list(map(str, paths))
    # A missing file: the text is one name with spaces, which the message will show.
    assert typed_paths(f"{paths[1]} missing.png") == [f"{paths[1]} missing.png"]


def test_files_dropped_without_a_command_are_added(capsys, photo):
    fake = FakeModel()
    shown = chat(
        [f"'{photo}'", str(photo), photo.as_uri(), "/etc/nothing.png", "What?"], Conversation(fake.respond), capsys
    )
    assert shown.count("is added to your next message") == 3
    assert "turn 1, 3 images" in shown
    assert "(The image /etc/nothing.png does not exist" in shown


def test_transparent_images_are_blended(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert Conversation(FakeModel().respond).add_image(str(path)).getpixel((0, 0)) == (255, 0, 0)
    assert Conversation(FakeModel().respond, background="white").add_image(str(path)).getpixel((0, 0)) == (
        255,
        255,
        255,
    )


def test_later_questions_include_earlier_turns_and_images(capsys, photo):
    fake = FakeModel()
    shown = chat([f"/image {photo}", "What is it?", "And now?"], Conversation(fake.respond, {"seed": 7}), capsys)
    assert "turn 1, 1 images" in shown
    assert "turn 3, 1 images" in shown
    messages, _ = fake.asked[-1]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [message["content"] for message in messages[1:]] == ["turn 1, 1 images", "And now?"]
    assert [options for _, options in fake.asked] == [{"seed": 7}, {"seed": 8}]


def test_initial_image_is_added_to_the_first_question(capsys):
    conversation = Conversation(FakeModel().respond, pending_images=[Image.new("RGB", (4, 4))])
    assert "turn 1, 1 images" in chat(["What is it?"], conversation, capsys)
    assert conversation.pending_images == []


def test_bad_image_is_reported_and_the_chat_continues(capsys, spoiled):
    shown = chat(
        [f"/image {spoiled / 'half.jpg'}", "/image", "/image 'no where.png'", "hello"],
        Conversation(FakeModel().respond),
        capsys,
    )
    complaints = [line for line in shown.splitlines() if line.startswith("(")]
    assert len(complaints) == 3
    assert "half.jpg" in complaints[0]
    assert "The image no where.png does not exist" in complaints[2]
    assert "turn 1, 0 images" in shown


def test_failed_question_is_not_recorded(capsys, photo):
    conversation = Conversation(FakeModel().respond)
    shown = chat([f"/image {photo}", "a too long one", "a short one"], conversation, capsys)
    assert "(The prompt is too long.)" in shown
    assert "turn 1, 1 images" in shown


def test_reset_starts_a_new_conversation(capsys, photo):
    shown = chat(["hello", f"/image {photo}", "/reset", "hello"], Conversation(FakeModel().respond), capsys)
    assert "turn 3" not in shown
    assert shown.count("turn 1, 0 images") == 2


@pytest.mark.parametrize("end", ["/quit", "/exit"])
def test_quit_ends_the_chat(capsys, end):
    assert "turn" not in chat([end, "hello"], Conversation(FakeModel().respond), capsys)


def test_unknown_command_shows_help(capsys):
    shown = chat(["/imgae photo.jpg", "  "], Conversation(FakeModel().respond), capsys)
    assert "/image FILE" in shown
    assert "turn" not in shown


def test_interrupted_answer_is_kept(capsys):
    class Interrupted(FakeModel):
        def respond(self, messages, **options):
            yield "It is a"
            raise KeyboardInterrupt

    conversation = Conversation(Interrupted().respond)
    assert "It is a ..." in chat(["What is it?"], conversation, capsys)
    assert [message["content"] for message in conversation.messages] == ["What is it?", "It is a"]


class FakePainter:
    """A model that generates a gray level, which each message raises by one."""

    def __init__(self):
        self.seen = []

    def respond(self, messages, **options):
        images = [image for message in messages for image in message.get("images", ())]
        self.seen.append(images)
        level = len(images) + 1
        yield from [
            " Here: ",
            ImageWithTokens(Image.new("RGB", (64, 32), (level,) * 3), np.full(4, level)),
            "  ",
            "Good?",
        ]


def test_generated_images_are_saved_shown_and_kept_in_the_conversation(capsys, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "00001.png").write_text("another file")
    painter = FakePainter()
    conversation = Conversation(painter.respond)
    images = ImageOutput(folder, "kitty", {"seed": 5})
    shown = chat(["Draw it.", "Make it brighter."], conversation, capsys, images)
    first, second = folder / "00000.png", folder / "00002.png"
    pattern = rf"Here: \n\x1b_G[^\n]*\x1b\\\n{first}\n  Good\?\n\n"
    assert re.fullmatch(pattern + pattern.replace(first.name, second.name), shown)
    for level, (file, prompt) in enumerate(((first, "Draw it."), (second, "Make it brighter.")), 1):
        image = Image.open(file)
        assert (image.size, image.getpixel((0, 0)), image.info) == (
            (64, 32),
            (level,) * 3,
            {"prompt": prompt, "seed": "5"},
        )
    assert (folder / "00001.png").read_text() == "another file"
    # The model reads its image tokens.
    assert [[image.tokens[0] for image in seen] for seen in painter.seen] == [[], [1]]
    assert [message["content"] for message in conversation.messages] == [
        "Draw it.",
        "Here: <image_placeholder>  Good?",
        "Make it brighter.",
        "Here: <image_placeholder>  Good?",
    ]


def test_image_that_cannot_be_saved_is_reported_and_kept_in_the_conversation(capsys, spoiled):
    painter = FakePainter()
    images = ImageOutput(spoiled / "taken" / "images")
    shown = chat(["Draw it.", "And now?"], Conversation(painter.respond), capsys, images)
    assert shown.count(f"({spoiled / 'taken'}") == 2
    assert "cannot be written" in shown
    assert [len(seen) for seen in painter.seen] == [0, 1]


@pytest.fixture(scope="module")
def painter(checkpoint, tmp_path_factory):
    """The checkpoint with a head that often prefers begin-of-image."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("models") / checkpoint.name)
    special = Processor.from_directory(folder, preset("tiny")).tokenizer.special
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    head = tensors["language_model.lm_head.weight"].copy()
    head[special.begin_of_image] *= 3
    safetensors.numpy.save_file(tensors | {"language_model.lm_head.weight": head}, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_command_prints_the_answer_of_the_library(checkpoint, photo):
    arguments = ["--max_new_tokens=12", "--temperature=1", "--seed=3", "--dtype=float32"]
    done = run("launch.chat", f"--model={checkpoint}", f"--image={photo}", "--prompt=What is it?", *arguments)
    assert done.returncode == 0, done.stderr
    model = load(checkpoint, "float32")
    answer = model.chat([question("What is it?", [photo])], max_new_tokens=12, temperature=1.0, seed=3)
    assert done.stdout.strip() == answer
    assert answer


@pytest.mark.nightly
def test_command_saves_and_shows_the_images_of_the_library(painter, photo, tmp_path):
    arguments = ["--max_new_tokens=8", "--temperature=1", "--seed=4", "--dtype=float32", "--image_temperature=0.7"]
    arguments += [f"--out={tmp_path / 'images'}", "--show_images=sixel", "--unconditional=message"]
    done = run("launch.chat", f"--model={painter}", f"--image={photo}", "--prompt=What is it?", *arguments)
    assert done.returncode == 0, done.stderr
    model, ask = load(painter, "float32"), [question("What is it?", [photo])]
    sampling = {"temperature": 0.7, "unconditional": "message"}
    pieces = list(model.converse(ask, max_new_tokens=8, temperature=1.0, seed=4, image_sampling=sampling))
    images = [piece for piece in pieces if isinstance(piece, ImageWithTokens)]
    files = sorted((tmp_path / "images").iterdir())
    assert 1 <= len(images) == len(files)
    text = re.sub(r"\x1bP[^\x1b]*\x1b\\\n", "", done.stdout)
    assert len(text) < len(done.stdout)
    written = iter(files)
    expected = "".join(piece if isinstance(piece, str) else f"{next(written)}" for piece in pieces)
    assert "".join(text.split()) == "".join(expected.split())
    for file, piece in zip(files, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(piece.image))
    assert json.loads(Image.open(files[0]).info["settings"])["unconditional"] == "message"


USER_ERRORS = {
    "no such folder": (["--model=absent"], "absent does not exist"),
    "a folder without a model": (["--model=no_model"], "no_model holds no weights"),
    "truncated weights": (["--model=truncated_weights"], "model.safetensors is truncated"),
    "no tokenizer": (["--model=without_tokenizer"], "tokenizer.json is missing"),
    "no model": ([], "--model is required"),
    "no such image": (["--image=absent.png"], "absent.png does not exist"),
    "a truncated image": (["--image=half.jpg"], "half.jpg cannot be read as an image"),
    "an image that is text": (["--image=text.png"], "text.png is not an image"),
    "an empty prompt": (["--prompt= "], "--prompt is empty"),
    "a placeholder without an image": (["--prompt=<image_placeholder> What?"], "contains 1 <image_placeholder>, but 0"),
    "a prompt longer than the context": ([f"--prompt={'long ' * 2000}"], "leaves no room for an answer"),
    "an unknown background": (["--background=black"], "--background=black"),
    "the workdir of a training run": (["--model=run"], "janus-export --workdir run --out MODEL"),
    "a negative length": (["--max_new_tokens=-5"], "--max_new_tokens=-5"),
    "a negative temperature": (["--temperature=-1"], "--temperature=-1"),
    "a temperature that is not a number": (["--temperature=nan"], "--temperature=nan"),
    "a probability above one": (["--top_p=1.5"], "--top_p=1.5"),
    "a negative seed": (["--seed=-1"], "--seed=-1"),
    "an unknown protocol": (["--show_images=ascii"], "--show_images=ascii"),
    "a negative guidance scale": (["--guidance_scale=-1"], "--guidance_scale=-1"),
    "two mesh sizes": (["--mesh=1,2"], "--mesh=1,2"),
    "an unknown dtype": (["--dtype=int8"], "--dtype=int8"),
    "an argument without a flag": (["photo.jpg"], "photo.jpg"),
}


@pytest.mark.parametrize("case", USER_ERRORS)
def test_user_error_is_one_sentence_before_devices_are_initialized(refuses, spoiled, checkpoint, case):
    arguments, words = USER_ERRORS[case]
    model = [] if case == "no model" or "--model" in arguments[0] else [f"--model={checkpoint}"]
    assert words in refuses("launch.chat", "--prompt=hello", *model, *arguments, cwd=spoiled)


def test_mesh_that_does_not_match_the_devices_is_reported(checkpoint):
    done = run("launch.chat", f"--model={checkpoint}", "--prompt=hello", "--mesh=1,1,3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there are 8" in done.stderr


def test_error_in_a_config_names_the_field(refuses, spoiled):
    file = spoiled / "without_tokenizer" / "config.json"
    values = json.loads(file.read_text())
    values["language_config"]["hidden_act"] = "relu"
    file.write_text(json.dumps(values))
    assert "hidden_act" in refuses("launch.chat", "--model=without_tokenizer", "--prompt=hello", cwd=spoiled)
