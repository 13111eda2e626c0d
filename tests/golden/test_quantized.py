"""Divergence of a golden model with weights of 8 bits from the same model in float32."""

import dataclasses
import functools

import numpy as np
import pytest

from janus_jax.models.janus import Janus
from tests.golden.conftest import DATA, GoldenSet
from tests.golden.test_janus import GoldenModel

# Largest mean divergence in nats, of text logits and of image logits with guidance 5 (docs/performance.md).
LIMITS = {"int8": (1e-3, 5e-3), "int8_dynamic": (2e-3, 1e-2), "fp8": (2e-2, 1e-1)}


@functools.cache
def exact():
    model = GoldenModel(GoldenSet(DATA / "janus_small"))
    return model.understanding_logits[1], model.guided_logits


def divergence(expected, logits):
    """Returns the Kullback-Leibler divergence at every position, and the share of positions with equal maxima."""
    p, q = (one.astype(np.float64) - one.max(axis=-1, keepdims=True) for one in (expected, logits))
    p, q = (one - np.log(np.exp(one).sum(axis=-1, keepdims=True)) for one in (p, q))
    return (np.exp(p) * (p - q)).sum(axis=-1), (p.argmax(axis=-1) == q.argmax(axis=-1)).mean()


@pytest.mark.nightly
@pytest.mark.parametrize("quantization", LIMITS)
def test_logits_stay_close_to_those_of_float32(quantization):
    model = GoldenModel(GoldenSet(DATA / "janus_small"))
    model.model = Janus(model.config, dataclasses.replace(model.model.execution, quantization=quantization))
    for expected, logits, limit in zip(
        exact(), (model.understanding_logits[1], model.guided_logits), LIMITS[quantization], strict=True
    ):
        values, same = divergence(expected, logits)
        print(quantization, values.shape, f"mean {values.mean():.2e} max {values.max():.2e} same maximum {same:.3f}")
        assert 0 < values.mean() < limit
