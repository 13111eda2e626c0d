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
from janus_jax.training.metric_writer import MetricWriter, RateMeter


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def output():
    return io.StringIO()


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


def test_scalars_go_to_metrics_jsonl_and_tensorboard(tmp_path, output):
    with MetricWriter(tmp_path, 10, stream=output) as writer:
        writer.scalars(1, {"loss": 2.5, "tokens/s": np.float32(100)})
        writer.scalars(2, {"loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "tokens/s": 100.0}, {"step": 2, "loss": None}]
    found = [(step, value.tag, value.simple_value) for step, value in summaries(tmp_path)]
    assert found[:2] == [(1, "loss", 2.5), (1, "tokens/s", 100.0)]
    assert np.isnan(found[2][2])


def test_texts_and_images_go_to_tensorboard(tmp_path, output):
    images = np.zeros((2, 4, 6, 3), np.uint8)
    with MetricWriter(tmp_path, 10, stream=output) as writer:
        writer.texts(3, {"answers": "**Two** birds."})
        writer.images(3, {"images": images})
    (_, text), *images = summaries(tmp_path)
    assert text.tag.startswith("answers")
    assert text.tensor.string_val == [b"**Two** birds."]
    assert [(value.tag, value.image.height, value.image.width) for _, value in images] == [
        ("images/0", 4, 6),
        ("images/1", 4, 6),
    ]


def test_resumed_run_writes_each_step_once(tmp_path, output):
    writer = MetricWriter(tmp_path, 10, stream=output)
    for step in range(1, 6):
        writer.scalars(step, {"loss": step})
    # A killed process closes no file and leaves an incomplete last line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with MetricWriter(tmp_path, 10, start_step=3, stream=output) as again:
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


def test_terminal_shows_a_bar_with_values_and_messages():
    stream = Terminal()
    with MetricWriter(None, 2000, start_step=900, stream=stream) as writer:
        writer.progress(1000, {"loss": 2.345678, "tokens/s": 12345.6})
        writer.message("saved")
    assert "1000/2000" in stream.getvalue()
    assert "loss 2.346  tokens/s 12.3k" in stream.getvalue()
    assert "saved\n" in stream.getvalue()


def test_file_output_has_a_line_per_interval_and_at_the_end(output):
    with MetricWriter(None, 100, stream=output, every_seconds=60) as writer:
        for step in range(1, 101):
            writer.progress(step, {"loss": 1.0})
    assert [line.split("  ")[0] for line in output.getvalue().splitlines()] == ["step 1/100", "step 100/100"]


def test_remaining_time_is_computed_from_the_first_reported_step(output, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with MetricWriter(None, 5010, stream=output, every_seconds=1) as writer:
        writer.progress(1000, {})
        writer.progress(1010, {})
    assert output.getvalue().splitlines()[-1].endswith("left 1:06:40")


def test_only_the_first_process_writes(tmp_path, output, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "run", 10, stream=output) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.texts(1, {"a": "b"})
        writer.images(1, {"c": np.zeros((1, 2, 2, 3), np.uint8)})
        writer.progress(10, {"loss": 1.0})
        writer.message("hello")
    assert output.getvalue() == ""
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


def test_workdir_that_is_a_file_is_rejected(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(JanusError, match="run"):
        MetricWriter(tmp_path / "run", 10)


def test_full_disk_raises_storage_full(tmp_path, output, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricWriter(tmp_path, 10, stream=output)
    monkeypatch.setattr(module.json, "dumps", fail)
    with pytest.raises(StorageFull, match=r"metrics.jsonl cannot be written, the disk is full; free some space"):
        writer.scalars(1, {"loss": 1.0})
