import pytest

from checkpoints_convert import convert
from tests.checkpoints_convert.checkpoints import save_released


@pytest.fixture(scope="session")
def released_folder(tmp_path_factory):
    return save_released(tmp_path_factory.mktemp("checkpoints") / "Janus-Pro-small")


@pytest.fixture(scope="session")
def converted_folder(released_folder):
    target = released_folder.parent / "converted"
    convert(released_folder, target)
    return target
