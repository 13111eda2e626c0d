"""Metrics of the server in the format of Prometheus."""

import time
from collections.abc import Iterator

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from janus_jax.generation.engine import Engine, Event, Finished, PartialPicture, Picture, TextPiece

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _EngineCollector(Collector):
    """Reads the counts of the engine when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        gauges = {
            "queue": ("Requests that wait for a slot.", stats.waiting),
            "running": ("Requests that are computed.", stats.running),
            "slots_used": ("Slots that have a request.", stats.rows_used),
            "slots": ("Maximum number of slots.", stats.rows_total),
            "ready": ("Whether the engine accepts requests.", int(self._engine.is_ready)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"janus_{name}", text, value)
        requests = CounterMetricFamily("janus_requests", "Requests by their end.", labels=["end"])
        for end in ("finished", "cancelled", "failed", "rejected"):
            requests.add_metric([end], getattr(stats, end))
        yield requests
        tokens = CounterMetricFamily("janus_tokens", "Tokens by kind.", labels=["kind"])
        for kind in ("prompt", "text", "image"):
            tokens.add_metric([kind], getattr(stats, f"{kind}_tokens"))
        yield tokens
        yield CounterMetricFamily("janus_decode_steps", "Decode steps.", stats.decode_steps)


class Metrics:
    """Counts and times of one server.

    Attributes:
      registry: The registry that holds them.
      responses: Responses by route and status.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self.responses = prometheus_client.Counter(
            "janus_http_responses", "HTTP responses.", ["route", "status"], registry=self.registry
        )
        self._first, self._whole = (
            prometheus_client.Histogram(name, text, ["route"], buckets=_SECONDS, registry=self.registry)
            for name, text in (
                ("janus_first_token_seconds", "Time to the first piece of text or picture."),
                ("janus_request_seconds", "Time to the end of a request."),
            )
        )

    def timer(self, route: str) -> "RequestTimer":
        """Returns a timer that starts now."""
        return RequestTimer(self._first.labels(route), self._whole.labels(route))

    def page(self) -> bytes:
        """Returns all metrics as text."""
        return prometheus_client.generate_latest(self.registry)


class RequestTimer:
    """Measures the time of a request to its first output and to its end."""

    def __init__(self, first: prometheus_client.Histogram, whole: prometheus_client.Histogram) -> None:
        self._first, self._whole, self._begin = first, whole, time.monotonic()
        self._saw_output = self._finished = self._ended = False

    def saw(self, event: Event) -> None:
        """Notes an event."""
        if isinstance(event, TextPiece | Picture | PartialPicture) and not self._saw_output:
            self._saw_output = True
            self._first.observe(time.monotonic() - self._begin)
        self._finished = isinstance(event, Finished)

    def end(self) -> None:
        """Notes the end. Requests that were cancelled or failed do not count."""
        if self._finished and not self._ended:
            self._ended = True
            self._whole.observe(time.monotonic() - self._begin)
