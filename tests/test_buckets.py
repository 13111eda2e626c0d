from pathlib import Path

import pytest

from janus_jax import buckets
from janus_jax.buckets import as_path, check_bucket, local_copy, object_checksums, require_local, staged_folder
from janus_jax.errors import JanusError, StorageUnavailable
from janus_jax.files import read_json
from janus_jax.storage import atomic_folder, output_folder, write_json


def test_only_gs_addresses_are_remote(monkeypatch):
    assert as_path("runs/a") == Path("runs/a")
    assert str(as_path("gs://bucket/a/") / "b") == "gs://bucket/a/b"
    for address, words in {
        "s3://bucket/run": "starts with s3://, and only gs:// is supported; mount the bucket",
        "gs://": "names no bucket",
    }.items():
        with pytest.raises(JanusError, match=words):
            as_path(address)
    with pytest.raises(JanusError, match=r"config\.data is gs://bucket/data, but .* mount the bucket"):
        require_local("gs://bucket/data", "config.data")


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JanusError, match=r"gs://bucket/run needs the package gcsfs; pip install 'janus_jax\[gcs\]'"):
        as_path("gs://bucket/run")


def test_files_are_written_and_read(bucket, bucket_server):
    write_json(bucket / "a" / "values.json", {"a": 1})
    assert read_json(bucket / "a" / "values.json") == {"a": 1}
    with staged_folder(bucket / "b") as folder:
        (folder / "text").write_text("hello")
        assert not (bucket / "b").exists()
    assert {name: entry["bytes"] for name, entry in object_checksums(bucket).items()} == {
        "a/values.json": len('{\n  "a": 1\n}\n'),
        "b/text": 5,
    }
    assert not bucket_server.downloads("b%2Ftext")
    buckets.move_folder(bucket / "b", bucket / "c" / "d")
    buckets.remove_folder(bucket / "a")
    assert list(object_checksums(bucket)) == ["c/d/text"]


def test_model_folder_is_complete_when_it_has_a_config(bucket, bucket_server):
    target = bucket / "model"
    with atomic_folder(target) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "params").mkdir()
        (folder / "params" / "0").write_text("values")
    names = [path for method, path in bucket_server.requests if method == "POST"]
    assert "config.json" in names[-1] or len(names) >= 2
    assert sorted(object_checksums(target)) == ["config.json", "params/0"]
    with pytest.raises(JanusError, match="exists"), atomic_folder(target):
        pass
    with pytest.raises(ValueError, match="failed"), atomic_folder(bucket / "other"):
        raise ValueError("failed")
    assert not (bucket / "other").exists()


def test_local_copy_downloads_only_what_has_changed(bucket, bucket_server):
    for name in ("a", "b/c", "d"):
        buckets.write_object(bucket / name, name.encode())
    copy = local_copy(bucket)
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file() and path.name[0] != "."} == {
        "a",
        "b/c",
        "d",
    }
    buckets.write_object(bucket / "b" / "c", b"new")
    buckets.remove_folder(bucket / "d")
    bucket_server.requests.clear()
    assert (local_copy(str(bucket)) / "b" / "c").read_text() == "new"
    assert not (copy / "d").exists()
    assert len(bucket_server.downloads("")) == 1
    assert local_copy(bucket / "a").read_text() == "a"
    with pytest.raises(JanusError, match="/nothing does not exist"):
        local_copy(bucket / "nothing")


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_is_a_user_error(bucket, bucket_server, status):
    bucket_server.fail(status)
    with pytest.raises(JanusError, match="access to gs://bucket is denied"):
        check_bucket(bucket)
    with pytest.raises(JanusError, match="access to gs://bucket is denied"):
        read_json(bucket / "a.json")


def test_missing_bucket_is_a_user_error(bucket_server):
    with (
        pytest.raises(JanusError, match="the bucket gs://missing does not exist"),
        output_folder(as_path("gs://missing/run")),
    ):
        pass
    with pytest.raises(JanusError, match="gs://missing"):
        local_copy("gs://missing/model")


def test_requests_are_repeated_until_the_bucket_answers(bucket, bucket_server, monkeypatch, caplog):
    monkeypatch.setattr(buckets, "_FIRST_DELAY", 0.0)
    bucket_server.fail(503, failures=10)  # gcsfs itself tries six times.
    write_json(bucket / "a.json", {"a": 1})
    assert read_json(bucket / "a.json") == {"a": 1}
    assert "does not answer" in caplog.text

    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.0)
    bucket_server.fail(503)
    with pytest.raises(StorageUnavailable, match="bucket gs://bucket does not answer"):
        write_json(bucket / "a.json", {"a": 2})
    bucket_server.reset()
    assert read_json(bucket / "a.json") == {"a": 1}
