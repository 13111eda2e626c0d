"""Many requests, some of them cancelled or invalid: every other one is answered, and nothing is lost or kept."""

import gc
import os
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.generation.engine import ChatRequest, Engine, EngineOptions, GenerateRequest
from tests import tiny

TIMEOUT = 300
NUM_REQUESTS, NUM_CLIENTS = 500, 12


def user(text, *images):
    return [{"role": "user", "content": "<image_placeholder>\n" * len(images) + text, "images": list(images)}]


GOOD = [
    ChatRequest(messages=user("Hello"), max_new_tokens=6),
    ChatRequest(messages=user("Two birds"), max_new_tokens=11, temperature=1.0, seed=5),
    ChatRequest(messages=user("What is it?", tiny.picture(0)), max_new_tokens=4),
    GenerateRequest(prompt="A tree", seed=2),
]
INVALID = [
    ChatRequest(messages=[{"role": "nobody", "content": "Hello"}]),
    ChatRequest(messages=user("Look", b"no image")),
    GenerateRequest(prompt="A boat", n=-1),
    GenerateRequest(prompt="A boat " * 300),
]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.nightly
def test_every_good_request_of_many_is_answered_and_memory_is_flat():
    model = tiny.pretrained()
    options = EngineOptions(slots=8, rows=(8,), max_length=256, lengths=(256,), buckets=(64, 256))
    with Engine(model, options) as engine:
        expected = [engine.submit(request).result(TIMEOUT) for request in GOOD]
        numbers = iter(range(NUM_REQUESTS))
        lock = threading.Lock()
        counts = dict.fromkeys(("good", "cancelled", "invalid"), 0)
        wrong, memory = [], []

        def run(number):
            rng = np.random.default_rng(number)
            kind = rng.choice(["good", "cancelled", "invalid"], p=[0.8, 0.1, 0.1])
            choice = int(rng.integers(len(GOOD)))
            with lock:
                counts[kind] += 1
            if kind == "invalid":
                with pytest.raises(JanusError):
                    engine.submit(INVALID[choice])
                return
            handle = engine.submit(GOOD[choice])
            if kind == "cancelled":
                threading.Timer(rng.exponential(0.02), handle.cancel).start()
                handle.result(TIMEOUT)
                return
            completion = handle.result(TIMEOUT)
            same = completion.text == expected[choice].text and all(
                (np.asarray(image) == np.asarray(other)).all()
                for image, other in zip(completion.images, expected[choice].images, strict=True)
            )
            if not same or completion.finished.reason == "cancelled":
                wrong.append(number)

        def client():
            while True:
                with lock:
                    number = next(numbers, None)
                    if number is not None and number % 100 == 99:
                        gc.collect()
                        memory.append((resident_bytes(), len(jax.live_arrays())))
                if number is None:
                    return
                run(number)

        threads = [threading.Thread(target=client) for _ in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.drain(TIMEOUT)
        stats = engine.stats()
        assert not wrong
        assert min(counts.values()) > 20
        assert (stats.waiting, stats.running, stats.rows_used, stats.failed) == (0, 0, 0, 0)
        assert stats.finished + stats.cancelled == counts["good"] + counts["cancelled"] + len(GOOD)
        assert memory[-1][0] - memory[0][0] < 40e6
        assert abs(memory[-1][1] - memory[0][1]) < 200
