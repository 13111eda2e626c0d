import pytest

from janus_jax.data.prepare.beam import write_parts_with_beam
from janus_jax.data.prepare.shard_writer import begin
from tests.data.prepare.test_shard_writer import digests, finish
from tests.data.samples import images, job, json_lines

pytest.importorskip("apache_beam")


def test_a_beam_pipeline_writes_the_same_bytes(tmp_path):
    images(tmp_path / "photos", 3)
    rows = [{"image": f"{i % 4}.jpg", "caption": f"Number {i}."} for i in range(20)]
    file = json_lines(tmp_path / "c.jsonl", rows)

    def make(name):
        return job(tmp_path / name, "captions", file, images=str(tmp_path / "photos"), shard_records=6)

    preparation = begin(make("beam"))
    write_parts_with_beam(preparation, preparation.unfinished())
    summary = preparation.finish(0.5)
    assert (summary.total.size.records, dict(summary.total.rejected)) == (15, {"missing_file": 5})
    finish(make("local"))
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")


def test_only_what_is_unfinished_is_written(tmp_path):
    file = json_lines(tmp_path / "t.jsonl", [{"text": f"Number {i}."} for i in range(4)])
    preparation = begin(job(tmp_path / "out", "text", file, shard_records=1))
    preparation.run_part(1)
    before = preparation.shard(1).stat()
    write_parts_with_beam(preparation, preparation.unfinished())
    assert preparation.finish(0.0).total.size.records == 4
    assert preparation.shard(1).stat() == before
