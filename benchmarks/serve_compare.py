"""Compares `janus-serve` with transformers' Janus behind the same routes: throughput and latency over HTTP.

    python -m benchmarks.serve_compare
    python -m benchmarks.serve_compare --requests 16 --clients 1,8

Both servers are processes with the same random weights in float32: 8 layers of width 512, images of 144 tokens. The
reference (`benchmarks.serve_torch`) runs one request at a time. Both decode greedily, so that their answers are equal.
Of eight requests, three are questions about a picture, three are questions without one, and two ask for an image with
guidance. Each client sends a request, waits for its result and sends the next one; answers are streamed. The servers
are measured in turn, in each round.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import safetensors.numpy
from absl import flags

from benchmarks.http_requests import JSON, Answer, HttpRequest, data_url, read_answer
from benchmarks.load import Load, percentiles
from benchmarks.serve_torch import RANDOM
from benchmarks.server_process import Server, janus_serve
from benchmarks.shared import LAYOUT, machine, markdown_table, weights
from checkpoints_convert.transformers_janus import config_to_json
from examples.shapes.dataset import ShapesDataset
from janus_jax.commands import cli
from janus_jax.processing import make_byte_level_tokenizer

_REQUESTS = flags.DEFINE_integer("requests", 16, "requests per measurement", lower_bound=8)
_CLIENTS = flags.DEFINE_list("clients", ["1", "8"], "numbers of concurrent clients")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "timed rounds; the median counts", lower_bound=1)

NAMES = ("janus-serve", "transformers")


def main(_argv: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    requests, clients = make_requests(_REQUESTS.value), [int(number) for number in _CLIENTS.value]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        jax_command = [*janus_serve(folder, "--max_length=512"), "--port=0"]
        with Server(jax_command) as server, Server(["-m", "benchmarks.serve_torch", folder]) as other:
            servers = dict(zip(NAMES, (server, other), strict=True))
            answers = {name: asyncio.run(run(one, requests[:8], 1))[1] for name, one in servers.items()}
            rounds = [
                {
                    (name, number): asyncio.run(run(one, requests, number))[0]
                    for number in clients
                    for name, one in servers.items()
                }
                for _ in range(_ROUNDS.value)
            ]
    # Images of random weights differ, because many tokens have almost the highest logit.
    texts = [(one, other) for one, other in zip(*answers.values(), strict=True) if not one[1]]
    same = sum(one == other for one, other in texts)
    print(f"{same} of {len(texts)} answers are the same.")
    rows: list[list[Any]] = []
    results: dict[str, Any] = {"same_answers": same}
    for number in clients:
        for name in NAMES:
            ratio = median(loads[NAMES[1], number].seconds / loads[name, number].seconds for loads in rounds)
            loads = [loads[name, number] for loads in rounds]
            rate = len(requests) / median(load.seconds for load in loads)
            rows.append([number, name, f"{rate:.2f}", f"{ratio:.2f}", *percentiles(loads)])
            results |= {
                f"clients_{number}_{name}_{key}": round(one, 3) for key, one in (("rate", rate), ("ratio", ratio))
            }
    columns = ("clients", "server", "requests/s", "transformers = 1", "first p50 s", "first p95 s", "complete p50 s")
    print(markdown_table((*columns, "complete p95 s"), rows))
    print("\n" + json.dumps(results | machine("torch", "transformers") | {"load": os.getloadavg()[0]}))


def write_model(folder: Path) -> None:
    """Writes a model folder with the random weights of `benchmarks.shared.weights`."""
    encoder = RANDOM.und_encoder
    sizes = RANDOM.llm.vocab_size, RANDOM.conversation, encoder.image_size, encoder.num_patches
    # Every token id has a text, so that each token of an answer is sent.
    tokenizer = make_byte_level_tokenizer(folder, ShapesDataset().texts(2000), *sizes)
    config = config_to_json(RANDOM, "float32", tokenizer.special.image_placeholder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: part for unit, array in weights(RANDOM, LAYOUT) for name, part in unit.write(array)}
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(part) for name, part in tensors.items()}, folder / "model.safetensors"
    )


def make_requests(count: int) -> list[HttpRequest]:
    """Returns mixed requests with greedy decoding."""
    requests = []
    for number in range(count):
        kind = number % 8
        content: list[dict[str, Any]] = [{"type": "text", "text": f"What is in picture {number} ?"}]
        if kind in (0, 3, 6):
            content.insert(0, {"type": "image_url", "image_url": {"url": data_url(number, 96)}})
        if kind in (2, 5):
            body: dict[str, Any] = {"prompt": f"a red circle and {number} stars", "temperature": 0.0}
            requests.append(HttpRequest("images/generations", body))
        else:
            messages = [{"role": "user", "content": content}]
            body = {"messages": messages, "max_tokens": 32 + 8 * kind, "stream": True}
            requests.append(HttpRequest("chat/completions", body))
    return requests


async def run(server: Server, requests: Sequence[HttpRequest], clients: int) -> tuple[Load, list[Answer]]:
    """Runs the requests with concurrent clients. Returns times and answers."""
    left, load = iter(list(enumerate(requests))), Load(0.0, [], [])
    answers: dict[int, Answer] = {}

    async def run_client() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            for number, request in left:
                begin, first, lines = time.perf_counter(), None, list[str]()
                async with client.stream(
                    "POST", f"/v1/{request.path}", content=request.content, headers=JSON
                ) as response:
                    response.raise_for_status()
                    async for line in response.aiter_lines():
                        lines.append(line)
                        if first is None and ('"content": "' in line and '"content": ""' not in line):
                            first = time.perf_counter() - begin
                load.complete.append(time.perf_counter() - begin)
                load.first.append(first or load.complete[-1])
                answers[number] = read_answer("\n".join(lines))

    begin = time.perf_counter()
    await asyncio.gather(*(run_client() for _ in range(clients)))
    load.seconds = time.perf_counter() - begin
    return load, [answers[number] for number in range(len(requests))]


if __name__ == "__main__":
    cli.run(main)
