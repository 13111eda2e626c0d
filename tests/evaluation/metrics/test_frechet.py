"""Tests of the Fréchet distance against its definition."""

import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance

RNG = np.random.default_rng(0)


def fit(features, batch=7):
    statistics = FeatureStatistics(features.shape[1])
    for start in range(0, len(features), batch):
        statistics.add(features[start : start + batch])
    return statistics.gaussian()


def test_statistics_do_not_depend_on_the_batches():
    features = RNG.standard_normal((20, 3)) + 5
    found = fit(features)
    np.testing.assert_allclose(found.mean, features.mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(features.T), atol=1e-10)


def test_the_distance_of_gaussians_follows_the_formula():
    # Scaled white samples have exactly the intended covariances.
    raw = RNG.standard_normal((200, 3))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    stds, others = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    expected = np.sum((stds - others) ** 2) + 3 * 0.5**2
    found = frechet_distance(fit(white * stds), fit(white * others + 0.5))
    assert found == pytest.approx(expected)


def test_the_distance_to_itself_is_zero_with_fewer_images_than_dimensions():
    features = fit(RNG.standard_normal((5, 16)))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_a_single_image_is_reported():
    with pytest.raises(JanusError, match="at least two images"):
        frechet_distance(fit(np.ones((1, 2))), fit(np.ones((4, 2))))
