"""Global batches do not depend on the number of processes."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.packing import Budget
from janus_jax.data.pipeline.stream import open_stream, shard_states
from janus_jax.data.pipeline.stream_config import StreamConfig
from janus_jax.errors import JanusError
from tests import tiny
from tests.data.prepared import generation, text

P = dataclasses.replace(tiny.processor(), system_prompt="")
CONFIG = StreamConfig(
    components=(
        Component("text", [text(n, n % 17) for n in range(40)]),
        Component("gen", [generation(n) for n in range(23)]),
    ),
    batch_size=8,
    budget=Budget(384, 2, 3, 300),
)


def open_sharded(index, count, shards):
    return open_stream(CONFIG, P, process_index=index, process_count=count, shards=shards)


def read(processes, batches, states=None, shards=4):
    """Returns the ids and arrays of global batches, and the states of all processes after them."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open_sharded(number, processes, shards)) for number in range(processes)]
        for stream in streams if states else ():
            stream.set_state(shard_states(json.loads(json.dumps(states))))
        found = []
        for _ in range(batches):
            parts = [next(stream) for stream in streams]
            tokens, images = (
                np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "gen_images")
            )
            found.append((tokens, images, [ids for stream in streams for ids in stream.example_ids]))
        return found, [stream.get_state() for stream in streams]


def assert_same(found, expected):
    for (tokens, images, ids), (expected_tokens, expected_images, expected_ids) in zip(found, expected, strict=True):
        assert ids == expected_ids
        np.testing.assert_array_equal(tokens, expected_tokens)
        np.testing.assert_array_equal(images, expected_images)


@pytest.mark.parametrize("processes", [1, 2])
def test_fewer_processes_read_the_same_batches(processes):
    assert_same(read(processes, 3)[0], read(4, 3)[0])


def test_a_stream_resumes_on_another_number_of_processes():
    uninterrupted, _ = read(4, 6)
    one, states = read(4, 2)
    two, states = read(2, 2, states)
    three, _ = read(4, 2, states)
    assert_same(one + two + three, uninterrupted)


def test_a_number_of_processes_that_does_not_divide_the_shards_raises():
    with pytest.raises(JanusError, match=r"4 shards, which 3 processes .* config\.data_shards"):
        open_sharded(0, 3, 4)
