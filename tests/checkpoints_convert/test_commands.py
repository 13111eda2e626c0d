import pytest

from tests.commands.conftest import run


@pytest.mark.slow
def test_the_command_converts_in_both_directions(released_folder, tmp_path):
    # The conversion uses no accelerator.
    there = run(
        "launch.convert", released_folder, tmp_path / "converted", "--dtype", "bfloat16", JAX_PLATFORMS="nowhere"
    )
    assert there.returncode == 0, there.stderr
    assert "from the released layout" in there.stdout
    assert "14 tensors that janus_jax does not use" in there.stdout
    assert "100%" in there.stderr
    back = run("launch.convert", tmp_path / "converted", tmp_path / "back", "--layout=transformers")
    assert back.returncode == 0, back.stderr
    assert "in the transformers layout" in back.stdout
    assert "100%" in back.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["one"], "SRC DST"),
        (["a", "b", "--layout=other"], "<orbax|released|transformers>"),
        (["a", "b", "--layout=released", "--shard_gb=nan"], "must be a number of at least 0.001"),
    ],
)
def test_a_user_error_is_one_sentence_and_exit_code_2(arguments, sentence):
    done = run("launch.convert", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
