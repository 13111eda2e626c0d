"""Bodies of requests: their maximum size, JSON and multipart forms."""

import json
from typing import Any, TypeVar

import fastapi
import pydantic
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_jax.serving.errors import ApiError
from janus_jax.serving.options import ServerOptions

Model = TypeVar("Model", bound=pydantic.BaseModel)

_MAX_FILES = 64


class BodyLimit:
    """Middleware that refuses bodies over a number of bytes, whether or not they state their length."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app with a limited body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._max_bytes:
            await self._error().response()(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._error()
            return message

        await self._app(scope, limited, send)

    def _error(self) -> ApiError:
        return ApiError(413, f"The body has more than {self._max_bytes} bytes, the maximum.", code="body_too_large")


async def read_json(request: fastapi.Request, kind: type[Model]) -> Model:
    """Reads a body in JSON.

    Raises:
      ApiError: The body is not JSON, or a field is wrong.
    """
    return parse(await request.body(), kind)


async def read_form(request: fastapi.Request, options: ServerOptions) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """Reads a multipart form.

    Returns:
      Its fields, and its files in order as pairs of a field name and content.

    Raises:
      ApiError: The form is malformed, or has too many files.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "The content type must be multipart/form-data.", code="content_type")
    fields: dict[str, Any] = {}
    files: list[tuple[str, bytes]] = []
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FILES, max_part_size=options.max_body_bytes) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((name, await value.read()))
            else:
                fields[name] = value
    return fields, files


def parse(body: bytes | str | dict[str, Any], kind: type[Model]) -> Model:
    """Parses the fields of a body.

    Raises:
      ApiError: The body is not JSON, or a field is wrong.
    """
    try:
        content = json.loads(body) if isinstance(body, bytes | str) else body
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    try:
        return kind.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"])) or None
        raise ApiError(400, f"{param or 'The body'}: {first['msg']}.", param=param) from None
