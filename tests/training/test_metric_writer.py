import errno
import io
import json
import os
import struct

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import janus_jax
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
    """Step and value of each summary, without the description of the run."""
    found = [(event.step, value) for event in events(folder) for value in event.summary.value]
    return [(step, value) for step, value in found if not value.tag.startswith("run/")]


def test_scalars_go_to_metrics_jsonl_and_tensorboard(tmp_path, console):
    with MetricWriter(tmp_path, console) as writer:
        writer.scalars(1, {"loss": 2.5, "tokens/s": np.float32(100)})
        writer.scalars(2, {"loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "tokens/s": 100.0}, {"step": 2, "loss": None}]
    found = [(step, value.tag, value.simple_value) for step, value in summaries(tmp_path)]
    assert found[:2] == [(1, "loss", 2.5), (1, "tokens/s", 100.0)]
    assert np.isnan(found[2][2])


def test_texts_and_images_go_to_tensorboard(tmp_path, console):
    pictures = np.zeros((2, 4, 6, 3), np.uint8)
    with MetricWriter(tmp_path, console) as writer:
        writer.texts(3, {"note": "**Two** birds."})
        writer.answers(3, "answers", [("Who?", "Tom."), ("Where?", "Here.")])
        writer.images(3, "images", pictures, ("A boat.", "A bird."))
    *texts, (_, image) = summaries(tmp_path)
    assert [(value.tag.removesuffix("/text_summary"), value.tensor.string_val[0].decode()) for _, value in texts] == [
        ("note", "**Two** birds."),
        ("answers", "**Who?**\n\nTom.\n\n**Where?**\n\nHere."),
        ("images/captions", "1. A boat.\n2. A bird."),
    ]
    assert (image.tag, image.image.height, image.image.width) == ("images", 4, 16)


def test_the_description_and_the_id_of_a_run_are_kept(tmp_path, console):
    ids = []
    for _ in range(2):
        with MetricWriter(tmp_path, console, config={"seed": 5}):
            ids.append(json.loads((tmp_path / "run.json").read_text())["id"])
    assert ids[0] == ids[1]
    found = {value.tag: value.tensor.string_val for event in events(tmp_path) for value in event.summary.value}
    versions, config = found["run/versions/text_summary"][0].decode(), found["run/config/text_summary"][0].decode()
    assert versions.startswith(f"- janus_jax: {janus_jax.__version__}\n- jax: {jax.__version__}")
    assert config == '    {\n      "seed": 5\n    }'


@pytest.mark.parametrize("names", [("wandbee",), ("tensorboard", "missing_module:mine")])
def test_an_unknown_tracker_is_rejected(tmp_path, console, names):
    with pytest.raises(JanusError, match=rf"config\.trackers {names[-1]}"):
        MetricWriter(tmp_path, console, trackers=names)


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
        writer.images(1, "c", np.zeros((1, 2, 2, 3), np.uint8))
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


def test_files_on_a_bucket_are_uploaded_and_continued(bucket, console):
    with MetricWriter(bucket, console) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": step / 2})
        assert not (bucket / "metrics.jsonl").exists()
        writer.flush()
        assert len(lines(bucket)) == 3
    id = (bucket / "run.json").read_text()
    with MetricWriter(bucket, console, start_step=2) as writer:
        writer.scalars(3, {"loss": 5.0})
    assert [(line["step"], line["loss"]) for line in lines(bucket)] == [(1, 0.5), (2, 1.0), (3, 5.0)]
    assert (bucket / "run.json").read_text() == id
    assert len(list((bucket / "tensorboard").glob("events*"))) == 2
