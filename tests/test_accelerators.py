"""The table of accelerators."""

import pytest

from janus_jax.accelerators import ACCELERATORS, peak_flops


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "float16", 989e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v4", "float32", None),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", None),
    ],
)
def test_peak_is_that_of_the_longest_matching_kind(kind, dtype, peak):
    assert peak_flops(kind, dtype) == peak


def test_every_accelerator_has_a_peak():
    assert all(peak_flops(one.kind, "bfloat16") for one in ACCELERATORS.values() if one.platform != "cpu")
