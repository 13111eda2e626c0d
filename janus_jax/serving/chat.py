"""The route /v1/chat/completions."""

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import fastapi
from fastapi.responses import JSONResponse, Response

from janus_jax.generation.engine import ChatRequest, Finished, Picture, TextPiece, Usage
from janus_jax.serving.bodies import parse, read_form, read_json
from janus_jax.serving.errors import ApiError, to_api_error
from janus_jax.serving.images import TokenStore, data_url, read_image
from janus_jax.serving.protocol import ChatBody
from janus_jax.serving.service import Service
from janus_jax.serving.streams import Answer, EventResponse, EventStream, collect

router = fastapi.APIRouter()

_REASONS = {"stop": "stop", "length": "length", "cancelled": "stop"}


@router.post("/v1/chat/completions")
async def chat_completions(request: fastapi.Request) -> Response:
    """Answers a conversation, at once or as a stream of pieces.

    With `modalities` of text and image, the model may generate pictures in its answer. They are data URLs in the
    field `images` of the message or of a delta, each with its position in the text.

    The body is JSON. It can also be a multipart form with the JSON in the field `body`; image parts name its files as
    `upload:FIELD`.
    """
    service = Service.of(request)
    body, files = await _read(request, service)
    service.check_model(body.model)
    options = service.options

    def engine_request() -> ChatRequest:
        return body.request(lambda url, param: service.tokens.restore(read_image(url, files, options, param)), options)

    # Decoding images takes time, so it runs in a thread.
    chat = await asyncio.to_thread(engine_request)
    service.log("chat", [message["content"] for message in chat.messages])
    stream = await service.submit(chat, "chat")
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": service.name}
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = _chunks(stream, head | {"object": "chat.completion.chunk"}, wants_usage, service.tokens)
        return EventResponse(chunks, stream)
    answer = await collect(stream, request)
    choice = {
        "index": 0,
        "message": await asyncio.to_thread(_message, answer, service.tokens),
        "logprobs": None,
        "finish_reason": _REASONS[answer.finished.reason],
    }
    usage = _usage(answer.finished.usage)
    return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": usage})


async def _read(request: fastapi.Request, service: Service) -> tuple[ChatBody, dict[str, bytes]]:
    if not request.headers.get("content-type", "").startswith("multipart/"):
        return await read_json(request, ChatBody), {}
    fields, files = await read_form(request, service.options)
    if "body" not in fields:
        raise ApiError(400, "The form has no field body; put the JSON of the request into it.", param="body")
    return parse(fields["body"], ChatBody), dict(files)


def _message(answer: Answer, tokens: TokenStore) -> dict[str, Any]:
    """Returns an answer without white space at its ends."""
    texts, pictures = [""], list[Picture]()
    for piece in answer.pieces:
        if isinstance(piece, Picture):
            pictures.append(piece)
            texts.append("")
        else:
            texts[-1] += piece.text
    texts[0] = texts[0].lstrip()
    texts[-1] = texts[-1].rstrip()
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None}
    if pictures:
        offsets = itertools.accumulate(map(len, texts[:-1]))
        message["images"] = [_image(picture, offset, tokens) for picture, offset in zip(pictures, offsets, strict=True)]
    return message


def _image(picture: Picture, offset: int, tokens: TokenStore) -> dict[str, Any]:
    tokens.add(picture.with_tokens)
    url = {"url": data_url(picture.image)}
    return {"type": "image_url", "index": picture.number, "image_url": url, "text_offset": offset}


async def _chunks(
    stream: EventStream, head: dict[str, Any], wants_usage: bool, tokens: TokenStore
) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return sse(head | {"choices": [choice]})

    started, offset = False, 0
    try:
        yield chunk({"role": "assistant", "content": ""})
        async with contextlib.aclosing(stream.events()) as events:
            async for event in events:
                if isinstance(event, TextPiece):
                    # White space before the answer is removed, as in an answer that is not streamed.
                    text = event.text if started else event.text.lstrip()
                    started, offset = started or bool(text), offset + len(text)
                    if text:
                        yield chunk({"content": text})
                elif isinstance(event, Picture):
                    started = True
                    yield chunk({"images": [await asyncio.to_thread(_image, event, offset, tokens)]})
                elif isinstance(event, Finished):
                    yield chunk({}, _REASONS[event.reason])
                    if wants_usage:
                        yield sse(head | {"choices": [], "usage": _usage(event.usage)})
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield sse(to_api_error(error).body())


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def sse(content: dict[str, Any], event: str | None = None) -> str:
    """Returns a server-sent event."""
    head = "" if event is None else f"event: {event}\n"
    return f"{head}data: {json.dumps(content)}\n\n"
