import json

import pytest
from PIL import Image

from janus_jax import load
from janus_jax.commands import chat_repl
from janus_jax.commands.chat_repl import Conversation, question
from janus_jax.errors import JanusError
from tests.commands.conftest import run


class Parrot:
    """Answers with the number of turns and images, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def chat_stream(self, messages, **options):
        self.asked.append((messages, options))
        if any("too long" in message["content"] for message in messages):
            raise JanusError("The prompt is too long.")
        yield from ["  ", f"turn {len(messages)},", f" {sum(len(m.get('images', ())) for m in messages)} images"]


def chat(lines, conversation, capsys):
    """What is shown when these lines are typed."""
    rest = iter(lines)

    def read():
        try:
            line = next(rest)
        except StopIteration:
            raise EOFError from None
        if isinstance(line, BaseException):
            raise line
        return line

    chat_repl.chat(conversation, read)
    return capsys.readouterr().out


def test_a_question_has_a_placeholder_and_a_new_line_for_every_image():
    message = question("What changed?", ["before.png", "after.png"])
    assert message["content"] == "<image_placeholder>\n<image_placeholder>\nWhat changed?"
    assert message["images"] == ["before.png", "after.png"]


def test_later_questions_carry_the_earlier_turns_and_their_images(capsys, photo):
    parrot = Parrot()
    shown = chat([f"/image {photo}", "What is it?", "And now?"], Conversation(parrot, {"seed": 7}), capsys)
    assert "turn 1, 1 images" in shown
    assert "turn 3, 1 images" in shown
    messages, options = parrot.asked[-1]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [message["content"] for message in messages[1:]] == ["turn 1, 1 images", "And now?"]
    assert options == {"seed": 7}


def test_an_image_given_at_the_start_goes_with_the_first_question(capsys):
    conversation = Conversation(Parrot(), pending_images=[Image.new("RGB", (4, 4))])
    assert "turn 1, 1 images" in chat(["What is it?"], conversation, capsys)
    assert conversation.pending_images == []


def test_a_bad_image_is_told_and_the_chat_goes_on(capsys, spoiled):
    shown = chat(
        [f"/image {spoiled / 'half.jpg'}", "/image", "/image 'no where.png'", "hello"], Conversation(Parrot()), capsys
    )
    complaints = [line for line in shown.splitlines() if line.startswith("(")]
    assert len(complaints) == 3
    assert "half.jpg" in complaints[0]
    assert "The image no where.png does not exist" in complaints[2]
    assert "turn 1, 0 images" in shown


def test_a_question_that_fails_leaves_no_trace(capsys, photo):
    conversation = Conversation(Parrot())
    shown = chat([f"/image {photo}", "a too long one", "a short one"], conversation, capsys)
    assert "(The prompt is too long.)" in shown
    assert "turn 1, 1 images" in shown


def test_reset_forgets_turns_and_images(capsys, photo):
    shown = chat(["hello", f"/image {photo}", "/reset", "hello"], Conversation(Parrot()), capsys)
    assert "turn 3" not in shown
    assert shown.count("turn 1, 0 images") == 2


@pytest.mark.parametrize("end", ["/quit", "/exit"])
def test_quit_ends_the_chat(capsys, end):
    assert "turn" not in chat([end, "hello"], Conversation(Parrot()), capsys)


def test_an_unknown_command_is_no_question(capsys):
    shown = chat(["/imgae photo.jpg", "  "], Conversation(Parrot()), capsys)
    assert "/image FILE" in shown
    assert "turn" not in shown


def test_an_answer_broken_off_stays_as_far_as_it_came(capsys):
    class Interrupted(Parrot):
        def chat_stream(self, messages, **options):
            yield "It is a"
            raise KeyboardInterrupt

    conversation = Conversation(Interrupted())
    assert "It is a ..." in chat(["What is it?"], conversation, capsys)
    assert [message["content"] for message in conversation.messages] == ["What is it?", "It is a"]


def test_the_command_prints_what_the_library_answers(checkpoint, photo):
    arguments = ["--max_new_tokens=12", "--temperature=1", "--seed=3", "--dtype=float32"]
    done = run("launch.chat", f"--model={checkpoint}", f"--image={photo}", "--prompt=What is it?", *arguments)
    assert done.returncode == 0, done.stderr
    model = load(checkpoint, "float32")
    answer = model.chat([question("What is it?", [photo])], max_new_tokens=12, temperature=1.0, seed=3)
    assert done.stdout.strip() == answer
    assert answer


MISTAKES = {
    "no such folder": (["--model=absent"], "absent does not exist"),
    "a folder without a model": (["--model=no_model"], "no_model holds no weights"),
    "truncated weights": (["--model=truncated_weights"], "model.safetensors is truncated"),
    "no tokenizer": (["--model=without_tokenizer"], "tokenizer.json is missing"),
    "no model named": ([], "--model is required"),
    "no such image": (["--image=absent.png"], "absent.png does not exist"),
    "a truncated image": (["--image=half.jpg"], "half.jpg cannot be read as an image"),
    "an image that is text": (["--image=text.png"], "text.png is not an image"),
    "an empty prompt": (["--prompt= "], "--prompt is empty"),
    "a negative length": (["--max_new_tokens=-5"], "--max_new_tokens=-5"),
    "a negative temperature": (["--temperature=-1"], "--temperature=-1"),
    "no number": (["--temperature=nan"], "--temperature=nan"),
    "a share above one": (["--top_p=1.5"], "--top_p=1.5"),
    "a negative seed": (["--seed=-1"], "--seed=-1"),
    "half a mesh": (["--mesh=1,2"], "--mesh=1,2"),
    "an unknown dtype": (["--dtype=int8"], "--dtype=int8"),
    "an argument without a flag": (["photo.jpg"], "photo.jpg"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_before_any_device_is_looked_for(refuses, spoiled, checkpoint, mistake):
    arguments, words = MISTAKES[mistake]
    model = [] if mistake == "no model named" or "--model" in arguments[0] else [f"--model={checkpoint}"]
    assert words in refuses("launch.chat", "--prompt=hello", *model, *arguments, cwd=spoiled)


def test_a_mesh_that_the_devices_do_not_make_is_refused(checkpoint):
    done = run("launch.chat", f"--model={checkpoint}", "--prompt=hello", "--mesh=1,1,3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there are 8" in done.stderr


def test_a_wrong_config_names_the_field(refuses, spoiled):
    file = spoiled / "without_tokenizer" / "config.json"
    values = json.loads(file.read_text())
    values["language_config"]["hidden_act"] = "relu"
    file.write_text(json.dumps(values))
    assert "hidden_act" in refuses("launch.chat", "--model=without_tokenizer", "--prompt=hello", cwd=spoiled)
