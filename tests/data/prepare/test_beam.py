import pytest

from janus_jax.data.prepare.beam import write_shards_with_beam
from janus_jax.data.prepare.shard_writer import open_shard_writer
from tests.data.prepare.test_shard_writer import digests, finish
from tests.data.samples import images, json_lines, spec

pytest.importorskip("apache_beam")


def test_a_beam_pipeline_writes_the_unfinished_shards_with_the_same_bytes(tmp_path):
    images(tmp_path / "photos", 3)
    rows = [{"image": f"{i % 4}.jpg", "caption": f"Number {i}."} for i in range(20)]
    file = json_lines(tmp_path / "c.jsonl", rows)

    def make(name):
        return spec(tmp_path / name, "captions", file, images=str(tmp_path / "photos"), shard_records=6)

    writer = open_shard_writer(make("beam"))
    writer.write(1)
    before = writer.shard(1).stat()
    write_shards_with_beam(writer, writer.unfinished())
    assert writer.shard(1).stat() == before
    summary = writer.finish(0.5)
    assert (summary.total.records, dict(summary.total.rejected)) == (15, {"missing_file": 5})
    finish(make("local"))
    assert digests(tmp_path / "beam") == digests(tmp_path / "local")
