import errno
import io
import json
import os
import struct

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from janus_jax.errors import JanusError, StorageFull
from janus_jax.training import metric_writer as module
from janus_jax.training.console import Console
from janus_jax.training.metric_writer import MetricWriter, RateMeter


@pytest.fixture
def console():
    return Console(10, stream=io.StringIO())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """All events in the TensorBoard files, in order."""
    for file in sorted((folder / "tensorboard").iterdir(), key=os.path.getmtime):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16


def summaries(folder):
    return [(event.step, value) for event in events(folder) for value in event.summary.value]


def test_scalars_go_to_metrics_jsonl_and_tensorboard(tmp_path, console):
    with MetricWriter(tmp_path, console) as writer:
        writer.scalars(1, {"loss": 2.5, "tokens/s": np.float32(100)})
        writer.scalars(2, {"loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "tokens/s": 100.0}, {"step": 2, "loss": None}]
    found = [(step, value.tag, value.simple_value) for step, value in summaries(tmp_path)]
    assert found[:2] == [(1, "loss", 2.5), (1, "tokens/s", 100.0)]
    assert np.isnan(found[2][2])


def test_texts_and_images_go_to_tensorboard(tmp_path, console):
    images = np.zeros((2, 4, 6, 3), np.uint8)
    with MetricWriter(tmp_path, console) as writer:
        writer.texts(3, {"answers": "**Two** birds."})
        writer.images(3, {"images": images})
    (_, text), *images = summaries(tmp_path)
    assert text.tag.startswith("answers")
    assert text.tensor.string_val == [b"**Two** birds."]
    assert [(value.tag, value.image.height, value.image.width) for _, value in images] == [
        ("images/0", 4, 6),
        ("images/1", 4, 6),
    ]


def test_resumed_run_writes_each_step_once(tmp_path, console):
    writer = MetricWriter(tmp_path, console)
    for step in range(1, 6):
        writer.scalars(step, {"loss": step})
    # A killed process closes no file and leaves an incomplete last line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with MetricWriter(tmp_path, console, 3) as again:
        for step in range(4, 7):
            again.scalars(step, {"loss": 10 * step})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
        (5, 50),
        (6, 60),
    ]
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts[-1] == 4


def test_only_the_first_process_writes(tmp_path, console, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "run", console) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.texts(1, {"a": "b"})
        writer.images(1, {"c": np.zeros((1, 2, 2, 3), np.uint8)})
    assert not (tmp_path / "run").exists()


def test_rate_meter_resets_after_reading(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    meter = RateMeter()
    for _ in range(2):
        with meter.waiting():
            clock[0] += 1
        clock[0] += 3
        meter.add(tokens=4096)
    assert meter.rates() == {"steps/s": 0.25, "tokens/s": 1024.0, "data_wait": 0.25}
    clock[0] += 10
    assert meter.rates() == {"data_wait": 0.0}


def test_workdir_that_is_a_file_is_rejected(tmp_path, console):
    (tmp_path / "run").touch()
    with pytest.raises(JanusError, match="run"):
        MetricWriter(tmp_path / "run", console)


def test_full_disk_raises_storage_full(tmp_path, console, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricWriter(tmp_path, console)
    monkeypatch.setattr(module.json, "dumps", fail)
    with pytest.raises(StorageFull, match=r"metrics.jsonl cannot be written, the disk is full; free some space"):
        writer.scalars(1, {"loss": 1.0})
