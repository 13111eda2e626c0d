import dataclasses
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from checkpoints_convert import save_checkpoint
from janus_jax import load
from janus_jax.data.prepare.encode_images import open_image_encoder
from janus_jax.errors import JanusError
from janus_jax.models.backbone import apply, to_pixels
from janus_jax.processing import open_image, prepare_generation
from tests import tiny
from tests.commands.conftest import environment, run
from tests.data.samples import images, json_lines, read_back, table


@pytest.fixture
def workspace(tmp_path):
    """Captions of four images and of a missing one, and invalid inputs."""
    images(tmp_path / "photos", 4)
    rows = [{"image": f"{i}.jpg", "caption": f"Number {i}."} for i in range(5)]
    json_lines(tmp_path / "c.jsonl", rows)
    table(tmp_path / "other.csv", [("bild", "satz"), ("0.jpg", "Eine Katze.")])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.json").write_text('[{"image": "0.jpg"')
    (tmp_path / "c.txt").write_text("A cat.")
    return tmp_path


USUAL = ("--source=captions", "--input=c.jsonl", "--images=photos", "--output=out", "--max_rejected=0.2")


def test_prepare_writes_shards_and_shows_counts_and_a_bar(workspace):
    done = run("launch.prepare", *USUAL, "--shard_records=2", "--workers=2", cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "out"
    assert "missing_file" in done.stdout
    assert "5/5" in done.stderr
    assert [record.text for record in read_back(workspace / "out")] == [f"Number {i}." for i in range(4)]
    again = run("launch.prepare", *USUAL, "--shard_records=2", "--workers=1", cwd=workspace)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_prepare_with_a_registered_source(workspace):
    done = run("launch.prepare", "--source=tests.data.own_source:poems", "--input=3", "--output=out", cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert [record.text for record in read_back(workspace / "out")] == ["Poem 0", "Poem 1", "Poem 2"]


def expected_tokens(checkpoint, records):
    model = load(checkpoint, "float32")
    side = model.config.gen_encoder.image_size
    pixels = np.stack([prepare_generation(open_image(record.images[0]), side) for record in records])
    tokenize = jax.jit(lambda params: apply(model.model.tokenize, params, to_pixels(pixels)))
    return tokenize(model.params)


@pytest.mark.slow
def test_image_tokens_of_a_converted_checkpoint(workspace, checkpoint):
    converted = workspace / "converted"
    done = run("launch.convert", checkpoint, converted)
    assert done.returncode == 0, done.stderr
    done = run("launch.prepare", *USUAL, f"--tokenizer={converted}", cwd=workspace)
    assert done.returncode == 0, done.stderr
    records = read_back(workspace / "out")
    np.testing.assert_array_equal([record.image_tokens for record in records], expected_tokens(checkpoint, records))


@pytest.mark.nightly
def test_latents_of_a_janusflow(workspace):
    save_checkpoint(workspace / "flow", tiny.stacked_params(tiny.FLOW), tiny.FLOW)
    done = run("launch.prepare", *USUAL, f"--tokenizer={workspace / 'flow'}", cwd=workspace)
    assert done.returncode == 0, done.stderr
    records = read_back(workspace / "out")
    assert [len(record.image_latents) for record in records] == [math.prod(tiny.FLOW.gen_encoder.latent_shape)] * 4
    assert [len(record.image_tokens) for record in records] == [0] * 4


def test_a_janusflow_without_its_vae_raises(tmp_path):
    config = dataclasses.replace(tiny.FLOW, vae=None)
    params = {part: tree for part, tree in tiny.stacked_params(tiny.FLOW).items() if part != "vae"}
    save_checkpoint(tmp_path / "flow", params, config)
    with pytest.raises(JanusError, match="a JanusFlow model without its VAE; give the folder of the VAE"):
        open_image_encoder(tmp_path / "flow")


def cluster(workspace, port, *arguments):
    """Runs two processes with these further arguments; returns their exit codes and outputs."""
    variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "launch.prepare", *USUAL, "--distributed", "--workers=1", "--shard_records=1"]
    processes = [
        subprocess.Popen(
            [*command, *more],
            cwd=workspace,
            env=environment(**variables, JAX_PROCESS_ID=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, more in enumerate(arguments)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.mark.slow
def test_the_processes_of_a_cluster_share_the_work(workspace, checkpoint, unused_port):
    codes, outputs = cluster(workspace, unused_port, *[[f"--tokenizer={checkpoint}"]] * 2)
    assert codes == [0, 0], outputs
    assert "records" in outputs[0][0]
    assert "records" not in outputs[1][0]
    assert "2/2" in outputs[0][1]
    records = read_back(workspace / "out")
    np.testing.assert_array_equal([record.image_tokens for record in records], expected_tokens(checkpoint, records))


def test_a_failing_process_of_a_cluster_ends_the_others(workspace, unused_port):
    codes, outputs = cluster(workspace, unused_port, [], ["--input=empty.jsonl"])
    assert codes == [2, 2], outputs
    assert "Process 1 of the cluster has failed" in outputs[0][1]
    assert "was prepared with inputs" in outputs[1][1]


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


USER_ERRORS = {
    "no such source": (["--source=poems"], "--source poems is unknown; use captions"),
    "no such input": (["--input=absent.jsonl"], "--input absent.jsonl matches no file"),
    "an empty input": (["--input=empty.jsonl"], "has no records"),
    "an unknown format": (["--input=c.txt"], "captions reads, .jsonl, .json"),
    "a table with other columns": (["--input=other.csv"], "name the right one with --text_field"),
    "a truncated array": (["--source=conversations", "--input=broken.json"], "broken.json is damaged"),
    "no such folder of images": (["--images=nowhere"], "--images nowhere is not a folder"),
    "an impossible share": (["--max_rejected=1.5"], "--max_rejected"),
    "an empty prompt": (["--prompt= "], "--prompt is empty"),
    "no target images": (
        ["--task=understanding", "--tokenizer=x"],
        "--tokenizer needs --task generation or editing or interleaved",
    ),
    "no such tokenizer": (["--tokenizer=absent"], "absent does not exist"),
    "too many rejected records": (["--max_rejected=0.1"], "1 of 5 records were rejected, missing_file 1"),
}


@pytest.mark.parametrize("case", USER_ERRORS)
def test_a_user_error_is_one_sentence(workspace, case):
    arguments, words = USER_ERRORS[case]
    given = {argument.split("=")[0] for argument in arguments}
    usual = [argument for argument in USUAL if argument.split("=")[0] not in given]
    done = run("launch.prepare", *usual, *arguments, "--workers=1", cwd=workspace, JAX_PLATFORMS="nowhere")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("janus-prepare: ")
    assert words in sentence
    assert (workspace / "out").exists() == ("max_rejected=0.1" in arguments[0])


def test_the_command_starts_without_jax():
    code = "import sys, launch.prepare; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
