"""Compares LPIPS and Inception with the same networks written in PyTorch."""

import jax
import numpy as np
import pytest

from janus_jax.evaluation.metrics.inception import Inception, inception_params
from janus_jax.training.image_tokenizer.lpips import LPIPS, lpips_params
from tests.training.image_tokenizer.network_files import VGG, inception_file, lpips_files

torch = pytest.importorskip("torch")
F = torch.nn.functional


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def test_lpips_matches_pytorch():
    vgg, lins = lpips_files()
    images, others = (np.random.default_rng(i).uniform(-1, 1, (2, 3, 33, 40)).astype(np.float32) for i in (0, 1))
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def features(x):
        x = (tensor(x) - mean) / deviation
        for number in VGG:
            if number in (5, 10, 17, 24):
                x = F.max_pool2d(x, 2)
            x = F.relu(
                F.conv2d(x, tensor(vgg[f"features.{number}.weight"]), tensor(vgg[f"features.{number}.bias"]), padding=1)
            )
            if number in (2, 7, 14, 21, 28):
                yield x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

    with torch.inference_mode():
        expected = sum(
            F.conv2d((a - b) ** 2, tensor(lins[f"lin{i}.model.1.weight"])).mean((2, 3))
            for i, (a, b) in enumerate(zip(features(images), features(others), strict=True))
        ).mean()
    channels_last = [x.transpose(0, 2, 3, 1) for x in (images, others)]
    found = jax.jit(LPIPS().apply)({"params": lpips_params(vgg, lins)}, *channels_last)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_inception_matches_pytorch():
    tensors = inception_file()

    def unit(x, name, stride=1, padding=0):
        x = F.conv2d(x, tensor(tensors[f"{name}.conv.weight"]), stride=stride, padding=padding)
        parts = (tensor(tensors[f"{name}.bn.{part}"]) for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *parts, eps=1e-3))

    def chain(x, block, *steps):
        for name, padding, *stride in steps:
            x = unit(x, f"{block}.{name}", *(stride or [1]), padding)
        return x

    def mean_pool(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def block_a(x, m):
        return torch.cat(
            [
                chain(x, m, ("branch1x1", 0)),
                chain(x, m, ("branch5x5_1", 0), ("branch5x5_2", 2)),
                chain(x, m, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 1)),
                chain(mean_pool(x), m, ("branch_pool", 0)),
            ],
            1,
        )

    def block_b(x, m):
        double = chain(x, m, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 0, 2))
        return torch.cat([chain(x, m, ("branch3x3", 0, 2)), double, F.max_pool2d(x, 3, 2)], 1)

    def block_c(x, m):
        across, down = (0, 3), (3, 0)
        double = [(f"branch7x7dbl_{i}", padding) for i, padding in enumerate([0, down, across, down, across], 1)]
        return torch.cat(
            [
                chain(x, m, ("branch1x1", 0)),
                chain(x, m, ("branch7x7_1", 0), ("branch7x7_2", across), ("branch7x7_3", down)),
                chain(x, m, *double),
                chain(mean_pool(x), m, ("branch_pool", 0)),
            ],
            1,
        )

    def block_d(x, m):
        seven = [("branch7x7x3_1", 0), ("branch7x7x3_2", (0, 3)), ("branch7x7x3_3", (3, 0)), ("branch7x7x3_4", 0, 2)]
        three = chain(x, m, ("branch3x3_1", 0), ("branch3x3_2", 0, 2))
        return torch.cat([three, chain(x, m, *seven), F.max_pool2d(x, 3, 2)], 1)

    def block_e(x, m, pooled):
        three = chain(x, m, ("branch3x3_1", 0))
        double = chain(x, m, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        return torch.cat(
            [
                chain(x, m, ("branch1x1", 0)),
                chain(three, m, ("branch3x3_2a", (0, 1))),
                chain(three, m, ("branch3x3_2b", (1, 0))),
                chain(double, m, ("branch3x3dbl_3a", (0, 1))),
                chain(double, m, ("branch3x3dbl_3b", (1, 0))),
                chain(pooled, m, ("branch_pool", 0)),
            ],
            1,
        )

    images = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 64)).astype(np.float32) / 255
    with torch.inference_mode():
        x = 2 * F.interpolate(tensor(images), (299, 299), mode="bilinear", align_corners=False) - 1
        x = unit(unit(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(unit(x, "Conv2d_2b_3x3", padding=1), 3, 2)
        x = F.max_pool2d(unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for name in "bcd":
            x = block_a(x, f"Mixed_5{name}")
        x = block_b(x, "Mixed_6a")
        for name in "bcde":
            x = block_c(x, f"Mixed_6{name}")
        x = block_d(x, "Mixed_7a")
        x = block_e(x, "Mixed_7b", mean_pool(x))
        expected = block_e(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1)).mean((2, 3)).numpy()
    found = jax.jit(Inception().apply)({"params": inception_params(tensors)}, 2 * images.transpose(0, 2, 3, 1) - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
