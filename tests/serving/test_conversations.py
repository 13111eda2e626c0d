"""Pictures in answers of /v1/chat/completions."""

import numpy as np
import openai
import pytest

from janus_jax.errors import ContextExceeded
from janus_jax.generation.engine import Engine, EngineOptions, Failed, Finished, Handle, Picture, TextPiece, Usage
from janus_jax.processing import ImageWithTokens, answer_message
from janus_jax.serving.images import TokenStore
from tests import tiny
from tests.generation.engine.test_converse import conversation_model
from tests.serving.conftest import data_url, model, picture, running

DRAW = {"role": "user", "content": "Draw it in ink."}
MODALITIES = {"modalities": ["text", "image"]}
PIECES = [
    TextPiece(" Two: "),
    Picture(0, tiny.picture(0), np.arange(9)),
    TextPiece(" and "),
    Picture(1, tiny.picture(1), np.arange(9) + 1),
    TextPiece("\n"),
]


class ReplayEngine(Engine):
    """An engine that answers with given events, and keeps the last request."""

    def __init__(self, *events):
        super().__init__(model(), EngineOptions(slots=3, max_length=64, buckets=(64,)))
        self._events = events

    def submit(self, request, on_event=None):
        self.request = request
        handle = Handle(on_event)
        for event in self._events:
            handle.send(event)
        return handle


def message_pieces(events):
    return [event.text if isinstance(event, TextPiece) else event.with_tokens for event in events]


def asked(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, extra_body=MODALITIES, **options)


def streamed(client, messages, **options):
    """Returns the message whose text and images were streamed."""
    text, images = "", []
    for chunk in asked(client, messages, stream=True, **options):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        images += getattr(delta, "images", ())
    return {"role": "assistant", "content": text, "images": images}


@pytest.mark.parametrize("stream", [False, True])
def test_pictures_have_their_positions_and_come_back_with_their_tokens(stream):
    engine = ReplayEngine(*PIECES, Finished("stop", Usage(5, 30)))
    with running(engine) as server:
        if stream:
            answer = streamed(server.client, [DRAW])
            assert answer["content"] == "Two:  and \n"
        else:
            answer = asked(server.client, [DRAW]).choices[0].message.to_dict()
            assert answer["content"] == "Two:  and "
        assert [(image["index"], image["text_offset"]) for image in answer["images"]] == [(0, 5), (1, 10)]
        for image, number in zip(answer["images"], (0, 1), strict=True):
            found = picture(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
            np.testing.assert_array_equal(found, tiny.picture(number))
        asked(server.client, [DRAW, answer, DRAW])
    found, expected = engine.request.messages[1], answer_message(message_pieces(PIECES))
    assert found["content"].strip() == expected["content"]
    for one, other in zip(found["images"], expected["images"], strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_pictures_of_the_assistant_without_positions_come_after_the_text():
    engine = ReplayEngine(Finished("stop", Usage()))
    url = {"type": "image_url", "image_url": {"url": data_url(tiny.picture(2))}}
    with running(engine) as server:
        asked(server.client, [DRAW, {"role": "assistant", "content": "Here:", "images": [url]}, DRAW])
        assert engine.request.messages[1]["content"] == "Here:<image_placeholder>"
        asked(server.client, [DRAW, {"role": "assistant", "content": [url, {"type": "text", "text": "That."}]}, DRAW])
        assert engine.request.messages[1]["content"] == "<image_placeholder>That."


def test_a_conversation_without_room_for_its_next_picture_is_an_error_of_the_client():
    engine = ReplayEngine(Failed(ContextExceeded("The conversation is too long.")))
    with running(engine) as server, pytest.raises(openai.BadRequestError, match="too long") as caught:
        asked(server.client, [DRAW])
    assert caught.value.code == "context_length_exceeded"


def test_the_oldest_tokens_are_dropped():
    store = TokenStore(2)
    for number in range(3):
        store.add(ImageWithTokens(tiny.picture(number), np.arange(number)))
    assert not isinstance(store.restore(tiny.picture(0)), ImageWithTokens)
    assert len(store.restore(tiny.picture(2)).tokens) == 2


@pytest.mark.nightly
def test_a_conversation_is_that_of_the_model():
    janus = conversation_model(False)
    settings = {"image_sampling": {"max_images": 1}, "seed": 3, "max_new_tokens": 40}
    pieces = list(janus.converse([DRAW], **settings))
    images = [piece for piece in pieces if isinstance(piece, ImageWithTokens)]
    assert images
    engine = Engine(janus, EngineOptions(slots=3, rows=(3,), max_length=320, buckets=(320,)))
    engine.start(warm_up=False)
    body = MODALITIES | {"image_config": {"max_images": 1}}
    with running(engine) as server:
        create = server.client.chat.completions.create
        answer = create(model="tiny", messages=[DRAW], extra_body=body, seed=3, max_tokens=40).choices[0].message
    engine.stop()
    assert answer.content == "".join(piece for piece in pieces if isinstance(piece, str)).strip()
    for found, image in zip(answer.images, images, strict=True):
        pixels = np.array(picture(found["image_url"]["url"].partition(",")[2]), int)
        np.testing.assert_allclose(pixels, np.array(image.image, int), atol=1)
