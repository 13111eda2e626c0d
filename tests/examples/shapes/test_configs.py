"""Every config of the example against its stored values: no recipe changes unnoticed."""

import importlib
from pathlib import Path

import pytest

from tests.configs.test_configs import lines

STORED = Path(__file__).parent / "stored"


@pytest.mark.parametrize("file", sorted(STORED.glob("*.txt")), ids=lambda file: file.stem)
def test_config_matches_stored_values(file):
    config = importlib.import_module(f"examples.shapes.configs.{file.stem}").get_config()
    assert "\n".join(lines(config)) + "\n" == file.read_text()
