"""PSNR, SSIM and the Fréchet distance against their definitions."""

import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.train.vq.fid import FeatureStatistics, frechet_distance
from janus_jax.train.vq.metrics import psnr, ssim

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 16, 14, 3), np.uint8)
OTHERS = np.clip(IMAGES + RNG.integers(-40, 40, IMAGES.shape), 0, 255).astype(np.uint8)


def test_psnr():
    error = np.mean((IMAGES / 255 - OTHERS / 255) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(psnr(IMAGES, OTHERS), -10 * np.log10(error), rtol=1e-5)
    assert psnr(IMAGES, IMAGES).tolist() == pytest.approx([100, 100])


def test_ssim():
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.sum(line) ** 2

    def of(a, b):
        mean_a, mean_b = np.sum(window * a), np.sum(window * b)
        variance_a, variance_b = np.sum(window * a * a) - mean_a**2, np.sum(window * b * b) - mean_b**2
        covariance = np.sum(window * a * b) - mean_a * mean_b
        above = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        return above / ((mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4))

    a, b = IMAGES / 255, OTHERS / 255
    expected = [
        np.mean(
            [
                of(a[i, y : y + 11, x : x + 11, c], b[i, y : y + 11, x : x + 11, c])
                for y in range(6)
                for x in range(4)
                for c in range(3)
            ]
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(ssim(IMAGES, OTHERS), expected, rtol=1e-4)
    np.testing.assert_allclose(ssim(IMAGES, IMAGES), 1, rtol=1e-5)


def statistics(features, batch=7):
    found = FeatureStatistics(features.shape[1])
    for start in range(0, len(features), batch):
        found.add(features[start : start + batch])
    return found


def test_statistics_do_not_depend_on_the_batches():
    features = RNG.standard_normal((20, 3)) + 5
    found = statistics(features)
    np.testing.assert_allclose(found.mean, features.mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(features.T), atol=1e-10)


def test_the_distance_of_gaussians():
    # Whitened samples scaled anew have the covariances that are asked for, to the last digit.
    raw = RNG.standard_normal((200, 3))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    deviations, others = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    expected = np.sum((deviations - others) ** 2) + 3 * 0.5**2
    found = frechet_distance(statistics(white * deviations), statistics(white * others + 0.5))
    assert found == pytest.approx(expected)


def test_the_distance_to_itself_is_nothing_with_fewer_images_than_dimensions():
    features = statistics(RNG.standard_normal((5, 16)))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_one_image_has_no_distance():
    with pytest.raises(JanusError, match="two images"):
        frechet_distance(statistics(np.ones((1, 2))), statistics(np.ones((4, 2))))
