"""Golden sets: outputs of the PyTorch implementation for pseudo-weights.

`data/` holds the sets of the project. `JANUS_GOLDEN_DIR=DIR` runs the tests on another set, with its own config and
salt, and skips the tests of other kinds of models.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert.parameters import model_parameters
from janus_jax.pretrained import load_params
from tests.golden.pseudo_weights import tensor

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class GoldenSet:
    """A folder with `config.json`, `manifest.json`, `expected.npz` and the input images."""

    path: Path

    @cached_property
    def config(self):
        return json.loads((self.path / "config.json").read_text())

    @cached_property
    def shapes(self):
        return {name: tuple(shape) for name, shape in json.loads((self.path / "manifest.json").read_text()).items()}

    @cached_property
    def expected(self):
        with np.load(self.path / "expected.npz") as file:
            return {name: file[name] for name in file.files}

    @property
    def images(self):
        """Paths of the input images; those of janus_small if the set has none."""
        return sorted(self.path.glob("image_*.png")) or sorted((DATA / "janus_small").glob("image_*.png"))

    @property
    def kind(self):
        if "gen_vision_config" in self.config:
            return "janus"
        return "flow" if "vision_gen_enc_config" in self.config else "vae"

    @cached_property
    def salt(self):
        return int(self.expected["salt"])

    def __getitem__(self, name):
        """Returns the pseudo-random values of the weight with this name."""
        return tensor(name, self.shapes[name], self.salt)

    def params(self, layout, config, execution):
        """Returns the pseudo-weights as the parameters of a model."""
        units = layout.map(model_parameters(config))
        values = ((unit.parameter.keys, unit.layer, unit.read(self)) for unit in units)
        return load_params(values, config, execution, mesh=None)


def golden_set(kind, default):
    """Returns the set in `JANUS_GOLDEN_DIR`, or the default. Skips the test if the set is of another kind."""
    given = os.environ.get("JANUS_GOLDEN_DIR")
    if given is None:
        return GoldenSet(DATA / default)
    if (Path(given) / "base.json").is_file():
        pytest.skip("JANUS_GOLDEN_DIR has no config of its own: it is a set of editing or policy optimization")
    if not (Path(given) / "config.json").is_file():
        pytest.fail(f"JANUS_GOLDEN_DIR={given} has no config.json", pytrace=False)
    found = GoldenSet(Path(given))
    if found.kind != kind:
        pytest.skip(f"JANUS_GOLDEN_DIR is a set of kind {found.kind}")
    return found


def channels_first(array):
    return np.asarray(array).transpose(0, 3, 1, 2)


def assert_close(actual, expected, relative):
    """Asserts that no value differs by more than `relative` times the largest expected value."""
    actual = np.asarray(actual, np.float32)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= relative, f"relative error {error:.2e}"
