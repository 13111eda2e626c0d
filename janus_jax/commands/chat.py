"""Answers a question about images, or chats in the terminal.

    janus-chat --model DIR --image FILE --prompt TEXT

With --prompt, the command prints the answer and exits. Without --prompt, it reads messages from the terminal: /image
FILE, or a file dropped onto the terminal, adds an image to the next message, /reset starts a new conversation, /quit or
Ctrl-D ends the chat. The images of a message come before its text. To insert them into the text, write one
<image_placeholder> per image.

A Janus that was trained on conversations with generated images can generate images in its answers. They are written to
OUT/00000.png, OUT/00001.png ..., and shown in terminals with the graphics protocol of kitty or with sixels.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, cast, get_args

from absl import flags

from janus_jax.buckets import as_path
from janus_jax.commands import cli, model_flags
from janus_jax.commands.background_flag import define_background
from janus_jax.commands.chat_repl import HELP, Conversation, ImageOutput, chat, expand_path, print_answer, question
from janus_jax.commands.terminal_images import Protocol, detect_protocol
from janus_jax.config import JanusConfig
from janus_jax.processing import Background, Unconditional, open_image

_IMAGE = flags.DEFINE_multi_string("image", [], "image file that the question is about; may be repeated")
_BACKGROUND = define_background()
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
_OUT = flags.DEFINE_string("out", "chat_images", "folder to which generated images are written; created when needed")
_SHOW_IMAGES = flags.DEFINE_enum(
    "show_images",
    "auto",
    ["auto", *get_args(Protocol)],
    "how generated images are shown; auto: as the terminal can",
)
_GUIDANCE_SCALE = model_flags.define_scale(
    "guidance_scale", None, "guidance scale of images; 1 disables guidance (default: 5)"
)
_IMAGE_TEMPERATURE = model_flags.define_scale(
    "image_temperature", None, "sampling temperature of image tokens; 0 takes the most likely token (default: 1)"
)
_UNCONDITIONAL = flags.DEFINE_enum(
    "unconditional",
    None,
    get_args(Unconditional),
    "what guidance removes: all of the conversation, or the last message, which suits requests to change an image "
    "(default: all)",
)
_PARALLEL_WINDOW = model_flags.define_parallel_window()
flags.adopt_module_key_flags(model_flags)
cli.flag_group("Sampling", _MAX_NEW_TOKENS, _TEMPERATURE)
cli.flag_group(
    "Generated images", _OUT, _SHOW_IMAGES, _GUIDANCE_SCALE, _IMAGE_TEMPERATURE, _UNCONDITIONAL, _PARALLEL_WINDOW
)


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
    out = as_path(_OUT.value)
    opened = model_flags.open_model()
    settings = _image_settings()
    generates = isinstance(opened.config, JanusConfig)
    if generates or settings:
        # Checked before the parameters are loaded.
        from janus_jax.generation.interleaved import make_conversation_image_sampler

        options["image_sampling"] = vars(make_conversation_image_sampler(opened.config, **settings))
    if prompt is not None:
        from janus_jax.generation.text import answer_limits

        tokens = opened.processor.understanding_sequence([question(prompt, images)], None, _SYSTEM_PROMPT.value)
        answer_limits([len(tokens)], _MAX_NEW_TOKENS.value, opened.config.llm.max_positions)
    protocol: Protocol = "none"
    if _SHOW_IMAGES.value != "auto":
        protocol = cast(Protocol, _SHOW_IMAGES.value)
    elif generates:
        # Before the first message, because the terminal's answer comes where the user types.
        protocol = detect_protocol(sys.stdin, sys.stdout, os.environ)
    model = model_flags.load_model(opened)
    respond = model.converse if generates else model.chat_stream
    conversation = Conversation(respond, options, background, images)
    output = ImageOutput(out, protocol, model_flags.image_metadata(opened, options.get("image_sampling", {})))
    if prompt is None:
        print(f"{HELP}\nCtrl-C interrupts an answer. The first answer takes longer, as programs are compiled.\n")
        chat(conversation, output)
    else:
        print_answer(conversation.ask(prompt), prompt, output)


def _image_settings() -> dict[str, Any]:
    """Returns the settings of `ConversationImageSampler` that the flags give."""
    holders: dict[str, flags.FlagHolder[Any]] = {
        "guidance_scale": _GUIDANCE_SCALE,
        "temperature": _IMAGE_TEMPERATURE,
        "unconditional": _UNCONDITIONAL,
    }
    given = {name: holder.value for name, holder in holders.items() if holder.value is not None}
    return given | model_flags.window_setting(_PARALLEL_WINDOW)


def run() -> None:
    """Entry point of `janus-chat`."""
    cli.run(main, name="janus-chat")
