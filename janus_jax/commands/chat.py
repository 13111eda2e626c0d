"""Answers a question about images, or chats in the terminal.

    janus-chat --model DIR --image FILE --prompt TEXT

With --prompt, the command prints the answer and exits. Without --prompt, it reads messages from the terminal: /image
FILE, or a file dropped onto the terminal, adds an image to the next message, /reset starts a new conversation, /quit or
Ctrl-D ends the chat. The images of a message come before its text. To insert them into the text, write one
<image_placeholder> per image.
"""

from collections.abc import Sequence
from typing import Any, cast, get_args

from absl import flags

from janus_jax.commands import cli, model_flags
from janus_jax.commands.chat_repl import HELP, Conversation, chat, expand_path, question
from janus_jax.processing import Background, open_image

_IMAGE = flags.DEFINE_multi_string("image", [], "image file that the question is about; may be repeated")
_BACKGROUND = flags.DEFINE_enum(
    "background",
    "none",
    get_args(Background),
    "background of transparent pixels; none: alpha is dropped, and transparent pixels show their hidden colors",
)
_PROMPT = flags.DEFINE_string("prompt", None, "the question (default: chat in the terminal)")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "maximum number of tokens of an answer, which also ends where the model's context ends (default: 512)",
    lower_bound=1,
)
_TEMPERATURE = model_flags.define_scale("temperature", 0.0, "sampling temperature; 0 takes the most likely token")
_SYSTEM_PROMPT = flags.DEFINE_string(
    "system_prompt", None, "system prompt that replaces the model's; an empty text removes it"
)
flags.adopt_module_key_flags(model_flags)
cli.flag_group("Sampling", _MAX_NEW_TOKENS, _TEMPERATURE)


def main(_: Sequence[str]) -> None:
    """Answers --prompt, or starts a chat in the terminal."""
    prompt = None if _PROMPT.value is None else model_flags.require_text(_PROMPT.value, "--prompt")
    background = cast(Background, _BACKGROUND.value)
    images = [open_image(expand_path(path), background=background) for path in _IMAGE.value]
    options: dict[str, Any] = {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "temperature": _TEMPERATURE.value,
        "top_k": model_flags.TOP_K.value,
        "top_p": model_flags.TOP_P.value,
        "seed": model_flags.SEED.value,
        "system_prompt": _SYSTEM_PROMPT.value,
    }
    opened = model_flags.open_model()
    if prompt is not None:
        # Checked before the parameters are loaded.
        from janus_jax.generation.text import answer_limits

        tokens = opened.processor.understanding_sequence([question(prompt, images)], None, _SYSTEM_PROMPT.value)
        answer_limits([len(tokens)], _MAX_NEW_TOKENS.value, opened.config.llm.max_positions)
    conversation = Conversation(model_flags.load_model(opened), options, background, images)
    if prompt is None:
        print(f"{HELP}\nCtrl-C interrupts an answer. The first answer takes longer, as programs are compiled.\n")
        chat(conversation)
        return
    for piece in conversation.ask(prompt):
        print(piece, end="", flush=True)
    print()


def run() -> None:
    """Entry point of `janus-chat`."""
    cli.run(main, name="janus-chat")
