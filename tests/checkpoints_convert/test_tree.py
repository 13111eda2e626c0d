import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import released, released_flow
from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE, read_vae_config
from checkpoints_convert.jsons import Section
from checkpoints_convert.tree import View, leaves
from janus_jax.config import PRESETS, VAEConfig
from tests.checkpoints_convert.checkpoints import SMALL, SMALL_FLOW

DATA = Path(__file__).parents[1] / "golden" / "data"


@pytest.mark.parametrize("config", [*PRESETS.values(), SMALL, SMALL_FLOW], ids=lambda config: config.name)
def test_the_leaves_are_all_the_models_parameters(config):
    assert sum(leaf.size for leaf in leaves(config)) == config.num_params


@pytest.mark.parametrize("name", ["janus_small", "janus_1b", "janus_pro_7b"])
def test_a_released_files_names_and_shapes_follow_from_its_config(name):
    expected = {name: tuple(shape) for name, shape in json.loads((DATA / name / "manifest.json").read_text()).items()}
    config = released.read_config(Section(json.loads((DATA / name / "config.json").read_text()), name), expected)
    assert released.manifest(config) == expected


@pytest.mark.parametrize("name", ["janusflow_small", "janusflow_1b"])
def test_a_released_flows_names_and_shapes_follow_from_its_config(name):
    expected = {name: tuple(shape) for name, shape in json.loads((DATA / name / "manifest.json").read_text()).items()}
    config = released_flow.read_config(Section(json.loads((DATA / name / "config.json").read_text()), name), expected)
    assert released_flow.manifest(config) == expected
    if name == "janusflow_1b":
        assert replace(config, vae=VAEConfig()) == PRESETS["janusflow_1.3b"]


def test_the_vaes_names_and_shapes_follow_from_its_config():
    expected = json.loads((DATA / "sdxl_vae" / "manifest.json").read_text())
    config = read_vae_config(DATA / "sdxl_vae", {})
    assert config == VAEConfig()
    assert DIFFUSERS_VAE.manifest(leaves(config)) == {name: tuple(shape) for name, shape in expected.items()}


@pytest.mark.parametrize(("folder", "preset"), [("janus_1b", "janus_pro_1b"), ("janus_pro_7b", "janus_pro_7b")])
def test_a_released_config_is_the_presets(folder, preset):
    shapes = json.loads((DATA / folder / "manifest.json").read_text())
    config = released.read_config(Section(json.loads((DATA / folder / "config.json").read_text()), folder), shapes)
    assert replace(config, name=preset) == PRESETS[preset]


@pytest.mark.parametrize(
    ("pattern", "shape", "file_shape"),
    [
        ("a b -> a b", (2, 3), (2, 3)),
        ("q h k w -> (q h k) w", (3, 2, 4, 5), (24, 5)),
        ("w h k -> w (h k)", (5, 2, 4), (5, 8)),
        ("h w i o -> o i h w", (3, 3, 4, 5), (5, 4, 3, 3)),
        ("o i -> o i 1 1", (5, 4), (5, 4, 1, 1)),
        ("n w -> 1 n w", (6, 4), (1, 6, 4)),
    ],
)
def test_a_view_runs_both_ways(pattern, shape, file_shape):
    view, leaf = View(pattern), np.arange(math.prod(shape)).reshape(shape)
    assert view.file_shape(shape) == file_shape
    assert view.to_file(leaf).shape == file_shape
    np.testing.assert_array_equal(view.to_leaf(view.to_file(leaf), shape), leaf)


def test_a_kernel_goes_from_height_first_to_outputs_first():
    kernel = np.arange(3 * 3 * 4 * 5).reshape(3, 3, 4, 5)
    assert View("h w i o -> o i h w").to_file(kernel)[1, 2, 0, 2] == kernel[0, 2, 2, 1]


@pytest.mark.parametrize("pattern", ["a b -> a b", "q h k w -> (q h k) w"])
def test_what_needs_no_transposition_is_not_copied(pattern):
    view = View(pattern)
    names = pattern.split("->")[0].split()
    shape = tuple(range(2, 2 + len(names)))
    file = np.zeros(view.file_shape(shape))
    assert np.shares_memory(view.to_leaf(file, shape), file)
