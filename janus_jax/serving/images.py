"""Images of requests: data URLs, uploaded files and, if allowed, addresses on the web; pictures of answers."""

import base64
import hashlib
import http.client
import io
import ipaddress
import secrets
import socket
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.processing import ImageWithTokens, open_image
from janus_jax.serving.errors import ApiError
from janus_jax.serving.options import ServerOptions

PictureFormat = Literal["png", "jpeg", "webp"]

_UPLOAD = "upload:"
"""Scheme of a URL that names an uploaded file of the same request."""


def read_image(url: str, files: Mapping[str, bytes], options: ServerOptions, param: str) -> Image.Image:
    """Reads an image of a request.

    Args:
      url: A `data:image/...;base64,` URL, `upload:NAME` for a file of the same multipart request, or an address on the
        web.
      files: Uploaded files by name.
      options: Options of the server.
      param: Name of the field, for messages.

    Raises:
      ApiError: The URL is not allowed or not reachable, or the image is damaged or too large.
    """
    scheme = url.partition(":")[0].lower()
    if url.startswith(_UPLOAD):
        name = url.removeprefix(_UPLOAD)
        if name not in files:
            raise ApiError(400, f"{param}: the request has no file {name!r}.", param=param)
        return decode(files[name], options, param)
    if scheme == "data":
        return decode(url, options, param)
    if scheme not in ("http", "https"):
        raise ApiError(400, f"{param}: the image is not a data URL; send data:image/png;base64,...", param=param)
    if not options.allow_remote_images:
        raise ApiError(
            400,
            f"{param}: this server reads no images from the web; send a data URL.",
            param=param,
            code="remote_image",
        )
    return decode(download(url, options, param), options, param)


def decode(source: str | bytes, options: ServerOptions, param: str) -> Image.Image:
    """Decodes a data URL or a file.

    Raises:
      ApiError: The image is damaged or too large.
    """
    try:
        return open_image(source, max_pixels=options.max_pixels)
    except JanusError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_image") from error


def download(url: str, options: ServerOptions, param: str) -> bytes:
    """Downloads a file from a public address. Redirects are refused.

    Raises:
      ApiError: The address is private, or the download fails, takes too long or is too large.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        address = _public_address(host, port)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        end = time.monotonic() + options.remote_seconds
        connection = kind(host, port, timeout=options.remote_seconds)
        # Connects to the address that was checked: another look-up of the name could give a private one.
        connection._create_connection = lambda _, *rest: socket.create_connection((address, port), *rest)  # type: ignore[attr-defined]
        try:
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request("GET", path, headers={"User-Agent": "janus-serve"})
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(f"the server answered with status {response.status}", param)
            content = bytearray()
            while part := response.read1(65536):
                content += part
                if len(content) > options.max_body_bytes:
                    raise _refused(f"the file has more than {options.max_body_bytes} bytes", param)
                if time.monotonic() > end:
                    raise _refused(f"the download took more than {options.remote_seconds:g} seconds", param)
            return bytes(content)
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        raise _refused("it cannot be downloaded", param) from None


def _public_address(host: str, port: int) -> str:
    found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    if not all(_is_public(address) for address in found):
        raise ValueError("private address")
    return min(found)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return (mapped or address).is_global and not address.is_multicast


def _refused(reason: str, param: str) -> ApiError:
    return ApiError(400, f"{param}: the image is not usable: {reason}.", param=param, code="remote_image")


def encode(image: Image.Image, kind: PictureFormat) -> bytes:
    """Encodes a picture as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return stream.getvalue()


def to_base64(content: bytes) -> str:
    """Returns bytes as text in base64."""
    return base64.b64encode(content).decode()


def data_url(image: Image.Image) -> str:
    """Returns a picture as a data URL, without loss."""
    return f"data:image/png;base64,{to_base64(encode(image, 'png'))}"


class TokenStore:
    """Image tokens of pictures of conversations, which encoding the pictures again would change.

    A client sends the whole conversation with each message. The tokens are found by the pixels of a picture, so that
    clients need not send tokens. The oldest are dropped first; such a picture is encoded again.
    """

    def __init__(self, count: int) -> None:
        self._count, self._lock = count, threading.Lock()
        self._tokens: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def add(self, picture: ImageWithTokens) -> None:
        """Stores the tokens of a picture."""
        with self._lock:
            self._tokens[_digest(picture.image)] = picture.tokens
            while len(self._tokens) > self._count:
                self._tokens.popitem(last=False)

    def restore(self, image: Image.Image) -> Image.Image | ImageWithTokens:
        """Returns a picture with its tokens, if they are stored."""
        with self._lock:
            tokens = self._tokens.get(_digest(image))
        return image if tokens is None else ImageWithTokens(image, tokens)


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(b"%d %d %s" % (*image.size, image.convert("RGB").tobytes())).digest()


class PictureStore:
    """Pictures of answers that clients fetch by their URL. The oldest are dropped first."""

    def __init__(self, count: int, seconds: float = 3600.0) -> None:
        self._count, self._seconds, self._lock = count, seconds, threading.Lock()
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def add(self, content: bytes, kind: PictureFormat) -> str:
        """Stores a file, and returns its name, which cannot be guessed."""
        name = f"{secrets.token_urlsafe(24)}.{kind}"
        with self._lock:
            self._files[name] = time.monotonic(), content
            while len(self._files) > self._count:
                self._files.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        """Returns a file; None if there is none, or no longer."""
        with self._lock:
            added, content = self._files.get(name, (0.0, b""))
            return content if content and time.monotonic() - added <= self._seconds else None
