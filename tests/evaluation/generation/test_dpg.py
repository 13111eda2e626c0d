"""Tests of DPG-Bench."""

import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation.dpg import BENCHMARK
from tests.evaluation.generation.fakes import SIZE, expected_pixels, read_pixels, run_benchmark, write_predictions


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "prompts"
    folder.mkdir(parents=True)
    (folder / "partiprompts12.txt").write_text("A long story of a boat.\n")
    (folder / "COCOval2014000000.txt").write_text("A long story of a lake.")
    return tmp_path / "data"


def test_predictions_are_grids_of_four_images(data, tmp_path):
    out = tmp_path / "out"
    folder = write_predictions(BENCHMARK, *run_benchmark(BENCHMARK, data, out), out)
    assert sorted(file.name for file in folder.iterdir()) == ["COCOval2014000000.png", "partiprompts12.png"]
    # Files are sorted by name, so the boat is prompt 1.
    tiles = [expected_pixels("A long story of a boat.", (1, number)) for number in range(4)]
    grid = np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)])
    assert grid.shape == (2 * SIZE, 2 * SIZE, 3)
    assert (read_pixels(folder / "partiprompts12.png") == grid).all()


def test_an_empty_prompt_is_reported(data):
    (data / "prompts" / "empty.txt").write_text("\n")
    with pytest.raises(JanusError, match=r"empty.txt is empty; expected a prompt"):
        BENCHMARK.read(data, {})
