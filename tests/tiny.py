"""Models with the `tiny` presets, random parameters and a tokenizer."""

import dataclasses
import functools
import tempfile

import flax.linen as nn
import jax
import numpy as np

from janus_jax.config import Execution, flow_preset, janus_preset
from janus_jax.models.backbone import unroll_params
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.pretrained import Pretrained, load_params
from janus_jax.processing import Processor, make_byte_level_tokenizer

CORPUS = ["A small red boat on a quiet lake.", "What is in the picture?", "Two birds and a tree, drawn in ink."]
# Grouped queries, with numbers of heads that a mesh of two devices can shard.
_TINY = janus_preset("tiny")
CONFIG = dataclasses.replace(_TINY, llm=dataclasses.replace(_TINY.llm, num_kv_heads=2))
FLOW = dataclasses.replace(flow_preset("tiny_flow"), llm=CONFIG.llm)


@functools.cache
def processor(config=CONFIG):
    with tempfile.TemporaryDirectory() as folder:
        make_byte_level_tokenizer(
            folder,
            CORPUS,
            config.llm.vocab_size,
            config.conversation,
            image_size=config.und_encoder.image_size,
            num_image_tokens=config.und_encoder.num_patches,
        )
        return Processor.from_directory(folder, config)


@functools.cache
def stacked_params(config=CONFIG):
    """Returns random parameters from numpy, which needs no compilation. Layer outputs have variance 1."""
    rng = np.random.default_rng(0)

    def make(path, leaf):
        name = path[-1].key
        if name == "scale":
            return np.ones(leaf.shape, np.float32)
        fan_in = {"weight": leaf.shape[-1], "kernel": np.prod(leaf.shape[-4:-1]), "embedding": 4}.get(name, 1000)
        return rng.standard_normal(leaf.shape, np.float32) / np.sqrt(np.float32(fan_in))

    return jax.tree_util.tree_map_with_path(make, nn.unbox(abstract_params(make_model(config))))


def leaves_of(tree, keys=()):
    """Yields the leaves of a stacked tree in the form of `Checkpoint.params`."""
    for key, value in tree.items():
        path = (*keys, key)
        if isinstance(value, dict):
            yield from leaves_of(value, path)
        elif path[:2] in (("llm", "layers"), ("und_encoder", "blocks")):
            for layer, array in enumerate(np.asarray(value)):
                yield path, layer, array
        else:
            yield path, None, np.asarray(value)


def pretrained(mesh=None, config=CONFIG):
    execution = Execution(layers="unrolled")
    params = load_params(leaves_of(stacked_params(config)), config, execution, mesh)
    return Pretrained(config, params, processor(config), make_model(config, execution), mesh)


def with_context(model, positions):
    """Returns the model with another context length."""
    llm = dataclasses.replace(model.config.llm, max_positions=positions)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, llm=llm))


@functools.cache
def unrolled_params(config=CONFIG):
    return unroll_params(stacked_params(config), config)


def picture(seed, size=(40, 28)):
    """Returns a smooth random image."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
