"""Every registered config, number by number, against what is stored: no recipe changes unseen.

`python -m tests.configs.test_configs` stores what the configs now say.
"""

import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "stored"
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


def lines(config, name="config"):
    """One line a number, in the form of the flag that would set it."""
    if isinstance(config, ConfigDict):
        for key in sorted(config):
            yield from lines(config[key], f"{name}.{key}")
    else:
        yield f"{name} = {config!r}"


def printed(name):
    return "\n".join(lines(importlib.import_module(f"configs.{name}").get_config())) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_config_says_what_is_stored(name):
    assert printed(name) == (STORED / f"{name}.txt").read_text()


def test_nothing_is_stored_of_what_is_gone():
    assert sorted(path.stem for path in STORED.glob("*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_headed_by_its_command_and_what_to_expect(name):
    heading = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config configs/{name}.py" in heading
    assert "expect" in heading.lower()


if __name__ == "__main__":
    STORED.mkdir(exist_ok=True)
    for name in NAMES:
        (STORED / f"{name}.txt").write_text(printed(name))
