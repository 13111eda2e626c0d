import hashlib
import json
import os
import random
import subprocess
import sys
import time

import pytest

from janus_jax.data.prepare.parallel import LEAST_ENTRIES, PrepareProgress, write_parts
from janus_jax.data.prepare.prepare import PrepareOptions
from janus_jax.data.prepare.prepare import prepare as run_prepare
from janus_jax.data.prepare.shard_writer import QUARANTINE, SUMMARY, begin
from janus_jax.data.shards import write_shard
from janus_jax.errors import JanusError, StorageFull
from janus_jax.storage import exclusive_lock
from tests.data.samples import images, job, json_lines, prepare, read_back

OWN = "tests.data.own_source"


def digests(folder):
    """Every file of a finished data set."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def captions(tmp_path):
    """Sixty captions, a few of them rejected."""
    images(tmp_path / "photos", 5)
    rows = [{"image": f"{i % 5}.jpg", "caption": f"Number {i}." if i % 20 else ""} for i in range(60)]
    return json_lines(tmp_path / "c.jsonl", rows)


def make(output, captions, **more):
    given = {"images": str(captions.parent / "photos"), "shard_records": 7} | more
    return job(output, "captions", captions, **given)


def finish(given, workers=1, max_rejected=0.5):
    preparation = begin(given)
    write_parts(preparation, preparation.unfinished(), workers, max_rejected)
    return preparation.finish(max_rejected)


def test_the_same_bytes_whatever_the_number_of_processes(tmp_path, captions):
    finish(make(tmp_path / "one", captions))
    finish(make(tmp_path / "two", captions), workers=2)
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two")
    assert len(one) == 9 + len(("dataset_info.json", "features.json", SUMMARY, QUARANTINE))


def test_keys_do_not_depend_on_the_shards(tmp_path, captions):
    finish(make(tmp_path / "small", captions))
    finish(make(tmp_path / "large", captions, shard_records=1000))
    assert [r.key for r in read_back(tmp_path / "small")] == [r.key for r in read_back(tmp_path / "large")]


def test_counts_and_sizes_are_told(tmp_path, captions):
    text = str(finish(make(tmp_path / "out", captions)))
    told = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert told["records"] == told["generation"] == ["57"]
    assert told["rejected"] == ["3", "(5.00%)"]
    assert (told["empty_text"], told["shards"], told["split"]) == (["3"], ["9"], ["train"])
    written = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert (written["records"], written["rejected"], written["tasks"]) == (57, {"empty_text": 3}, {"generation": 57})
    pictures = sum(len(record.images[0]) for record in read_back(tmp_path / "out"))
    assert pictures < written["bytes"] < pictures + 57 * 300


def test_another_name_for_the_split(tmp_path, captions):
    import tensorflow_datasets as tfds

    given = make(tmp_path / "out", captions)
    finish(type(given)(given.kind, given.options, given.output, split="validation"))
    assert len(tfds.builder_from_directory(tmp_path / "out").as_data_source("validation")) == 57


@pytest.mark.parametrize("split", ["", "a/b", "train[:10]", "..", "a-b"])
def test_a_split_needs_a_name(tmp_path, captions, split):
    given = make(tmp_path / "out", captions)
    with pytest.raises(JanusError, match="--split"):
        type(given)(given.kind, given.options, given.output, split=split)


class TestResuming:
    def test_finished_shards_stay_and_unfinished_ones_are_made_again(self, tmp_path, captions):
        finish(make(tmp_path / "whole", captions))
        given = make(tmp_path / "out", captions)
        preparation = begin(given)
        write_parts(preparation, [0, 3, 4], 1, 0.5)
        before = preparation.shard(3).stat()
        # What a killed run leaves: half a shard under its working name, and a shard whose note was not yet made.
        preparation.shard(5).write_bytes(b"half")
        (given.work / "x.incomplete-1").write_bytes(b"half")
        again = begin(given)
        assert again.unfinished() == [1, 2, 5, 6, 7, 8]
        finish(given)
        assert again.shard(3).stat() == before
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    @pytest.mark.parametrize("seed", range(2))
    def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(self, tmp_path, seed):
        arguments = (f"{OWN}:slow", "0.02")
        finish(job(tmp_path / "whole", *arguments), workers=1)
        given = job(tmp_path / "out", *arguments)
        code = (
            "from tests.data.prepare.test_shard_writer import *; from pathlib import Path\n"
            f"if __name__ == '__main__': finish(job(Path({str(given.output)!r}), *{arguments!r}), workers=2)"
        )
        script = tmp_path / "script.py"
        script.write_text(code)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while not any(given.output.rglob("0*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        process.kill()
        process.wait()
        assert len(begin(given).finished().tasks) > 0
        assert_nobody_is_left(process.pid)
        finish(given)
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def test_a_finished_one_is_told_again_and_left_alone(self, tmp_path, captions):
        given = make(tmp_path / "out", captions)
        text = str(finish(given))
        before = {path.name: path.stat().st_mtime_ns for path in given.output.iterdir()}
        given.work.mkdir()  # killed just before its end
        assert str(begin(given).summary) == text
        assert {path.name: path.stat().st_mtime_ns for path in given.output.iterdir()} == before


def assert_nobody_is_left(session):
    """No process of a session is alive (a second is theirs to notice that their parent is gone)."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        sessions = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as stream:
                        fields = stream.read().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if fields[0] != "Z":
                    sessions.append(int(fields[3]))
        if session not in sessions:
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its parent")


class TestRefusing:
    def test_a_folder_of_other_files(self, tmp_path, captions):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("x")
        with pytest.raises(JanusError, match=r"holds other files \(thesis.tex\)"):
            begin(make(tmp_path / "out", captions))

    def test_a_file(self, tmp_path, captions):
        with pytest.raises(JanusError, match="is no folder"):
            begin(make(captions, captions))

    @pytest.mark.parametrize("finished", [True, False])
    @pytest.mark.parametrize(
        ("more", "words"),
        [({"shard_records": 8}, "shard_records = 7, not 8"), ({"text_field": "caption"}, "text_field")],
    )
    def test_other_arguments(self, tmp_path, captions, finished, more, words):
        given = make(tmp_path / "out", captions)
        if finished:
            finish(given)
        else:
            begin(given)
        with pytest.raises(JanusError, match=words):
            begin(make(tmp_path / "out", captions, **more))

    def test_input_that_changed(self, tmp_path, captions):
        begin(make(tmp_path / "out", captions))
        captions.write_text(captions.read_text() + '{"image": "0.jpg", "caption": "more"}\n')
        with pytest.raises(JanusError, match="content"):
            begin(make(tmp_path / "out", captions))

    def test_a_second_run_at_the_same_time(self, tmp_path, captions):
        given = make(tmp_path / "out", captions)
        begin(given)
        with (
            exclusive_lock(given.work / "lock", given.output),
            pytest.raises(JanusError, match="is being written by another run"),
        ):
            run_prepare(given, PrepareOptions(workers=1, max_rejected=0.5), None)


class TestTooManyRejections:
    def test_at_the_end(self, tmp_path, captions):
        given = make(tmp_path / "out", captions)
        with pytest.raises(
            JanusError, match=r"3 of 60 records were rejected, empty_text 3 \(such as c\.jsonl:1: its text is empty\)"
        ):
            finish(given, max_rejected=0.04)
        # Raised, it goes on, and nothing is made again.
        assert begin(given).unfinished() == []
        assert finish(given, max_rejected=0.05).total.num_rejected == 3

    @pytest.mark.parametrize("workers", [1, 2])
    def test_on_the_way(self, tmp_path, workers):
        file = json_lines(tmp_path / "t.jsonl", [{"text": ""}] * (20 * LEAST_ENTRIES))
        preparation = begin(job(tmp_path / "out", "text", file, shard_records=7 * LEAST_ENTRIES))
        with pytest.raises(JanusError, match=r"records were rejected, empty_text .*--max_rejected is 0.5"):
            write_parts(preparation, preparation.unfinished(), workers, 0.5)
        assert preparation.unfinished() != []

    def test_nothing_at_all_is_left(self, tmp_path):
        file = json_lines(tmp_path / "t.jsonl", [{"text": ""}])
        with pytest.raises(JanusError, match="holds no records"):
            finish(job(tmp_path / "out", "text", file), max_rejected=1.0)


def test_a_worker_that_dies_ends_the_run_and_names_what_it_was_at(tmp_path):
    given = job(tmp_path / "out", f"{OWN}:deadly", "")
    preparation = begin(given)
    begun = time.monotonic()
    with pytest.raises(JanusError, match=r"A worker process was killed .* part 2"):
        write_parts(preparation, preparation.unfinished(), 2, 0.5)
    assert time.monotonic() - begun < 60
    assert 2 in begin(given).unfinished()


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_from_what_was_done_before_to_the_end(tmp_path, captions, workers):
    preparation = begin(make(tmp_path / "out", captions))
    write_parts(preparation, [0, 1], 1, 0.5)
    told = []
    write_parts(preparation, preparation.unfinished(), workers, 0.5, told.append)
    assert told[0] == PrepareProgress(14, 60, 1, 2)
    assert told[-1] == PrepareProgress(60, 60, 3, 9)
    assert [progress.entries for progress in told] == sorted(progress.entries for progress in told)


def test_a_full_disk_is_one_sentence_and_leaves_no_shard(tmp_path, captions, monkeypatch):
    from array_record.python import array_record_module

    class Writer(array_record_module.ArrayRecordWriter):
        def write(self, content):
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Writer)
    with pytest.raises(StorageFull, match=r"cannot be written, the disk is full"):
        finish(make(tmp_path / "out", captions))
    assert not list((tmp_path / "out").glob("records-*"))


def test_a_fault_of_the_source_is_not_taken_for_a_full_disk(tmp_path):
    def records():
        raise RuntimeError("mine")
        yield

    with pytest.raises(RuntimeError, match="mine"):
        write_shard(tmp_path / "shard", records(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_grain_opens_the_shards(tmp_path, captions):
    import grain

    finish(make(tmp_path / "out", captions))
    data = grain.sources.ArrayRecordDataSource(sorted(str(path) for path in (tmp_path / "out").glob("records-*")))
    assert len(data) == 57


def test_what_a_source_raises_over_a_record_is_that_records_loss(tmp_path):
    read = prepare(tmp_path / "out", f"{OWN}:faulty", "")
    assert read.keys == ["0", "2"]
    assert read.reasons == {"1": "malformed"}
    assert "KeyError" in read.rejections[0].message
