"""The routes /v1/images/generations, /v1/images/edits and /files."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import fastapi
from fastapi.responses import JSONResponse, Response
from PIL import Image

from janus_jax.generation.engine import EditRequest, Finished, GenerateRequest, PartialPicture, Picture, Usage
from janus_jax.serving.bodies import parse, read_form, read_json
from janus_jax.serving.chat import sse
from janus_jax.serving.errors import ApiError, to_api_error
from janus_jax.serving.images import decode, encode, read_image, to_base64
from janus_jax.serving.protocol import PictureBody
from janus_jax.serving.service import Service
from janus_jax.serving.streams import EventResponse, EventStream, collect

router = fastapi.APIRouter()


@router.post("/v1/images/generations")
async def generations(request: fastapi.Request) -> Response:
    """Generates pictures from a prompt."""
    service, body = Service.of(request), await read_json(request, PictureBody)
    _check(service, body)
    return await _answer(request, body, body.generation(), "image_generation")


@router.post("/v1/images/edits")
async def edits(request: fastapi.Request) -> Response:
    """Edits pictures: a multipart form with the files `image` or `image[]`, or JSON with `images` as URLs."""
    service = Service.of(request)
    options, pictures = service.options, list[bytes]()
    if request.headers.get("content-type", "").startswith("application/json"):
        body = await read_json(request, PictureBody)
        urls = [one.image_url for one in body.images or ()]
    else:
        fields, files = await read_form(request, options)
        if unknown := sorted({name for name, _ in files} - {"image", "image[]"}):
            raise ApiError(400, f"The file {unknown[0]} is not supported; send image.", param=unknown[0])
        body, urls = parse(fields, PictureBody), []
        pictures = [content for _, content in files]
    _check(service, body)
    count = len(urls) + len(pictures)
    if not 1 <= count <= options.max_images:
        raise ApiError(400, f"The request has {count} images; send 1 to {options.max_images}.", param="image")

    def read() -> list[Image.Image]:
        return [
            *(read_image(url, {}, options, f"images.{index}") for index, url in enumerate(urls)),
            *(decode(content, options, "image") for content in pictures),
        ]

    return await _answer(request, body, body.edit(await asyncio.to_thread(read)), "image_edit")


@router.get("/files/{name}")
async def picture_file(name: str, request: fastapi.Request) -> Response:
    """Returns a picture of an answer with `response_format` url."""
    content = Service.of(request).pictures.get(name)
    if content is None:
        raise ApiError(404, "There is no such picture, or it was removed.", code="not_found")
    return Response(content, media_type=f"image/{name.rpartition('.')[2]}")


def _check(service: Service, body: PictureBody) -> None:
    service.check_model(body.model)
    body.check(service.side, service.options)


async def _answer(
    request: fastapi.Request,
    body: PictureBody,
    engine_request: GenerateRequest | EditRequest,
    kind: Literal["image_generation", "image_edit"],
) -> Response:
    service = Service.of(request)
    service.log(kind, [body.prompt])
    stream = await service.submit(engine_request, kind)
    if body.stream:
        chunks = _chunks(stream, service, body, kind)
        return EventResponse(chunks, stream)
    answer = await collect(stream, request)
    base = str(request.base_url)
    data = await asyncio.to_thread(lambda: [_item(service, body, picture, base) for picture in answer.pictures])
    return JSONResponse(_head(service, body) | {"data": data, "usage": _usage(answer.finished.usage)})


async def _chunks(stream: EventStream, service: Service, body: PictureBody, kind: str) -> AsyncIterator[str]:
    head, counts = _head(service, body), dict[int, int]()
    # The usage of a request is known at its end, so each picture is sent when the next one or the end comes.
    pending: dict[str, Any] | None = None
    try:
        async with contextlib.aclosing(stream.events()) as events:
            async for event in events:
                if isinstance(event, PartialPicture):
                    index = counts.get(event.number, 0)
                    counts[event.number] = index + 1
                    content = {"b64_json": await _encoded(event.image, body), "partial_image_index": index}
                    name = f"{kind}.partial_image"
                    yield sse(head | content | {"type": name, "index": event.number}, name)
                elif isinstance(event, Picture):
                    if pending is not None:
                        yield sse(pending, pending["type"])
                    content = {"b64_json": await _encoded(event.image, body), "index": event.number}
                    pending = head | content | {"type": f"{kind}.completed"}
                elif isinstance(event, Finished) and pending is not None:
                    yield sse(pending | {"usage": _usage(event.usage)}, pending["type"])
    except Exception as error:
        yield sse(to_api_error(error).body(), "error")


async def _encoded(image: Image.Image, body: PictureBody) -> str:
    return to_base64(await asyncio.to_thread(encode, image, body.output_format or "png"))


def _item(service: Service, body: PictureBody, picture: Picture, base: str) -> dict[str, Any]:
    kind = body.output_format or "png"
    content = encode(picture.image, kind)
    if body.response_format == "url":
        return {"url": f"{base}files/{service.pictures.add(content, kind)}"}
    return {"b64_json": to_base64(content)}


def _head(service: Service, body: PictureBody) -> dict[str, Any]:
    size = f"{service.side}x{service.side}"
    return {"created": int(time.time()), "size": size, "output_format": body.output_format or "png"}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "input_tokens_details": {"text_tokens": usage.prompt_tokens, "image_tokens": 0},
    }
