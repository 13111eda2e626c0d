"""Options of the server: limits, keys and addresses."""

import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.files import reading

KEYS_VARIABLE = "JANUS_API_KEYS"
"""Environment variable with API keys, separated by commas or white space."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of the server.

    Attributes:
      api_keys: Keys that clients may send. (): no key is needed.
      max_body_bytes: Maximum size of the body of a request.
      max_pixels: Maximum number of pixels of an image.
      max_images: Maximum number of images in a request, and of images that a request generates.
      max_prompt_chars: Maximum number of characters of the texts of a request.
      timeout: Maximum number of seconds from the submission of a request to its end.
      drain_seconds: Seconds that running requests have after SIGTERM.
      allow_remote_images: Whether image URLs may be addresses on the web.
      remote_seconds: Maximum number of seconds of a download of an image.
      cors_origins: Origins of web pages that may call the server. (): none.
      log_prompts: Whether prompts are logged.
      kept_pictures: Number of pictures that the server keeps for their URLs.
      page: Whether the server has a web page.
    """

    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 2**20
    max_pixels: int = 2**25
    max_images: int = 10
    max_prompt_chars: int = 100_000
    timeout: float = 600.0
    drain_seconds: float = 60.0
    allow_remote_images: bool = False
    remote_seconds: float = 10.0
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False
    kept_pictures: int = 256
    page: bool = False

    def accepts(self, key: str) -> bool:
        """Returns whether a client with this key may use the server. Takes equally long for all keys of one length."""
        sent = key.encode("utf-8", "surrogateescape")
        # All keys are compared, so that the time does not depend on which one matches.
        return bool(sum([hmac.compare_digest(sent, one.encode()) for one in self.api_keys]))


def read_api_keys(file: str | None) -> tuple[str, ...]:
    """Returns the keys of a file, one a line, and of the environment variable `JANUS_API_KEYS`.

    Empty lines and lines that start with # are skipped.

    Raises:
      JanusError: The file is unreadable or has no key, or a key is not printable ASCII.
    """
    keys = os.environ.get(KEYS_VARIABLE, "").replace(",", " ").split()
    if file is not None:
        path = Path(file)
        with reading(path):
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise JanusError(f"{file} has no API key; write one a line.")
        keys += found
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise JanusError("An API key has white space or characters outside ASCII; use letters, digits and - _ .")
    return tuple(dict.fromkeys(keys))
