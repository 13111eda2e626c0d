"""Asks a model about pictures, or about nothing but text.

    janus-chat --model DIR --image FILE --prompt TEXT

answers once. Without --prompt it is a chat in the terminal; in it, /image FILE shows a picture with the next line,
/reset forgets everything, and /quit or Ctrl-D ends. The answer goes to stdout as it is written.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from janus_jax.commands import cli
from janus_jax.commands import model_flags as models
from janus_jax.commands.chat_repl import HELP, Conversation, talk
from janus_jax.processing import open_image

_IMAGE = flags.DEFINE_multi_string("image", [], "a picture that the question is about; may be given several times")
_PROMPT = flags.DEFINE_string("prompt", None, "the question (default: a chat in the terminal)")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 512, "ids of an answer at most", lower_bound=1)
_TEMPERATURE = models.define_amount("temperature", 0.0, "0 writes the likeliest answer; more, a freer one")
_SYSTEM_PROMPT = flags.DEFINE_string("system_prompt", None, "in place of the model's own; empty for none")
flags.adopt_module_key_flags(models)


def main(_: Sequence[str]) -> None:
    """Answers --prompt, or chats."""
    prompt = None if _PROMPT.value is None else models.some_text(_PROMPT.value, "--prompt")
    images = [open_image(path) for path in _IMAGE.value]
    options: dict[str, Any] = {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "temperature": _TEMPERATURE.value,
        "top_k": models.TOP_K.value,
        "top_p": models.TOP_P.value,
        "seed": models.SEED.value,
        "system_prompt": _SYSTEM_PROMPT.value,
    }
    conversation = Conversation(models.load_model(), options, images)
    if prompt is None:
        print(f"{HELP}\nCtrl-C breaks an answer off. The first answer waits for the compiler.\n")
        talk(conversation)
        return
    for piece in conversation.ask(prompt):
        print(piece, end="", flush=True)
    print()


def run() -> None:
    """Runs `janus-chat`."""
    cli.run(main, name="janus-chat")
