"""Conversations with generated images, in the engine, with a tiny model that often writes begin-of-image."""

import dataclasses

import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.generation.engine import ChatRequest, ConverseRequest, Engine, EngineOptions, Picture, TextPiece
from janus_jax.processing import ImageWithTokens, answer_message
from tests import tiny

TIMEOUT = 300
EOS, BEGIN = (getattr(tiny.processor().tokenizer.special, name) for name in ("eos", "begin_of_image"))
PLAIN = [{"role": "user", "content": "Draw it in ink."}]
WITH_IMAGE = [{"role": "user", "content": "<image_placeholder>\nDraw it in ink.", "images": [tiny.picture(0)]}]


def conversation_model(features):
    """Returns the tiny model with a head that sometimes prefers begin-of-image and rarely end-of-sentence."""
    model = tiny.pretrained()
    weight = model.params["llm"]["head"]["weight"]
    weight = weight.at[BEGIN].multiply(1.5).at[EOS].multiply(0.1)
    params = {**model.params, "llm": {**model.params["llm"], "head": {"weight": weight}}}
    processor = dataclasses.replace(model.processor, interleaved_features=features)
    return dataclasses.replace(model, params=params, processor=processor)


def start(model):
    engine = Engine(model, EngineOptions(slots=8, rows=(8,), max_length=640, buckets=(256, 640)))
    engine.start(warm_up=False)
    return engine


def run_alone(model, request):
    options = {"seed": request.seed, "image_sampling": dict(request.image_sampling)}
    return list(model.converse(request.messages, None, request.max_new_tokens, request.temperature, **options))


def assert_equal(events, pieces):
    images = [piece for piece in pieces if isinstance(piece, ImageWithTokens)]
    pictures = [event for event in events if isinstance(event, Picture)]
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "".join(
        piece for piece in pieces if isinstance(piece, str)
    )
    assert [picture.number for picture in pictures] == list(range(len(images)))
    for picture, image in zip(pictures, images, strict=True):
        np.testing.assert_array_equal(picture.tokens, image.tokens)


@pytest.mark.nightly
@pytest.mark.parametrize("features", [False, True])
def test_answers_equal_those_of_the_conversation_alone(features):
    model = conversation_model(features)
    requests = [
        ConverseRequest(messages=WITH_IMAGE, max_new_tokens=40, seed=3, image_sampling={"max_images": 2}),
        ConverseRequest(
            messages=PLAIN,
            max_new_tokens=40,
            seed=3,
            temperature=0.7,
            image_sampling={"max_images": 2, "unconditional": "message", "guidance_scale": 3.0},
        ),
        ConverseRequest(messages=PLAIN, max_new_tokens=30, image_sampling={"max_images": 1, "guidance_scale": 1.0}),
    ]
    engine = start(model)
    chat = engine.submit(ChatRequest(messages=PLAIN, max_new_tokens=60))
    answers = [list(handle.events(TIMEOUT)) for handle in [engine.submit(request) for request in requests]]
    for request, events in zip(requests, answers, strict=True):
        assert_equal(events, run_alone(model, request))
    assert any(isinstance(event, Picture) for event in answers[0])
    assert "".join(model.chat_stream(PLAIN, max_new_tokens=60)) == chat.result(TIMEOUT).text
    # The next turn has the image tokens of the images in its context.
    pieces = [
        event.text if isinstance(event, TextPiece) else event.with_tokens
        for event in answers[0]
        if isinstance(event, TextPiece | Picture)
    ]
    messages = [*WITH_IMAGE, answer_message(pieces), {"role": "user", "content": "Again."}]
    following = ConverseRequest(messages=messages, max_new_tokens=20, seed=4, image_sampling={"max_images": 1})
    assert_equal(list(engine.submit(following).events(TIMEOUT)), run_alone(model, following))
    engine.stop()


@pytest.mark.slow
def test_an_image_without_room_fails_its_request_only():
    model = conversation_model(False)
    engine = start(model)
    long = [{"role": "user", "content": "Draw it in ink. " * 35}]
    with pytest.raises(JanusError, match="next image have"):
        engine.submit(ConverseRequest(messages=long, max_new_tokens=100)).result(TIMEOUT)
    request = ChatRequest(messages=PLAIN, max_new_tokens=10)
    assert engine.submit(request).result(TIMEOUT).text == "".join(model.chat_stream(PLAIN, max_new_tokens=10))
    engine.stop()
