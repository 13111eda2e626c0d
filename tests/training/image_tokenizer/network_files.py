"""Weight files of LPIPS and Inception with the published tensor names and random values."""

import functools

import numpy as np

from janus_jax.evaluation.metrics.inception import inception_shapes

VGG = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
VGG |= {17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


@functools.cache
def lpips_files():
    """Returns the tensors of torchvision's vgg16 and of vgg.pth in the lpips package."""
    rng = np.random.default_rng(0)
    vgg = {"classifier.6.bias": np.zeros(1000, np.float32)}
    for number, (outputs, inputs) in VGG.items():
        weight = rng.standard_normal((outputs, inputs, 3, 3), np.float32)
        vgg[f"features.{number}.weight"] = weight * np.float32(np.sqrt(2 / (9 * inputs)))
        vgg[f"features.{number}.bias"] = 0.1 * rng.standard_normal(outputs, np.float32)
    widths = (64, 128, 256, 512, 512)
    lins = {f"lin{i}.model.1.weight": rng.random((1, width, 1, 1), np.float32) for i, width in enumerate(widths)}
    return vgg, lins


@functools.cache
def inception_file():
    """Returns the tensors of pytorch-fid's Inception."""
    rng = np.random.default_rng(0)
    tensors = {"fc.bias": np.zeros(1008, np.float32)}
    for path, shape in inception_shapes().items():
        name = ".".join(path)
        if name.endswith("conv.weight"):
            deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])))
            tensors[name] = rng.standard_normal(shape, np.float32) * deviation
        elif name.endswith(("running_var", "bn.weight")):
            tensors[name] = 1 + 0.2 * rng.random(shape, np.float32)
        else:
            tensors[name] = 0.1 * rng.standard_normal(shape, np.float32)
    return tensors
