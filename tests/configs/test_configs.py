"""Compares all values of the recipes with stored copies, so that every change shows in a review.

`python -m tests.configs.test_configs` stores the current values.
"""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from janus_jax import load_recipe
from janus_jax.errors import JanusError
from janus_jax.training.recipe_files import recipe_names

STORED = Path(__file__).parent / "stored"


def lines(config, name="config"):
    """Yields one line per value, in the form of the flag that sets it."""
    if isinstance(config, ConfigDict):
        for key in sorted(config):
            yield from lines(config[key], f"{name}.{key}")
    else:
        yield f"{name} = {config!r}"


def printed(name):
    return "\n".join(lines(load_recipe(name))) + "\n"


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_matches_stored_values(name):
    assert printed(name) == (STORED / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def get_config():\n    return 3\n", "returns a int"),
        ("def get_config():\n    return missing\n", "NameError"),
        ("def get_config(:\n", "SyntaxError"),
    ],
)
def test_broken_recipe_file_is_reported(tmp_path, content, words):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(JanusError, match=rf"mine\.py.*{words}"):
        load_recipe(str(tmp_path / "mine.py"))


def test_unknown_recipe_name_lists_the_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "janus_pro_1c").mkdir()
    with pytest.raises(JanusError, match=r"Did you mean janus_pro_1b.*vq_16"):
        load_recipe("janus_pro_1c")


if __name__ == "__main__":
    for name in recipe_names():
        (STORED / f"{name}.txt").write_text(printed(name))
