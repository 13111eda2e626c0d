"""PSNR and SSIM, compared with their definitions."""

import numpy as np
import pytest

from janus_jax.training.image_tokenizer.image_metrics import psnr, ssim

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 16, 14, 3), np.uint8)
OTHERS = np.clip(IMAGES + RNG.integers(-40, 40, IMAGES.shape), 0, 255).astype(np.uint8)


def test_psnr_follows_its_definition():
    error = np.mean((IMAGES / 255 - OTHERS / 255) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(psnr(IMAGES, OTHERS), -10 * np.log10(error), rtol=1e-5)
    assert psnr(IMAGES, IMAGES).tolist() == pytest.approx([100, 100])


def test_ssim_follows_its_definition():
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.sum(line) ** 2

    def similarity(a, b):
        mean_a, mean_b = np.sum(window * a), np.sum(window * b)
        variance_a, variance_b = np.sum(window * a * a) - mean_a**2, np.sum(window * b * b) - mean_b**2
        covariance = np.sum(window * a * b) - mean_a * mean_b
        above = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        return above / ((mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4))

    a, b = IMAGES / 255, OTHERS / 255
    expected = [
        np.mean(
            [
                similarity(a[i, y : y + 11, x : x + 11, c], b[i, y : y + 11, x : x + 11, c])
                for y in range(6)
                for x in range(4)
                for c in range(3)
            ]
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(ssim(IMAGES, OTHERS), expected, rtol=1e-4)
    np.testing.assert_allclose(ssim(IMAGES, IMAGES), 1, rtol=1e-5)
