"""Reported metrics of a step."""

import io
import json

import pytest

from janus_jax.training.console import Console
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.metrics import StepMetrics


@pytest.mark.parametrize("peak", [None, 1e12])
def test_mfu_is_reported_if_the_peak_is_known(tmp_path, peak):
    stream = io.StringIO()
    with MetricWriter(tmp_path, Console(1, stream=stream)) as writer:
        steps = StepMetrics(writer=writer, folder=tmp_path, is_due=bool, peak_flops=peak)
        metrics = {"loss": 2.5, "loss/text": 2.5, "tokens/text": 8.0, "grad_norm": 1.0, "finite": 1.0}
        steps.add(1, metrics, [["text/1"]], {"tokens": 16, "samples": 1, "flops": 1e9})
        steps.flush()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["flops/s"] > 0
    assert line.get("mfu") == (peak and pytest.approx(line["flops/s"] / peak))
    assert ("mfu " in stream.getvalue()) == (peak is not None)
