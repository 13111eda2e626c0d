"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping
from typing import Any

import fastapi
from absl import logging
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from janus_jax.errors import ContextExceeded, JanusError
from janus_jax.generation.engine import EngineClosed, Overloaded

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that the client receives.

    Attributes:
      status: HTTP status.
      message: One sentence.
      param: Name of the field that is wrong.
      code: Short name of the error.
      retry_after: Seconds after which the client should try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """Returns the body of the answer."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the answer."""
        headers: Mapping[str, str] = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        return JSONResponse(self.body(), self.status, headers=dict(headers))


def to_api_error(error: Exception) -> ApiError:
    """Converts an exception of a request. The messages of unexpected exceptions are logged, not sent."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, JanusError):
        code = "context_length_exceeded" if isinstance(error, ContextExceeded) else None
        return ApiError(400, str(error), code=code)
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), code="queue_full", retry_after=2)
    if isinstance(error, EngineClosed):
        return ApiError(503, "The server is starting or stopping; try again later.", code="not_ready", retry_after=5)
    logging.error("A request has failed: %s", type(error).__name__, exc_info=error)
    return ApiError(500, "The server failed to compute this request.", code="internal_error")


def failed(error: Exception) -> ApiError:
    """Converts the error of a request that failed while it was computed. Only a full context is the client's fault."""
    if isinstance(error, ContextExceeded):
        return to_api_error(error)
    logging.error("A request has failed on the device: %s", error)
    return ApiError(500, "The model failed to compute this request.", code="model_error")


def add_handlers(app: fastapi.FastAPI) -> None:
    """Makes an app answer all errors in OpenAI's form."""

    async def invalid(_: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return ApiError(400, f"{param or 'The body'}: {first['msg']}.", param=param).response()

    async def http(_: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, f"{error.detail}.", code="http_error").response()

    async def other(_: fastapi.Request, error: Exception) -> JSONResponse:
        return to_api_error(error).response()

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, JanusError, Overloaded, EngineClosed, Exception):
        app.add_exception_handler(kind, other)
