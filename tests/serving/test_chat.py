"""/v1/chat/completions with the openai package over a socket."""

import io
import json

import httpx
import openai
import pytest

from tests import tiny
from tests.serving.conftest import KEY, data_url, until

HELLO = [{"role": "user", "content": "Hello"}]
IMAGES = {"modalities": ["text", "image"]}
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.slow
def test_an_answer_is_that_of_the_model(server):
    answer = server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12)
    assert answer.choices[0].message.content == server.model.chat(HELLO, max_new_tokens=12)
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.prompt_tokens == len(server.model.processor.understanding_sequence(HELLO))
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_streamed_pieces_add_up_to_the_answer(server):
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "stream_options": {"include_usage": True}}
    chunks = list(server.client.chat.completions.create(model="tiny", messages=HELLO, stream=True, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.rstrip() == server.model.chat(HELLO, max_new_tokens=12, temperature=1.0, seed=3)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] is not None
    assert chunks[-1].usage.completion_tokens > 0


def parts(url):
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is in the picture?"}]


@pytest.mark.nightly
def test_images_come_as_data_urls_or_as_files_of_a_form(server):
    image = tiny.picture(0)
    messages = [{"role": "user", "content": parts(data_url(image))}]
    answer = server.client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    asked = [{"role": "user", "content": "<image_placeholder>\nWhat is in the picture?", "images": [image]}]
    expected = server.model.chat(asked, max_new_tokens=8)
    assert answer.choices[0].message.content == expected
    body = {"messages": [{"role": "user", "content": parts("upload:photo")}], "max_tokens": 8}
    stream = io.BytesIO()
    image.save(stream, "png")
    response = httpx.post(
        f"{server.url}/v1/chat/completions",
        data={"body": json.dumps(body)},
        files={"photo": stream.getvalue()},
        headers=HEADERS,
        timeout=300,
    )
    assert response.json()["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": "a <image_placeholder>"}]}, "contains <image_placeholder>"),
        ({"messages": [{"role": "user", "content": parts("data:image/png;base64,AAAA")}]}, "not an image"),
        (
            {"messages": [{"role": "user", "content": parts("http://127.0.0.1/cat.png")}]},
            "reads no images",
        ),
        ({"messages": [{"role": "user", "content": parts("file:///etc/passwd")}]}, "not a data URL"),
        ({"messages": [{"role": "user", "content": parts(data_url(tiny.picture(0, (200, 200))))}]}, "10000 pixels"),
        ({"messages": [{"role": "user", "content": parts(data_url(tiny.picture(0))) * 5}]}, "5 images"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "allows 100000"),
        ({"messages": [{"role": "user", "content": "x " * 900}]}, "context|tokens"),
        ({"temperature": -1}, "temperature"),
        ({"seed": 2**32}, "seed"),
        ({"n": 2}, "n is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "at most 4"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"extra_body": {"image_config": {"top_k": 3}}}, "needs modalities"),
        ({"extra_body": IMAGES | {"image_config": {"aspect_ratio": "1:1"}}}, "image_config.aspect_ratio"),
        ({"extra_body": IMAGES | {"image_config": {"max_images": 5}}}, "allows 4"),
        ({"extra_body": IMAGES | {"image_config": {"unconditional": "x"}}}, "unconditional"),
        ({"messages": [HELLO[0] | {"images": [{"image_url": {"url": "data:,"}}]}]}, "only messages of the assistant"),
    ],
)
def test_bad_requests_are_errors_of_openai(server, changes, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        server.client.chat.completions.create(**({"model": "tiny", "messages": HELLO} | changes))
    assert caught.value.body["type"] == "invalid_request_error"


def test_another_model_is_not_found(server):
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        server.client.chat.completions.create(model="gpt-5", messages=HELLO)


@pytest.mark.parametrize("key", ["", "sk-wrong", "sk-tesü"])
def test_keys_are_checked(server, key):
    headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
    for path in ("models", "chat/completions", "images/generations"):
        response = httpx.request("GET" if path == "models" else "POST", f"{server.url}/v1/{path}", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"


def test_a_body_that_is_not_json_and_one_that_is_too_large_are_refused(server):
    url = f"{server.url}/v1/chat/completions"
    assert httpx.post(url, content=b"{", headers=HEADERS).json()["error"]["code"] == "invalid_json"
    large = b"x" * (2**20 + 1)
    assert httpx.post(url, content=large, headers=HEADERS).status_code == 413
    assert httpx.post(url, content=iter([large[: 2**19], large[2**19 :]]), headers=HEADERS).status_code == 413


@pytest.mark.nightly
def test_a_client_that_disconnects_frees_its_slot(server):
    before = server.engine.stats().cancelled
    body = {"messages": HELLO, "max_tokens": 300, "stream": True, "temperature": 1.0}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=300) as stream:
        next(stream.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body | {"stream": False}, headers=HEADERS, timeout=0.3)
    until(lambda: server.engine.stats().running == server.engine.stats().waiting == 0)
    assert server.engine.stats().rows_used == 0
    assert server.engine.stats().cancelled >= before + 1
