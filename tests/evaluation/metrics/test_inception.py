"""Test of Inception's parameters. tests/parity compares the network with PyTorch."""

import numpy as np

from janus_jax.evaluation.metrics.inception import inception_shapes


def test_the_number_of_weights_is_the_published_one():
    # Inception-v3 without its classifiers has 21,785,568 weights, not counting the statistics of the norms.
    sizes = {path[-1]: 0 for path in inception_shapes()}
    for path, shape in inception_shapes().items():
        sizes[path[-1]] += int(np.prod(shape))
    assert sum(size for name, size in sizes.items() if "running" not in name) == 21_785_568
