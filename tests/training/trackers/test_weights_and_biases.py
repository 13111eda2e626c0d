"""The tracker wandb, without a network."""

import io
import json
import struct
import sys
import time

import numpy as np
import pytest

from janus_jax.training.console import Console
from janus_jax.training.metric_writer import MetricWriter

_BLOCK, _HEADER = 32768, 7


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in ("API_KEY", "MODE", "PROJECT", "NAME", "DIR", "ENTITY", "CONSOLE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    sys.modules["wandb"].teardown()  # It reads the environment once.


def records(path):
    """Yields the records of wandb's file, which is a log of LevelDB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:  # A record does not start in the last bytes of a block.
            at += _BLOCK - at % _BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield Record.FromString(parts)
            parts = b""


def contents(folder):
    """Returns id, config and history of each run in a folder, in order."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        all_records = list(records(path))
        config = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for record in all_records
            for update in (record.run.config, record.config)
            for item in update.update
        }
        history = [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in all_records
            if record.HasField("history")
        ]
        (id,) = {record.run.run_id for record in all_records if record.HasField("run")}
        found.append((id, config, history))
    return found


def write(folder, stream, start_step, steps):
    console = Console(10, stream=stream)
    with MetricWriter(folder, console, start_step, trackers=("wandb",), config={"model": {"depth": 2}}) as writer:
        for step in steps:
            writer.scalars(step, {"loss": 1 / step})
        writer.images(steps[-1], "samples/images", [np.zeros((4, 6, 3), np.uint8)] * 2, ("A boat.", "Two birds."))
        writer.answers(steps[-1], "samples/answers", [("Who?", "Tom.")])
        writer.texts(steps[-1], {"data/order": "changed"})


def test_an_offline_run_has_scalars_pictures_answers_and_config_and_resumes_with_its_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    stream, folder = io.StringIO(), tmp_path / "run"
    write(folder, stream, 0, (1, 2))
    time.sleep(1 - time.time() % 1)  # wandb's folders are named after the second of their start.
    write(folder, stream, 1, (2, 4))
    assert "Warning" not in stream.getvalue()
    (first, config, history), (second, _, resumed) = contents(folder)
    assert first == second == json.loads((folder / "run.json").read_text())["id"]
    assert f"wandb: run {first} (offline; wandb sync {folder}" in stream.getvalue()
    assert config["model"] == {"depth": 2}
    assert {"janus_jax", "jax"} <= set(config["versions"])
    losses = [[(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in (history, resumed)]
    assert losses == [[(1, 1.0), (2, 0.5)], [(2, 0.5), (4, 0.25)]]
    captions = [(row["step"], row["samples/images.captions"]) for row in history if "samples/images.captions" in row]
    assert captions == [(2, ["A boat.", "Two birds."])]
    tables = [
        json.loads(path.read_text()) for path in folder.glob("wandb/offline-*/files/media/table/samples/answers_*.json")
    ]
    assert tables == [{"columns": ["question", "answer"], "data": [["Who?", "Tom."]]}] * 2


def test_without_an_api_key_the_run_continues(tmp_path):
    stream = io.StringIO()
    write(tmp_path, stream, 0, (1,))
    assert "tracker wandb cannot start (RuntimeError: there is no API key; run `wandb login`" in stream.getvalue()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
