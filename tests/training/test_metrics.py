"""Reported metrics of a step."""

import io
import json

import pytest

from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.metrics import StepMetrics


def told(folder, **options):
    """Reports one step; returns its line in metrics.jsonl and the progress line."""
    stream = io.StringIO()
    with MetricWriter(folder, 1, stream=stream) as reports:
        figures = StepMetrics(writer=reports, folder=folder, is_due=bool, learning_rate=lambda step: 1e-3, **options)
        metrics = {"loss": 2.5, "loss/text": 2.5, "tokens/text": 8.0, "grad_norm": 1.0, "finite": 1.0}
        figures.add(1, metrics, [["text/1"]], {"tokens": 16, "samples": 1, "flops": 1e9})
        figures.flush()
    return json.loads((folder / "metrics.jsonl").read_text()), stream.getvalue()


def test_mfu_is_reported(tmp_path):
    line, progress = told(tmp_path, peak_flops=1e12)
    assert line["mfu"] == pytest.approx(line["flops/s"] / 1e12)
    assert "mfu " in progress


def test_mfu_is_omitted_without_peak_flops(tmp_path):
    line, progress = told(tmp_path)
    assert line["flops/s"] > 0
    assert "mfu" not in line
    assert "mfu" not in progress
