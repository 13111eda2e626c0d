"""DPG-Bench: a grid of two by two for every prompt."""

import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.generation.dpg import BENCHMARK
from tests.evaluation.generation.painting import SIDE, FakePainter, draw, painted, pixels, predicted


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "prompts"
    folder.mkdir(parents=True)
    (folder / "partiprompts12.txt").write_text("A long story of a boat.\n")
    (folder / "COCOval2014000000.txt").write_text("A long story of a lake.")
    return tmp_path / "data"


def test_four_pictures_make_a_grid(data, tmp_path):
    out = tmp_path / "out"
    folder = predicted(BENCHMARK, *draw(BENCHMARK, data, out), out)
    assert sorted(file.name for file in folder.iterdir()) == ["COCOval2014000000.png", "partiprompts12.png"]
    # Files come by name, so that the boat is prompt number 1.
    tiles = [painted("A long story of a boat.", (1, number)) for number in range(4)]
    grid = np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)])
    assert grid.shape == (2 * SIDE, 2 * SIDE, 3)
    assert (pixels(folder / "partiprompts12.png") == grid).all()


def test_a_killed_run_draws_what_is_left(data, tmp_path):
    painter = FakePainter()
    with pytest.raises(KeyboardInterrupt):
        draw(BENCHMARK, data, tmp_path / "out", FakePainter(stop_at=1), batch_size=5)
    draw(BENCHMARK, data, tmp_path / "out", painter, batch_size=5)
    assert {numbers for batch in painter.asked for _, numbers in batch} == {(1, 1), (1, 2), (1, 3)}


def test_data_that_will_not_do_is_told(data, tmp_path):
    with pytest.raises(JanusError, match=r"prompts does not exist"):
        BENCHMARK.read(tmp_path, {})
    (data / "prompts" / "empty.txt").write_text("\n")
    with pytest.raises(JanusError, match=r"empty.txt is empty; a prompt is expected"):
        BENCHMARK.read(data, {})
