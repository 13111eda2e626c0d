import dataclasses
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from checkpoints_convert import save_checkpoint
from janus_jax import load
from janus_jax.data.prepare.prepare import read_tokenizer
from janus_jax.errors import JanusError
from janus_jax.models.backbone import apply, to_pixels
from janus_jax.processing import open_image, prepare_generation
from tests import tiny
from tests.commands.conftest import environment, run
from tests.data.samples import images, json_lines, read_back, table


@pytest.fixture
def desk(tmp_path):
    """Captions of good pictures and of one that is absent, and inputs that will not do."""
    images(tmp_path / "photos", 4)
    rows = [{"image": f"{i}.jpg", "caption": f"Number {i}."} for i in range(5)]
    json_lines(tmp_path / "c.jsonl", rows)
    table(tmp_path / "other.csv", [("bild", "satz"), ("0.jpg", "Eine Katze.")])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.json").write_text('[{"image": "0.jpg"')
    (tmp_path / "c.txt").write_text("A cat.")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    return tmp_path


USUAL = ("--source=captions", "--input=c.jsonl", "--images=photos", "--output=out", "--max_rejected=0.2")


def test_shards_a_table_and_a_bar(desk):
    done = run("launch.prepare", *USUAL, "--shard_records=2", "--workers=2", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "out"
    assert "missing_file" in done.stdout
    assert "5/5" in done.stderr
    assert [record.text for record in read_back(desk / "out")] == [f"Number {i}." for i in range(4)]
    again = run("launch.prepare", *USUAL, "--shard_records=2", "--workers=1", cwd=desk)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_beam(desk):
    done = run("launch.prepare", *USUAL, "--beam=--runner=DirectRunner", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert len(read_back(desk / "out")) == 4


def test_a_source_of_ones_own(desk):
    done = run("launch.prepare", "--source=tests.data.own_source:poems", "--input=3", "--output=out", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert [record.text for record in read_back(desk / "out")] == ["Poem 0", "Poem 1", "Poem 2"]


def expected_ids(checkpoint, records):
    model = load(checkpoint, "float32")
    side = model.config.gen_encoder.image_size
    pixels = np.stack([prepare_generation(open_image(record.images[0]), side) for record in records])
    tokenize = jax.jit(lambda params: apply(model.model.tokenize, params, to_pixels(pixels)))
    return tokenize(model.params)


def test_image_ids_with_a_converted_checkpoint(desk, checkpoint):
    converted = desk / "converted"
    done = run("launch.convert", checkpoint, converted)
    assert done.returncode == 0, done.stderr
    done = run("launch.prepare", *USUAL, f"--tokenizer={converted}", cwd=desk)
    assert done.returncode == 0, done.stderr
    records = read_back(desk / "out")
    np.testing.assert_array_equal([record.image_tokens for record in records], expected_ids(checkpoint, records))


def test_latents_with_a_janusflow(desk):
    save_checkpoint(desk / "flow", tiny.stacked_params(tiny.FLOW), tiny.FLOW)
    done = run("launch.prepare", *USUAL, f"--tokenizer={desk / 'flow'}", cwd=desk)
    assert done.returncode == 0, done.stderr
    records = read_back(desk / "out")
    assert [len(record.image_latents) for record in records] == [math.prod(tiny.FLOW.gen_encoder.latent_shape)] * 4
    assert [len(record.image_tokens) for record in records] == [0] * 4


def test_a_janusflow_without_its_vae_makes_no_latents(tmp_path):
    config = dataclasses.replace(tiny.FLOW, vae=None)
    params = {part: tree for part, tree in tiny.stacked_params(tiny.FLOW).items() if part != "vae"}
    save_checkpoint(tmp_path / "flow", params, config)
    with pytest.raises(JanusError, match="a JanusFlow without its VAE; give the folder of the VAE"):
        read_tokenizer(tmp_path / "flow")


def cluster(desk, port, *arguments):
    """How two processes end, of which the second has further arguments: exit codes, and what they say."""
    variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "launch.prepare", *USUAL, "--distributed", "--workers=1", "--shard_records=1"]
    processes = [
        subprocess.Popen(
            [*command, *more],
            cwd=desk,
            env=environment(**variables, JAX_PROCESS_ID=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, more in enumerate(arguments)
    ]
    said = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], said


def test_two_processes_of_a_cluster_share_the_work(desk, checkpoint, unused_port):
    codes, said = cluster(desk, unused_port, *[[f"--tokenizer={checkpoint}"]] * 2)
    assert codes == [0, 0], said
    assert "records" in said[0][0]
    assert "records" not in said[1][0]
    assert "2/2" in said[0][1]
    records = read_back(desk / "out")
    np.testing.assert_array_equal([record.image_tokens for record in records], expected_ids(checkpoint, records))


def test_a_process_of_a_cluster_that_fails_ends_the_others(desk, unused_port):
    codes, said = cluster(desk, unused_port, [], ["--input=empty.jsonl"])
    assert codes == [2, 2], said
    assert "Process 1 of the cluster failed" in said[0][1]
    assert "holds what was prepared from inputs" in said[1][1]


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


MISTAKES = {
    "no such source": (["--source=poems"], "--source poems is unknown; take one of captions"),
    "no such input": (["--input=absent.jsonl"], "--input absent.jsonl matches no file"),
    "an empty input": (["--input=empty.jsonl"], "holds no records"),
    "a kind of file that is none": (["--input=c.txt"], "ends with none of .jsonl, .csv"),
    "a table of other columns": (["--input=other.csv"], "name the right one with --text_field"),
    "a truncated array": (["--source=llava", "--input=broken.json"], "broken.json is damaged"),
    "a task that it cannot teach": (["--task=text"], "--task text is nothing that --source captions can teach"),
    "no such task": (["--task=poetry"], "--task"),
    "no such folder of images": (["--images=nowhere"], "--images nowhere is no folder"),
    "a folder of other files": (["--output=taken"], "taken holds other files"),
    "a file in the way": (["--output=c.txt"], "c.txt is no folder"),
    "an impossible share": (["--max_rejected=1.5"], "--max_rejected"),
    "no workers": (["--workers=0"], "--workers"),
    "an empty prompt": (["--prompt= "], "--prompt is empty"),
    "a split without a name": (["--split="], "--split"),
    "ids of images that are not drawn": (["--task=understanding", "--tokenizer=x"], "--tokenizer computes ids of"),
    "no such tokenizer": (["--tokenizer=absent"], "absent does not exist"),
    "too much that is rejected": (["--max_rejected=0.1"], "1 of 5 records were rejected, missing_file 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(desk, mistake):
    arguments, words = MISTAKES[mistake]
    given = {argument.split("=")[0] for argument in arguments}
    usual = [argument for argument in USUAL if argument.split("=")[0] not in given]
    done = run("launch.prepare", *usual, *arguments, "--workers=1", cwd=desk, JAX_PLATFORMS="nowhere")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("janus-prepare: ")
    assert words in sentence


def test_nothing_is_left_of_a_run_that_could_not_begin(desk):
    run("launch.prepare", *USUAL[:1], "--input=absent", "--output=out", cwd=desk)
    assert not (desk / "out").exists()


def test_the_command_starts_without_jax():
    code = "import sys, launch.prepare; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
