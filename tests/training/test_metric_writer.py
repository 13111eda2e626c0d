import errno
import io
import json
import os
import re
import struct
import time

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
def quiet():
    return io.StringIO()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """Everything that was told to TensorBoard, in the order of the files."""
    for file in sorted((folder / "tensorboard").iterdir(), key=os.path.getmtime):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16


def told(folder):
    return [(event.step, value) for event in events(folder) for value in event.summary.value]


def test_figures_go_to_the_lines_and_to_tensorboard(tmp_path, quiet):
    with MetricWriter(tmp_path, 10, stream=quiet) as reports:
        reports.scalars(1, {"loss": 2.5, "tokens/s": np.float32(100)})
        reports.scalars(2, {"loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "tokens/s": 100.0}, {"step": 2, "loss": None}]
    found = [(step, value.tag, value.simple_value) for step, value in told(tmp_path)]
    assert found[:2] == [(1, "loss", 2.5), (1, "tokens/s", 100.0)]
    assert np.isnan(found[2][2])


def test_texts_and_images_go_to_tensorboard(tmp_path, quiet):
    row = np.zeros((2, 4, 6, 3), np.uint8)
    with MetricWriter(tmp_path, 10, stream=quiet) as reports:
        reports.texts(3, {"answers": "**Two** birds."})
        reports.images(3, {"drawn": row})
    (_, text), *images = told(tmp_path)
    assert text.tag.startswith("answers")
    assert text.tensor.string_val == [b"**Two** birds."]
    assert [(value.tag, value.image.height, value.image.width) for _, value in images] == [
        ("drawn/0", 4, 6),
        ("drawn/1", 4, 6),
    ]


def test_a_run_that_goes_on_tells_no_step_twice(tmp_path, quiet):
    reports = MetricWriter(tmp_path, 10, stream=quiet)
    for step in range(1, 6):
        reports.scalars(step, {"loss": step})
    # As a killed process leaves it: nothing closed, the last line broken off.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with MetricWriter(tmp_path, 10, start_step=3, stream=quiet) as again:
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


def test_a_run_that_begins_anew_forgets_the_old_one(tmp_path, quiet):
    for loss in (1, 2):
        with MetricWriter(tmp_path, 10, stream=quiet) as reports:
            reports.scalars(1, {"loss": loss})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_the_line_goes_on_over_itself_on_a_terminal(monkeypatch):
    monkeypatch.setattr(module, "_REDRAW", 0.0)
    stream = Terminal()
    with MetricWriter(None, 2000, stream=stream) as reports:
        reports.progress(1000, {"loss": 2.345678, "tokens/s": 12345.6, "stage": "II"})
        time.sleep(0.01)
        reports.progress(1500, {"loss": 1.5})
        reports.message("saved")
    drawn = stream.getvalue().split("\r")
    assert drawn[1].startswith("[##########..........] step 1,000/2,000  loss 2.346  tokens/s 12.3k  stage II")
    assert re.match(r"\[###############\.\.\.\.\.\] step 1,500/2,000  loss 1.5  left 0:0\d\x1b\[K$", drawn[2])
    assert drawn[3] == "\x1b[Ksaved\n"
    assert drawn[4] == drawn[2] + "\n"


def test_a_line_is_cut_to_the_terminals_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with MetricWriter(None, 2000, stream=stream) as reports:
        reports.progress(1, {f"figure {i}": 1.0 for i in range(20)})
    assert len(stream.getvalue().removeprefix("\r").removesuffix("\x1b[K\n")) == 39


def test_elsewhere_a_line_comes_once_in_an_interval_and_at_the_end(quiet):
    with MetricWriter(None, 100, stream=quiet, every_seconds=60) as reports:
        for step in range(1, 101):
            reports.progress(step, {"loss": 1.0})
    assert [line.split("  ")[0] for line in quiet.getvalue().splitlines()] == ["step 1/100", "step 100/100"]


def test_the_time_left_is_reckoned_from_the_first_steps_told(quiet, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with MetricWriter(None, 5010, stream=quiet, every_seconds=1) as reports:
        reports.progress(1000, {})
        reports.progress(1010, {})
    assert quiet.getvalue().splitlines()[-1].endswith("left 1:06:40")


def test_only_the_first_process_speaks(tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "run", 10, stream=quiet) as reports:
        reports.scalars(1, {"loss": 1.0})
        reports.texts(1, {"a": "b"})
        reports.images(1, {"c": np.zeros((1, 2, 2, 3), np.uint8)})
        reports.progress(10, {"loss": 1.0})
        reports.message("hello")
    assert quiet.getvalue() == ""
    assert not (tmp_path / "run").exists()


def test_a_meter_gives_rates_and_begins_anew(monkeypatch):
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


def test_a_workdir_that_is_a_file_is_told(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(JanusError, match="run"):
        MetricWriter(tmp_path / "run", 10)


def test_a_full_disk_is_told(tmp_path, quiet, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reports = MetricWriter(tmp_path, 10, stream=quiet)
    monkeypatch.setattr(reports._metrics, "write", fail)
    with pytest.raises(StorageFull, match=r"metrics.jsonl cannot be written, the disk is full; free some space"):
        reports.scalars(1, {"loss": 1.0})
