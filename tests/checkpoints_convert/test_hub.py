"""Hub ids in place of folders, with a local server in place of the hub."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from checkpoints_convert import open_checkpoint
from checkpoints_convert.hub import local_path
from janus_jax import extras
from janus_jax.errors import JanusError
from tests.checkpoints_convert.checkpoints import save_flow, save_released, save_vae
from tests.hub_server import TOKEN, connect, serve, variables

ROOT = Path(__file__).parents[2]
NAME = "deepseek-ai/Janus-Pro-small"


@pytest.fixture
def server(released_folder, tmp_path, monkeypatch):
    """A server with a model, of which a test's process is a client with an empty cache."""
    monkeypatch.chdir(tmp_path)
    with serve() as hub:
        connect(monkeypatch, hub.url, tmp_path / "cache")
        hub.add(NAME, released_folder)
        yield hub


def environment(server, tmp_path, **more):
    path = os.pathsep.join([str(ROOT), *sys.path])
    return os.environ | {"PYTHONPATH": path} | variables(server.url, tmp_path / "home") | more


def values(checkpoint):
    return {(keys, layer): array.tobytes() for keys, layer, array in checkpoint.params()}


def test_an_id_opens_the_model_of_the_hub_with_the_needed_files_only(server, released_folder):
    config = server.models[NAME]["config.json"]
    extra = ("README.md", "images/teaser.png", "pytorch_model.bin", "flax_model.msgpack", "onnx/model.onnx")
    server.models[NAME] |= {"tokenizer.json": b"{}", **dict.fromkeys(extra, b"x")}
    opened = open_checkpoint(NAME)
    assert server.names() == ["config.json", "model.safetensors", "tokenizer.json"]
    assert values(opened) == values(open_checkpoint(released_folder))
    assert opened.metadata["name"] == "Janus-Pro-small"
    assert opened.config.name == "Janus-Pro-small"
    assert (opened.folder / "config.json").read_bytes() == config
    # The second time, only the branch is looked up.
    server.requests.clear()
    open_checkpoint(NAME)
    assert server.requests == [("GET", f"/api/models/{NAME}")]


def test_shards_of_torch_are_fetched_if_there_is_no_safetensors(server):
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    shards = {"pytorch_model-1.bin": b"1", "pytorch_model-2.bin": b"2", "pytorch_model-3.bin": b"of another index"}
    server.models["me/torch"] = {"pytorch_model.bin.index.json": json.dumps(index).encode(), **shards}
    folder = local_path("me/torch")
    assert sorted(path.name for path in folder.iterdir()) == [
        "pytorch_model-1.bin",
        "pytorch_model-2.bin",
        "pytorch_model.bin.index.json",
    ]


def test_several_weight_files_without_an_index_are_an_error(server):
    server.models["me/many"] = {"a.pt": b"", "b.pt": b""}
    with pytest.raises(JanusError, match=r"several files with weights \(a.pt, b.pt\); download one with hf download"):
        local_path("me/many")


@pytest.mark.slow
def test_a_converted_folder_opens_from_the_hub(server, converted_folder):
    server.add("me/converted", converted_folder)
    assert values(open_checkpoint("me/converted")) == values(open_checkpoint(converted_folder))


@pytest.mark.slow
def test_janusflow_fetches_its_vae(server, tmp_path, caplog):
    server.add("me/flow", save_flow(tmp_path / "flow"))
    assert open_checkpoint("me/flow").config.vae is None
    assert "The model has no VAE" in caplog.text
    assert "stabilityai/sdxl-vae is neither a local path nor a model on" in caplog.text
    server.add("stabilityai/sdxl-vae", save_vae(tmp_path / "sdxl-vae"))
    assert open_checkpoint("me/flow").config.vae is not None
    # A VAE in the model's repository wins, as does one that the user names.
    server.downloads.clear()
    shutil.copytree(tmp_path / "sdxl-vae", tmp_path / "flow" / "vae")
    server.add("me/flow_with_vae", tmp_path / "flow")
    assert open_checkpoint("me/flow_with_vae").config.vae is not None
    assert "diffusion_pytorch_model.safetensors" not in server.names()
    assert "vae/diffusion_pytorch_model.safetensors" in server.names()
    # A local model without a VAE stays without.
    shutil.rmtree(tmp_path / "flow" / "vae")
    assert open_checkpoint(tmp_path / "flow").config.vae is None
    assert open_checkpoint(tmp_path / "flow", vae="stabilityai/sdxl-vae").config.vae is not None


def test_revisions(server):
    commit = server.commit(NAME)
    assert local_path(f"{NAME}@v1") == local_path(f"{NAME}@{commit}") == local_path(NAME)
    with pytest.raises(JanusError, match=rf"{NAME} has no revision 'v2' on {server.url}; give one of its branches"):
        local_path(f"{NAME}@v2")


def test_a_local_folder_wins(server, released_folder, tmp_path):
    shutil.copytree(released_folder, tmp_path / NAME)
    assert open_checkpoint(NAME).path == Path(NAME)
    assert not server.requests


@pytest.mark.parametrize("path", ["/models/janus", "./models/janus", "models/janus/1", "janus", "models/w.safetensors"])
def test_other_paths_are_no_ids(server, path):
    with pytest.raises(JanusError, match="does not exist; give the folder of a checkpoint"):
        open_checkpoint(path)
    assert not server.requests


def test_the_token_comes_from_the_environment(server, monkeypatch):
    server.private.add(NAME)
    with pytest.raises(JanusError, match=rf"neither a local path nor a model on {server.url} that .* set HF_TOKEN"):
        local_path(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (local_path(NAME) / "model.safetensors").exists()


def test_a_gated_model_is_reported(server):
    server.gated.add(NAME)
    with pytest.raises(
        JanusError, match=rf"{NAME} is gated; accept its terms on {server.url}/{NAME}, and set HF_TOKEN"
    ):
        local_path(NAME)


def test_offline_use_from_the_cache(server, monkeypatch):
    other = f"{NAME}@v1"
    folder = local_path(NAME)
    assert folder.is_dir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert local_path(NAME) == folder
    with pytest.raises(JanusError, match=r"neither a local path nor complete in the hub's cache .* HF_HUB_OFFLINE is"):
        local_path(other)
    # A file that was not downloaded.
    (folder / "model.safetensors").unlink()
    with pytest.raises(JanusError, match=f"{NAME} is neither a local path nor complete in the hub's cache"):
        local_path(NAME)
    assert not server.requests


def test_an_unreachable_hub_is_reported_unless_the_cache_has_the_model(server, monkeypatch, tmp_path):
    folder = local_path(NAME)
    connect(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert local_path(NAME) == folder
    with pytest.raises(JanusError, match=r"me/absent is neither .* and http://127.0.0.1:9 cannot be reached; fix the"):
        local_path("me/absent")


def test_a_missing_path_names_both_remedies_without_the_extra(monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        JanusError, match=r"^runs/mine does not exist; fix the path, or, .* pip install 'janus_jax\[hub"
    ):
        open_checkpoint("runs/mine")


def test_a_broken_connection_is_resumed(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    content = server.models[NAME]["model.safetensors"]
    server.drop_after["model.safetensors"] = len(content) // 2
    folder = local_path(NAME)
    assert (folder / "model.safetensors").read_bytes() == content
    starts = [first for file, first in server.downloads if file == "model.safetensors"]
    assert starts[0] == 0
    assert 0 < starts[1] <= len(content) // 2


FETCH = "import sys; from checkpoints_convert import open_checkpoint; print(open_checkpoint(sys.argv[1]).path)"


def test_commands_report_an_absent_model_in_one_line_before_device_work(server, tmp_path):
    command = [sys.executable, "-m", "launch.chat", "--model=me/absent", "--prompt=Hello"]
    env = environment(server, tmp_path, JAX_PLATFORMS="nowhere")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("janus-chat: me/absent is neither a local path nor a model on http://127.0.0.1")
    assert done.stderr.count("\n") == 1


def start(server, tmp_path):
    command = [sys.executable, "-c", FETCH, NAME]
    return subprocess.Popen(command, env=environment(server, tmp_path), stdout=subprocess.PIPE, text=True)


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.nightly  # Three processes import jax.
def test_a_killed_download_goes_on_and_processes_share_it(server, tmp_path):
    folder = save_released(tmp_path / "sharded", shard_bytes=400_000)
    server.add(NAME, folder)
    files = sorted(server.models[NAME])
    last = next(name for name in reversed(files) if name.endswith(".safetensors"))
    server.stop_after[last] = 1000
    killed = start(server, tmp_path)
    assert server.stopped.wait(60)
    snapshots = tmp_path / "home" / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots"
    wait_until(lambda: len(list(snapshots.glob("*/*"))) == len(files) - 1)
    killed.kill()
    killed.communicate()
    server.downloads.clear()
    server.requests.clear()
    server.stop_after[last] = 1000
    processes = [start(server, tmp_path) for _ in range(2)]
    # Both processes need the file. One of them downloads it while the other waits.
    wait_until(lambda: [path.endswith(last) for method, path in server.requests if method == "HEAD"] == [True, True])
    server.go_on.set()
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert server.names() == [last]
    assert values(open_checkpoint(outputs[0])) == values(open_checkpoint(folder))
