"""Rendered conversations equal those of the reference."""

import json
from pathlib import Path

import pytest

from janus_jax.errors import JanusError
from janus_jax.processing import TEMPLATES, UNDERSTANDING_SYSTEM_PROMPT

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/data/prompts.json").read_text(encoding="utf-8"))


def messages_of(*turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("entry", GOLDEN, ids=range(len(GOLDEN)))
def test_prompt_equals_the_reference(entry):
    assert entry["system"] in ("", UNDERSTANDING_SYSTEM_PROMPT)
    template = next(t for t in TEMPLATES.values() if [t.user, t.assistant] == entry["roles"])
    assert template.render(messages_of(*entry["messages"]), entry["system"]).text == entry["prompt"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize(
    ("user", "assistant"), [("user", "assistant"), ("User", "Assistant"), ("<|User|>", "<|Assistant|>")]
)
def test_all_role_strings_are_accepted(template, user, assistant):
    prompt = template.render(messages_of((user, "Hi"), (assistant, "Ho")))
    assert prompt.text == f"{template.user}: Hi\n\n{template.assistant}: Ho<｜end▁of▁sentence｜>"


def test_leading_system_message_replaces_the_system_prompt():
    messages = messages_of(("system", "Be brief."), ("user", "Hi"))
    assert TEMPLATES["janus"].render(messages, "Be long.").text == "Be brief.\n\nUser: Hi\n\nAssistant:"


def test_answer_ranges_start_after_the_colon_and_include_end_of_sentence():
    messages = messages_of(("user", "One?"), ("assistant", " 1 "), ("user", "Two?"), ("assistant", "2"), ("user", "3?"))
    text, answers = TEMPLATES["janus_pro"].render(messages, UNDERSTANDING_SYSTEM_PROMPT)
    assert [text[start:end] for start, end in answers] == [" 1<｜end▁of▁sentence｜>", " 2<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "at least one message"),
        (messages_of(("system", "Be brief.")), "at least one message"),
        (messages_of(("user", "Hi"), ("system", "Be brief.")), "can only be the first"),
        (messages_of(("robot", "Hi")), "Message 0 has the role 'robot'; it must be one of system, user"),
        (messages_of(("user", "Hi"), ("assistant", None)), "Message 1 has the content None"),
        ([{"role": "user"}], 'Message 0 is .* "role" and "content"'),
        (["Hi"], 'Message 0 is .* "role" and "content"'),
    ],
)
def test_malformed_message_is_reported(messages, complaint):
    with pytest.raises(JanusError, match=complaint):
        TEMPLATES["janus"].render(messages)
