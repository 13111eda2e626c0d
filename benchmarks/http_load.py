"""Runs good, cancelled, malformed and oversized requests against a server process, slow readers, and a kill."""

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx

from benchmarks.http_requests import JSON, Answer, HttpRequest, answer, good_requests, mixed_requests
from benchmarks.server_process import FINISHED, Server, janus_serve

FLAGS = ("--max_body_mb=1", "--slots=8", "--max_length=256")
_GROWTH = 1.05
"""Memory at the end divided by the memory after the warm-up, at most."""


@dataclass
class Outcome:
    """Counts of one run.

    Attributes:
      counts: Requests by their fate.
      failures: What went wrong.
      memory: Megabytes of the server after the warm-up, halfway, and at the end.
      seconds: Duration.
    """

    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    seconds: float = 0.0


async def answers_alone(server: Server) -> dict[bytes, Answer]:
    """Returns the answers to the good requests, one after the other, by their bodies."""
    async with _client(server) as client:
        return {request.content: await answer(client, request) for request in good_requests()}


def _client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=300)


async def run_mixed(server: Server, alone: dict[bytes, Answer], count: int, clients: int) -> Outcome:
    """Runs mixed requests with concurrent clients.

    Args:
      server: The server.
      alone: The answers of `answers_alone`.
      count: Number of requests.
      clients: Number of concurrent clients.
    """
    left = iter(list(enumerate(mixed_requests(count))))
    outcome, begin = Outcome(), time.monotonic()

    async def run_client() -> None:
        async with _client(server) as client:
            for number, request in left:
                if number in (count // 5, count // 2):
                    outcome.memory.append(server.memory)
                outcome.counts[request.fate] = outcome.counts.get(request.fate, 0) + 1
                if problem := await _problem(client, request, number, alone):
                    outcome.failures.append(f"request {number} ({request.fate}, {request.path}): {problem}")

    await asyncio.gather(*(run_client() for _ in range(clients)))
    outcome.seconds = time.monotonic() - begin
    metrics = await asyncio.to_thread(server.wait_until_idle)
    for name in ("janus_queue", "janus_running", "janus_slots_used"):
        if metrics[name]:
            outcome.failures.append(f"{name} is {metrics[name]:g} at the end")
    if not metrics['janus_requests_total{end="cancelled"}']:
        outcome.failures.append("the server has noticed no cancellation")
    outcome.memory.append(server.memory)
    first, last = outcome.memory[0], outcome.memory[-1]
    if last > first * _GROWTH:
        outcome.failures.append(f"the memory has grown from {first:.0f} to {last:.0f} MB")
    return outcome


async def _problem(
    client: httpx.AsyncClient, request: HttpRequest, number: int, alone: dict[bytes, Answer]
) -> str | None:
    """Runs a request. Returns the fault of its answer, or None."""
    try:
        if request.fate == "cancelled":
            # From 20 to 200 ms later, in the queue, in the prompt or in the answer.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(answer(client, request), 0.02 * (1 + number % 10))
        elif request.fate == "good":
            found = await answer(client, request)
            return None if found == alone[request.content] else f"another answer than alone: {found}"
        else:
            response = await client.post(f"/v1/{request.path}", content=request.content, headers=JSON)
            allowed = (413,) if request.fate == "oversized" else (400, 404)
            if response.status_code not in allowed or "message" not in response.json()["error"]:
                return f"status {response.status_code}"
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


async def run_slow_readers(server: Server, alone: dict[bytes, Answer], readers: int = 4) -> dict[str, Any]:
    """Asks a question several times, without and with clients that read nothing of their answers for a while.

    Returns:
      Median seconds of a question, bytes of the largest answer that was read late, and failures.
    """
    count = 10
    body = {"prompt": "a star", "n": count, "stream": True, "partial_images": 3}
    stream = HttpRequest("images/generations", body)
    before = (await asyncio.to_thread(server.wait_until_idle))[FINISHED]
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(_unread(server, stream)) for _ in range(readers)]
        metrics = await asyncio.to_thread(server.wait_until_idle, before + readers)
        failures, seconds = await _time_question(server, alone)
        answers = [await asyncio.to_thread(_read_late, one) for one in slow]
    more, seconds_without = await _time_question(server, alone)
    failures += more
    finished = metrics[FINISHED] - before
    if finished != readers or metrics["janus_slots_used"]:
        failures.append(f"{finished:g} of {readers} requests have finished while nobody read their answers")
    if any(one.count(b"generation.completed") < 2 * count for one in answers):
        failures.append("an answer that was read late is not complete")
    return {
        "slow_readers": readers,
        "slow_answer_kb": round(max(map(len, answers)) / 1024),
        "question_seconds_next_to_slow_readers": round(seconds, 3),
        "question_seconds": round(seconds_without, 3),
        "failures": failures,
    }


def _unread(server: Server, request: HttpRequest) -> socket.socket:
    """Sends a request over a connection whose buffers hold 40 KB, less than the answer."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    connection.settimeout(60)
    connection.connect((host, int(port)))
    head = f"POST /v1/{request.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close"
    connection.sendall(f"{head}\r\nContent-Length: {len(request.content)}\r\n\r\n".encode() + request.content)
    return connection


def _read_late(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


async def _time_question(server: Server, alone: dict[bytes, Answer]) -> tuple[list[str], float]:
    """Returns failures and the median seconds of a question."""
    request, failures, times = good_requests()[0], [], []
    async with _client(server) as client:
        for _ in range(8):
            begin = time.monotonic()
            if await answer(client, request) != alone[request.content]:
                failures.append("a question has another answer than alone")
            times.append(time.monotonic() - begin)
    return failures, median(times)


async def run_until_killed(server: Server, clients: int) -> list[str]:
    """Kills the server while it answers. Returns failures: clients that did not get an error at once."""
    request = HttpRequest("images/generations", {"prompt": "a star", "n": 8})
    failures = []

    async def ask() -> None:
        async with _client(server) as client:
            try:
                await answer(client, request)
                failures.append("a request was answered by a killed server")
            except httpx.TransportError:
                pass

    tasks = [asyncio.ensure_future(ask()) for _ in range(clients)]
    await asyncio.to_thread(server.wait, lambda metrics: metrics["janus_slots_used"] > 0)
    server.kill()
    _, late = await asyncio.wait(tasks, timeout=5)
    if late:
        failures.append(f"{len(late)} clients waited for a killed server")
    return failures


def measure(model: str, requests: int, clients: int, *, restarts: bool = True) -> dict[str, Any]:
    """Runs everything.

    Args:
      model: Model folder.
      requests: Number of mixed requests.
      clients: Number of concurrent clients.
      restarts: Whether to kill and restart the server.

    Returns:
      The figures, and `failures`, which is empty if everything holds.
    """
    with Server([*janus_serve(model, *FLAGS), "--port=0"]) as server:
        alone = asyncio.run(answers_alone(server))
        mixed = asyncio.run(run_mixed(server, alone, requests, clients))
        slow = asyncio.run(run_slow_readers(server, alone))
        failures = mixed.failures + slow.pop("failures")
        figures = {
            "requests": requests,
            "clients": clients,
            **mixed.counts,
            "requests_per_second": round(requests / mixed.seconds, 2),
            "memory_mb": [round(one) for one in mixed.memory],
            "start_seconds": round(server.seconds, 1),
            **slow,
        }
        port = server.url.rpartition(":")[2]
        if restarts:
            failures += asyncio.run(run_until_killed(server, clients))
            with Server([*janus_serve(model, *FLAGS), f"--port={port}"]) as again:
                figures["restart_seconds"] = round(again.seconds, 1)
                if asyncio.run(answers_alone(again)) != alone:
                    failures.append("the answers after a restart are others")
    return figures | {"failures": failures}
