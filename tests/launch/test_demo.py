import numpy as np
import pytest
from PIL import Image

from checkpoints_convert import detect_layout
from janus_jax.config import preset
from launch import demo
from launch.pseudo import make_checkpoint
from launch.scenery import landscape


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder that the demo filled for the smallest model."""
    folder = tmp_path_factory.mktemp("demo")
    demo.run(folder, preset("tiny"))
    return folder


def test_it_leaves_a_checkpoint_in_both_layouts(shown):
    assert detect_layout(shown / "Janus-demo") == "released"
    assert detect_layout(shown / "Janus-demo-jax") == "converted"


def test_it_leaves_its_pictures(shown):
    names = {f"0000{prompt}_{image}.png" for prompt in range(3) for image in range(3)}
    assert {path.name for path in shown.glob("*.png")} == names | {"landscape.png", "drawn.png"}


def test_it_does_not_draw_the_same_for_every_prompt(shown):
    first, second = (np.array(Image.open(shown / f"0000{prompt}_0.png")) for prompt in (0, 1))
    assert (first != second).any()


def test_it_runs_again_over_what_it_left_and_says_what_its_weights_are(shown, capsys):
    demo.run(shown, preset("tiny"))
    said = capsys.readouterr().out
    assert all(words in said for words in ("same to the last bit", "pseudo-random", "learnt nothing"))


def test_the_same_config_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        make_checkpoint(tmp_path / name, preset("tiny"), demo.CORPUS)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [(tmp_path / "one" / name).read_bytes() for name in files] == [
        (tmp_path / "two" / name).read_bytes() for name in files
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_one_changed_byte_is_noticed(tmp_path, name):
    for folder in ("before", "after"):
        make_checkpoint(tmp_path / folder, preset("tiny"), demo.CORPUS)
    assert demo.compare(tmp_path / "before", tmp_path / "after") > 0
    file = tmp_path / "after" / name
    content = bytearray(file.read_bytes())
    if name == "config.json":
        content = content.replace(b'"janus_pro"', b'"janus"')
    else:
        content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(AssertionError):
        demo.compare(tmp_path / "before", tmp_path / "after")


def test_every_part_of_the_demos_model_is_that_of_a_released_one():
    assert demo.CONFIG.und_encoder.num_patches == demo.CONFIG.gen_encoder.num_tokens
    assert demo.CONFIG.gen_encoder.downsampling == 16
    assert demo.CONFIG.und_encoder.patch_size == 16


def test_the_landscape_is_the_same_every_time_and_bright_where_the_sun_is():
    picture = np.array(landscape(192, 128))
    np.testing.assert_array_equal(picture, np.array(landscape(192, 128)))
    assert picture.shape == (128, 192, 3)
    row, column = np.unravel_index(picture.sum(axis=-1).argmax(), picture.shape[:2])
    assert (0.2 < row / 128 < 0.4) & (0.55 < column / 192 < 0.75)
