"""The application: routes, authentication, limits and errors."""

import base64
import binascii
from collections.abc import Awaitable, Callable

import fastapi
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.routing import Match

from janus_jax.generation.engine import Engine
from janus_jax.serving import chat, pictures
from janus_jax.serving.bodies import BodyLimit
from janus_jax.serving.errors import ApiError, add_handlers, to_api_error
from janus_jax.serving.images import PictureStore
from janus_jax.serving.metrics import Metrics
from janus_jax.serving.options import ServerOptions
from janus_jax.serving.service import Service

router = fastapi.APIRouter()
_ROUTERS = (router, chat.router, pictures.router)

_OPEN = ("/health", "/ready", "/metrics", "/files/")
"""Routes that need no key. The names of files cannot be guessed."""

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")

# The browser contacts no other host, whatever an answer of the model contains.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
}


def make_app(engine: Engine, name: str, side: int, options: ServerOptions) -> fastapi.FastAPI:
    """Returns the application of a server. The caller starts and stops the engine.

    Args:
      engine: The engine.
      name: Name of the model for clients.
      side: Side of the model's pictures in pixels.
      options: Options of the server.
    """
    # The documentation pages load scripts from the web.
    app = fastapi.FastAPI(title="janus_jax", docs_url=None, redoc_url=None)
    metrics = Metrics(engine)
    app.state.service = Service(engine, name, side, options, metrics, PictureStore(options.kept_pictures))
    add_handlers(app)
    for one in _ROUTERS:
        app.include_router(one)
    # The middleware added first is the innermost: its errors reach the handlers above.
    app.add_middleware(BodyLimit, max_bytes=options.max_body_bytes)
    app.middleware("http")(_guard)
    # Also without origins, because gradio has rules of its own for an app without this middleware.
    app.add_middleware(
        CORSMiddleware, allow_origins=options.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
    )
    # After all other routes, because the page takes the paths that are left.
    app.add_api_route("/v1/{path:path}", _unknown, methods=[*_METHODS])
    if options.page:
        from janus_jax.serving.page import add_page

        add_page(app, app.state.service)
    return app


async def _unknown(request: fastapi.Request) -> Response:
    path = request.url.path
    routes = [route for one in _ROUTERS for route in one.routes if isinstance(route, APIRoute)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = {method for route in matching for method in route.methods or ()}
    if not allowed:
        raise ApiError(404, f"There is no route {request.method} {path}.", code="not_found")
    message = f"{path} does not accept {request.method}; use {' or '.join(sorted(allowed))}."
    response = ApiError(405, message, code="method_not_allowed").response()
    response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


async def _guard(request: fastapi.Request, call: Callable[[fastapi.Request], Awaitable[Response]]) -> Response:
    """Checks the API key, and counts responses."""
    service, path = Service.of(request), request.url.path
    is_page = service.options.page and not path.startswith(("/v1/", *_OPEN))
    try:
        if not is_page:
            if path.startswith("/v1/"):
                _check_key(request, service.options)
            response = await call(request)
        elif _has_password(request, service.options):
            response = await call(request)
            response.headers.update(_PAGE_HEADERS)
        else:
            text = "Log in with any user name and an API key as the password."
            response = PlainTextResponse(text, 401, {"WWW-Authenticate": 'Basic realm="janus-serve"'})
    except Exception as error:
        response = to_api_error(error).response()
    route = "page" if is_page else getattr(request.scope.get("route"), "path", "other")
    service.metrics.responses.labels(route, response.status_code).inc()
    return response


def _check_key(request: fastapi.Request, options: ServerOptions) -> None:
    if not options.api_keys:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not options.accepts(key.strip()):
        raise ApiError(401, "The API key is missing or wrong; send Authorization: Bearer KEY.", code="invalid_api_key")


def _has_password(request: fastapi.Request, options: ServerOptions) -> bool:
    """Whether a browser sends one of the API keys as the password of HTTP basic authentication."""
    if not options.api_keys:
        return True
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    try:
        _, _, key = base64.b64decode(encoded).decode("utf-8", "surrogateescape").partition(":")
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and options.accepts(key)


@router.get("/v1/models")
async def models(request: fastapi.Request) -> JSONResponse:
    """Lists the model."""
    return JSONResponse({"object": "list", "data": [_model(Service.of(request))]})


@router.get("/v1/models/{name:path}")
async def model(name: str, request: fastapi.Request) -> JSONResponse:
    """Returns the model."""
    service = Service.of(request)
    service.check_model(name)
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, str | int]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "janus_jax"}


@router.get("/health")
async def health() -> PlainTextResponse:
    """Answers while the process runs."""
    return PlainTextResponse("ok")


@router.get("/ready")
async def ready(request: fastapi.Request) -> PlainTextResponse:
    """Answers with 200 while the engine accepts requests, and with 503 before and after."""
    is_ready = Service.of(request).engine.is_ready
    return PlainTextResponse("ready" if is_ready else "not ready", 200 if is_ready else 503)


@router.get("/metrics")
async def metrics(request: fastapi.Request) -> Response:
    """Returns the metrics for Prometheus."""
    return Response(Service.of(request).metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
