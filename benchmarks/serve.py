"""Measures the throughput and latency of the serving engine with concurrent clients.

    python -m benchmarks.serve
    python -m benchmarks.serve --model Janus-Pro-1B --requests 32

Without --model the benchmark uses a model with random weights: 8 layers of width 512, with images of 144 tokens.

Each client sends a request, waits for its result and sends the next one. Of eight requests, three are questions about a
picture, three are questions without a picture, and two ask for an image with guidance. The reference is the same
requests one after the other with `Pretrained`, in the same run.

Then one client asks questions with a long system prompt. The time to the first token of a new system prompt and of one
that the engine has seen are measured alternately.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

import janus_jax
from benchmarks.load import Load, percentiles
from benchmarks.shared import load_weights, machine, markdown_table, timed
from janus_jax.commands import cli
from janus_jax.config import Dtype, Execution, JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.generation.engine import ChatRequest, Engine, EngineOptions, GenerateRequest, Picture, TextPiece
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Message, Processor, make_byte_level_tokenizer

_MODEL = flags.DEFINE_string("model", None, "model folder (default: random weights)")
_REQUESTS = flags.DEFINE_integer("requests", 64, "requests per measurement", lower_bound=8)
_CLIENTS = flags.DEFINE_list("clients", ["1", "8", "32"], "numbers of concurrent clients")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "timed rounds; the median counts", lower_bound=1)
_SLOTS = flags.DEFINE_integer("slots", 32, "rows of the engine's cache", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps_per_call", 8, "decode steps between two looks at requests", lower_bound=1)

RANDOM = JanusConfig(
    name="8 layers of width 512",
    und_encoder=SiglipConfig(image_size=96, patch_size=16, width=512, depth=6, num_heads=8, mlp_dim=2048),
    gen_encoder=VQConfig(image_size=96, base_channels=32, channel_multipliers=(1, 1, 2, 2), codebook_size=4096),
    llm=LlamaConfig(8192, 512, 8, 8, 8, 64, 1408, max_positions=512),
    gen_head_width=512,
)

_SYSTEM_TOKENS = 300

Request = ChatRequest | GenerateRequest


def main(_argv: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    import jax

    cli.enable_compilation_cache()
    dtype: Dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = janus_jax.load(_MODEL.value, dtype) if _MODEL.value else random_model(dtype)
    requests = make_requests(_REQUESTS.value)
    clients = [int(number) for number in _CLIENTS.value]
    # Few sizes, because each is a program to compile.
    sizes: dict[str, Any] = {} if _MODEL.value else {"max_length": 384, "buckets": (64, 256)}
    options = EngineOptions(slots=_SLOTS.value, rows=(4, 12), steps_per_call=_STEPS.value, **sizes)
    one_by_one(model, requests[:8])  # Compiles.
    with Engine(model, options) as engine:
        print(f"{model.config.name}, {dtype}, {jax.device_count()} device(s), {len(requests)} requests")
        for number in clients:
            serve(engine, requests, number)
        rounds: list[tuple[float, dict[int, Load]]] = []
        for _ in range(_ROUNDS.value):
            seconds = timed(lambda: one_by_one(model, requests))[0]
            rounds.append((seconds, {number: serve(engine, requests, number) for number in clients}))
        new, equal = first_tokens(engine, 1 + 4 * _ROUNDS.value)
    rows = []
    results: dict[str, Any] = {"one_by_one_seconds": float(np.median([seconds for seconds, _ in rounds]))}
    for number in clients:
        loads = [loads[number] for _, loads in rounds]
        ratio = float(np.median([seconds / loads[number].seconds for seconds, loads in rounds]))
        median = float(np.median([load.seconds for load in loads]))
        rows.append([number, f"{len(requests) / median:.2f}", f"{ratio:.2f}", *percentiles(loads)])
        results |= {f"clients_{number}_ratio": round(ratio, 3), f"clients_{number}_seconds": round(median, 2)}
    columns = (
        "clients",
        "requests/s",
        "one by one = 1",
        "first p50 s",
        "first p95 s",
        "complete p50 s",
        "complete p95 s",
    )
    print(markdown_table(columns, rows))
    print(f"\nsystem prompt of {_SYSTEM_TOKENS} tokens, first token: new {new:.3f} s, seen before {equal:.3f} s")
    results |= {"first_token_new_system_seconds": round(new, 3), "first_token_equal_system_seconds": round(equal, 3)}
    print("\n" + json.dumps(results | machine() | {"load": os.getloadavg()[0]}))


def random_model(dtype: Dtype) -> Pretrained:
    """Returns a model with random weights and a tokenizer of bytes."""
    execution = Execution(dtype=dtype, param_dtype=dtype, layers="unrolled")
    encoder = RANDOM.und_encoder
    with tempfile.TemporaryDirectory() as folder:
        sizes = RANDOM.llm.vocab_size, RANDOM.conversation, encoder.image_size, encoder.num_patches
        make_byte_level_tokenizer(folder, [], *sizes)
        processor = Processor.from_directory(folder, RANDOM)
    return Pretrained(RANDOM, load_weights(RANDOM, execution), processor, make_model(RANDOM, execution))


def make_requests(count: int) -> list[Request]:
    """Returns mixed requests."""
    requests: list[Request] = []
    for number in range(count):
        kind = number % 8
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 96))
        question: Message = {"role": "user", "content": "What is in the picture ?"}
        if kind in (0, 3, 6):
            question = {"role": "user", "content": "<image_placeholder>\nWhat is in the picture ?", "images": [picture]}
        if kind in (2, 5):
            requests.append(GenerateRequest(prompt=f"a red circle and {number} stars", seed=number))
        else:
            requests.append(
                ChatRequest(messages=[question], max_new_tokens=32 + 8 * kind, temperature=0.7, seed=number)
            )
    return requests


def one_by_one(model: Pretrained, requests: Sequence[Request]) -> None:
    """Runs the requests one after the other."""
    for request in requests:
        if isinstance(request, GenerateRequest):
            model.generate(request.prompt, request.n, request.seed)
        else:
            limits = request.max_new_tokens, request.temperature
            for _ in model.chat_stream(request.messages, None, *limits, seed=request.seed):
                pass


def serve(engine: Engine, requests: Sequence[Request], clients: int) -> Load:
    """Runs the requests with concurrent clients."""
    left = iter(requests)
    lock = threading.Lock()
    load = Load(0.0, [], [])

    def client() -> None:
        while True:
            with lock:
                request = next(left, None)
            if request is None:
                return
            begin, first = time.perf_counter(), None
            for event in engine.submit(request).events():
                if first is None and isinstance(event, TextPiece | Picture):
                    first = time.perf_counter() - begin
            with lock:
                load.complete.append(time.perf_counter() - begin)
                load.first.append(first or load.complete[-1])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.perf_counter() - begin
    return load


def first_tokens(engine: Engine, questions: int) -> tuple[float, float]:
    """Returns the median seconds to the end of an answer of one token, for new and for equal system prompts.

    Args:
      engine: The engine.
      questions: Number of questions of each kind. The first ones compile and do not count.
    """
    encode = engine.model.processor.tokenizer.encode
    text = "You answer questions about the weather, the sea and the birds. " * _SYSTEM_TOKENS
    # Tokens may have several characters.
    length = next(length for length in range(len(text)) if len(encode(text[:length])) >= _SYSTEM_TOKENS - 5)

    def ask(system_prompt: str, question: int) -> float:
        messages: list[Message] = [{"role": "user", "content": f"Question {question}?"}]
        request = ChatRequest(messages=messages, system_prompt=system_prompt, max_new_tokens=1)
        return timed(lambda: engine.submit(request).result())[0]

    pairs = [(ask(f"{number:04} {text[:length]}", number), ask(text[:length], number)) for number in range(questions)]
    new, equal = np.median(pairs[1:], axis=0)
    return float(new), float(equal)


if __name__ == "__main__":
    cli.run(main)
