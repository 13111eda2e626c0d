"""Rewards computed by an HTTP service, with batches, timeouts, retries and replicas.

    POST URL/score
    {"items": [{"prompt": "a red circle", "image": "<PNG in base64>", "metadata": {...}}, ...]}

    200
    {"rewards": [0.25, ...]}

One reward for each item, in order. Other status codes are errors, with a reason as {"detail": "..."}. 400 and other
codes of 4xx end the run; 408, 429 and 5xx are retried. `janus-rewards` is a server of this protocol.
"""

import base64
import io
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import requests
from absl import logging
from jaxtyping import Float, UInt8
from PIL import Image

from janus_jax.errors import JanusError, RewardUnavailable
from janus_jax.rewards.base import check_values, register_reward

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0  # seconds until a replica that has failed is asked again
_RETRIED = (408, 429)  # in addition to 5xx


@register_reward("http")
@dataclass(frozen=True)
class HTTPReward:
    """Reward computed by a service.

    A batch that a replica does not answer goes to another replica. If no replica answers, the call waits and logs
    warnings; after `wait_seconds` it raises `RewardUnavailable`.

    Attributes:
      urls: Addresses of the replicas, such as `http://host:8000`.
      batch_size: Maximum number of images in a request.
      connections: Number of simultaneous requests to each replica.
      timeout_seconds: Time after which a request has failed.
      wait_seconds: Time without any answer after which the service is given up.

    Raises:
      JanusError: An option is out of range.
    """

    urls: tuple[str, ...]
    batch_size: int = 16
    connections: int = 2
    timeout_seconds: float = 60.0
    wait_seconds: float = 600.0
    _replicas: "_Replicas" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise JanusError(f"The reward http: urls has {url!r}; each URL starts with http:// or https://.")
        if not self.urls:
            raise JanusError("The reward http: urls is empty; give the URLs of the replicas, separated by commas.")
        for name in ("batch_size", "connections", "timeout_seconds", "wait_seconds"):
            if not getattr(self, name) > 0:
                raise JanusError(f"The reward http: {name} is {getattr(self, name)}; it must be positive.")
        urls = tuple(url.rstrip("/") for url in self.urls)
        object.__setattr__(self, "_replicas", _Replicas(urls, self.connections, self.wait_seconds))

    def __call__(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " B"]:
        """Returns the rewards that the service computes. See `Reward`."""
        starts = range(0, len(prompts), self.batch_size)
        parts = [slice(start, start + self.batch_size) for start in starts]
        self._replicas.start()
        with ThreadPoolExecutor(len(self.urls) * self.connections) as threads:
            batches = [threads.submit(self._score, prompts[part], images[part], metadata[part]) for part in parts]
            try:
                done, _ = wait(batches, return_when=FIRST_EXCEPTION)
                for batch in done:
                    batch.result()  # Raises the error of a batch, if there is one.
            finally:
                # After an error in one batch, the other threads must not go on waiting for a replica.
                self._replicas.stop()
                threads.shutdown(wait=False, cancel_futures=True)
        return np.concatenate([np.zeros(0, np.float32), *[batch.result() for batch in batches]])

    def _score(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "b H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " b"]:
        items = [
            {"prompt": prompt, "image": encode_image(image), "metadata": dict(values)}
            for prompt, image, values in zip(prompts, images, metadata, strict=True)
        ]
        while True:
            url = self._replicas.acquire()
            try:
                values = check_values(_request(url, items, self.timeout_seconds), prompts, f"service at {url}")
            except _Unanswered as error:
                self._replicas.release(url, str(error))
            except BaseException:
                self._replicas.release(url)
                raise
            else:
                self._replicas.release(url)
                return values


def encode_image(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Returns an image as PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


class _Unanswered(Exception):
    """A replica has not answered a request. Another replica, or the same one later, may do so."""


def _request(url: str, items: Sequence[Mapping[str, Any]], timeout: float) -> Any:
    """Returns the rewards in the answer of a replica.

    Raises:
      _Unanswered: The replica cannot be reached, is too slow, or has failed.
      JanusError: The replica refuses the request, or its answer does not follow the protocol.
    """
    try:
        response = requests.post(f"{url}/score", json={"items": items}, timeout=timeout)
    except requests.Timeout as error:
        raise _Unanswered(f"no answer in {timeout:g} s") from error
    except requests.RequestException as error:
        raise _Unanswered(f"{type(error).__name__}: {error}") from error
    code = response.status_code
    try:
        answer = response.json()
    except requests.JSONDecodeError:
        answer = None
    detail = str(answer.get("detail", "")) if isinstance(answer, Mapping) else response.text
    if code >= 500 or code in _RETRIED:
        raise _Unanswered(f"status {code}: {detail:.300}")
    if code != 200:
        raise JanusError(f"The reward service at {url} refuses the request with status {code} ({detail:.300}).")
    if not isinstance(answer, Mapping) or "rewards" not in answer:
        raise JanusError(f"The reward service at {url} answered {response.text!r:.80}; expected {{'rewards': [...]}}.")
    return answer["rewards"]


class _Replica:
    """State of a replica: the number of requests that it is working on, and its failures since its last answer."""

    def __init__(self, url: str) -> None:
        self.url, self.active, self.failures, self.asked_again = url, 0, 0, 0.0


class _Replicas:
    """Distributes requests over replicas. A replica that has failed is asked again after a delay, which doubles."""

    def __init__(self, urls: Sequence[str], connections: int, wait_seconds: float) -> None:
        self._replicas = {url: _Replica(url) for url in urls}
        self._connections, self._wait_seconds = connections, wait_seconds
        self._changed = threading.Condition()
        self._stopped = False
        self._answered = time.monotonic()
        self._reason = ""

    def start(self) -> None:
        """Starts a call: the time without an answer is counted from here."""
        with self._changed:
            self._stopped, self._answered, self._reason = False, time.monotonic(), ""

    def stop(self) -> None:
        """Makes the threads that wait in `acquire` end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def acquire(self) -> str:
        """Waits for a replica, and returns the URL of the one with the fewest requests.

        Raises:
          RewardUnavailable: No replica has answered for `wait_seconds`.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                if self._stopped or (self._reason and now - self._answered > self._wait_seconds):
                    raise RewardUnavailable(
                        f"The reward service at {', '.join(self._replicas)} has not answered for "
                        f"{now - self._answered:.0f} s ({self._reason}). Start it, and run the same command again."
                    )
                free = [one for one in self._replicas.values() if one.active < self._connections]
                if ready := [one for one in free if one.asked_again <= now]:
                    chosen = min(ready, key=lambda one: (one.failures > 0, one.active))
                    # A replica that has failed gets one request at first.
                    if not (chosen.failures and chosen.active):
                        chosen.active += 1
                        return chosen.url
                self._changed.wait(min([_FIRST_DELAY, *(max(one.asked_again - now, 0.02) for one in free)]))

    def release(self, url: str, reason: str = "") -> None:
        """Ends a request.

        Args:
          reason: Why the replica has failed; "" if it has answered.
        """
        with self._changed:
            replica = self._replicas[url]
            replica.active -= 1
            if reason:
                delay = min(_FIRST_DELAY * 2**replica.failures, _LONGEST_DELAY)
                replica.failures, replica.asked_again = replica.failures + 1, time.monotonic() + delay
                self._reason = reason
                logging.warning(
                    "The reward service at %s has failed %d times (%s). It is asked again in %.1f s.",
                    url,
                    replica.failures,
                    reason,
                    delay,
                )
            else:
                if replica.failures:
                    logging.warning("The reward service at %s answers again.", url)
                replica.failures, replica.asked_again = 0, 0.0
                self._answered, self._reason = time.monotonic(), ""
            self._changed.notify_all()
