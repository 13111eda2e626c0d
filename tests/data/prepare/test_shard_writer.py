import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from janus_jax.data.prepare.parallel import write_shards
from janus_jax.data.prepare.prepare import PrepareOptions
from janus_jax.data.prepare.prepare import prepare as run_prepare
from janus_jax.data.prepare.shard_writer import MIN_ENTRIES, QUARANTINE, SUMMARY, open_shard_writer
from janus_jax.data.shards import write_shard
from janus_jax.errors import JanusError, StorageFull
from janus_jax.storage import exclusive_lock
from tests.data.samples import images, json_lines, prepare, read_back, spec

OWN = "tests.data.own_source"


def digests(folder):
    """Hashes of all files of a finished dataset."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def captions(tmp_path):
    """Sixty captions, three of them empty."""
    images(tmp_path / "photos", 5)
    rows = [{"image": f"{i % 5}.jpg", "caption": f"Number {i}." if i % 20 else ""} for i in range(60)]
    return json_lines(tmp_path / "c.jsonl", rows)


def make(output, captions, **more):
    given = {"images": str(captions.parent / "photos"), "shard_records": 7} | more
    return spec(output, "captions", captions, **given)


def finish(given, workers=1, max_rejected=0.5):
    writer = open_shard_writer(given)
    write_shards(writer, writer.unfinished(), workers=workers, max_rejected=max_rejected)
    return writer.finish(max_rejected)


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, captions):
    finish(make(tmp_path / "one", captions))
    finish(make(tmp_path / "two", captions), workers=2)
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two")
    assert len(one) == 9 + len(("dataset_info.json", "features.json", SUMMARY, QUARANTINE))


def test_keys_do_not_depend_on_the_shard_size(tmp_path, captions):
    finish(make(tmp_path / "small", captions))
    finish(make(tmp_path / "large", captions, shard_records=1000))
    assert [r.key for r in read_back(tmp_path / "small")] == [r.key for r in read_back(tmp_path / "large")]


def test_the_summary_has_counts_and_sizes(tmp_path, captions):
    text = str(finish(make(tmp_path / "out", captions)))
    shown = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert shown["records"] == shown["generation"] == ["57"]
    assert shown["rejected"] == ["3", "(5.00%)"]
    assert (shown["empty_text"], shown["shards"], shown["split"]) == (["3"], ["9"], ["train"])
    written = json.loads((tmp_path / "out" / SUMMARY).read_text())["total"]
    assert (written["records"], written["rejected"], written["tasks"]) == (57, {"empty_text": 3}, {"generation": 57})
    pictures = sum(len(record.images[0]) for record in read_back(tmp_path / "out"))
    assert pictures < written["bytes"] < pictures + 57 * 300


def test_the_summary_names_unused_fields_with_their_counts(tmp_path):
    rows = [{"text": "One.", "url": "x"}, {"text": "Two.", "url": "y", "id": 1}, {"text": "", "url": "z", "size": 3}]
    summary = finish(spec(tmp_path / "out", "text", json_lines(tmp_path / "t.jsonl", rows), shard_records=1))
    shown = [line.split() for line in str(summary).splitlines()]
    assert shown[-3:] == [["unused", "fields", "2"], ["url", "2"], ["id", "1"]]
    assert json.loads((tmp_path / "out" / SUMMARY).read_text())["total"]["unused"] == {"url": 2, "id": 1}


def test_the_split_can_have_another_name(tmp_path, captions):
    import tensorflow_datasets as tfds

    given = make(tmp_path / "out", captions)
    finish(dataclasses.replace(given, split="validation"))
    assert len(tfds.builder_from_directory(tmp_path / "out").as_data_source("validation")) == 57


@pytest.mark.parametrize("split", ["", "a/b", "train[:10]", "..", "a-b"])
def test_an_invalid_split_name_raises(tmp_path, captions, split):
    given = make(tmp_path / "out", captions)
    with pytest.raises(JanusError, match="--split"):
        dataclasses.replace(given, split=split)


class TestTransparentImages:
    @pytest.fixture
    def captions(self, tmp_path):
        """Captions of a transparent, a half transparent and an opaque PNG, and of a JPEG."""
        images(tmp_path / "photos", 1)
        for alpha in (0, 128, 255):
            Image.new("RGBA", (8, 8), (200, 40, 80, alpha)).save(tmp_path / "photos" / f"{alpha}.png")
        names = ("0.png", "128.png", "255.png", "0.jpg")
        return json_lines(tmp_path / "c.jsonl", [{"image": name, "caption": name} for name in names])

    def records(self, output, captions, background):
        summary = finish(dataclasses.replace(make(output, captions), background=background))
        shown = dict(line.rsplit(maxsplit=1) for line in str(summary).split("\n")[1:])
        assert (shown["  transparent images"], shown["    background"]) == ("2", background)
        return {record.text: record.images[0] for record in read_back(output)}

    def test_by_default_they_are_counted_and_stored_unchanged(self, tmp_path, captions):
        stored = self.records(tmp_path / "out", captions, "none")
        assert stored == {name: (tmp_path / "photos" / name).read_bytes() for name in stored}

    def test_with_a_background_they_are_blended(self, tmp_path, captions):
        stored = self.records(tmp_path / "out", captions, "white")
        for name, color in (("0.png", (255, 255, 255)), ("128.png", (227, 147, 167))):
            image = Image.open(io.BytesIO(stored[name]))
            assert (image.format, image.mode, image.getpixel((7, 7))) == ("PNG", "RGB", color)
        for name in ("255.png", "0.jpg"):
            assert stored[name] == (tmp_path / "photos" / name).read_bytes()

    def test_sets_without_them_have_no_such_count(self, tmp_path):
        images(tmp_path / "photos", 1)
        file = json_lines(tmp_path / "c.jsonl", [{"image": "0.jpg", "caption": "A boat."}])
        assert "transparent" not in str(finish(make(tmp_path / "out", file)))

    def test_another_background_raises(self, tmp_path, captions):
        finish(make(tmp_path / "out", captions))
        with pytest.raises(JanusError, match="was prepared with background = 'none', not 'white'"):
            finish(dataclasses.replace(make(tmp_path / "out", captions), background="white"))


class TestResuming:
    def test_finished_shards_stay_and_unfinished_ones_are_written_again(self, tmp_path, captions):
        finish(make(tmp_path / "whole", captions))
        given = make(tmp_path / "out", captions)
        writer = open_shard_writer(given)
        write_shards(writer, [0, 3, 4], workers=1, max_rejected=0.5)
        before = writer.shard(3).stat()
        # A killed run leaves half a shard under its temporary name, and a shard without its counts.
        writer.shard(5).write_bytes(b"half")
        (given.scratch / "x.incomplete-1").write_bytes(b"half")
        again = open_shard_writer(given)
        assert again.unfinished() == [1, 2, 5, 6, 7, 8]
        finish(given)
        assert again.shard(3).stat() == before
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    @pytest.mark.parametrize("seed", range(2))
    def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(self, tmp_path, seed):
        arguments = (f"{OWN}:slow", "0.02")
        finish(spec(tmp_path / "whole", *arguments), workers=1)
        given = spec(tmp_path / "out", *arguments)
        code = (
            "from tests.data.prepare.test_shard_writer import *; from pathlib import Path\n"
            f"if __name__ == '__main__': finish(spec(Path({str(given.output)!r}), *{arguments!r}), workers=2)"
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
        assert len(open_shard_writer(given).finished_stats().tasks) > 0
        deadline = time.monotonic() + 10  # Workers need a moment to notice that their parent is gone.
        while is_alive(process.pid):
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.05)
        finish(given)
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def test_a_finished_data_set_is_left_unchanged(self, tmp_path, captions):
        given = make(tmp_path / "out", captions)
        text = str(finish(given))
        before = {path.name: path.stat().st_mtime_ns for path in given.output.iterdir()}
        given.scratch.mkdir()  # As after a kill just before the end.
        assert str(open_shard_writer(given).summary) == text
        assert {path.name: path.stat().st_mtime_ns for path in given.output.iterdir()} == before


def is_alive(session):
    """Returns whether a process of a session is alive."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rsplit(")", 1)[1].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                return True
    return False


class TestOutput:
    def test_a_folder_with_other_files_raises(self, tmp_path, captions):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("x")
        with pytest.raises(JanusError, match=r"contains other files \(thesis.tex\)"):
            open_shard_writer(make(tmp_path / "out", captions))

    def test_a_file_raises(self, tmp_path, captions):
        with pytest.raises(JanusError, match="is not a folder"):
            open_shard_writer(make(captions, captions))

    @pytest.mark.parametrize("finished", [True, False])
    @pytest.mark.parametrize(
        ("more", "words"),
        [({"shard_records": 8}, "shard_records = 7, not 8"), ({"text_field": "caption"}, "text_field")],
    )
    def test_other_options_raise(self, tmp_path, captions, finished, more, words):
        given = make(tmp_path / "out", captions)
        if finished:
            finish(given)
        else:
            open_shard_writer(given)
        with pytest.raises(JanusError, match=words):
            open_shard_writer(make(tmp_path / "out", captions, **more))

    def test_changed_input_raises(self, tmp_path, captions):
        open_shard_writer(make(tmp_path / "out", captions))
        captions.write_text(captions.read_text() + '{"image": "0.jpg", "caption": "more"}\n')
        with pytest.raises(JanusError, match="content"):
            open_shard_writer(make(tmp_path / "out", captions))

    def test_a_second_run_at_the_same_time_raises(self, tmp_path, captions):
        given = make(tmp_path / "out", captions)
        open_shard_writer(given)
        with (
            exclusive_lock(given.scratch / "lock", given.output),
            pytest.raises(JanusError, match="is being written by another run"),
        ):
            run_prepare(given, PrepareOptions(workers=1, max_rejected=0.5))


class TestTooManyRejections:
    def test_at_the_end_raises(self, tmp_path, captions):
        given = make(tmp_path / "out", captions)
        with pytest.raises(
            JanusError, match=r"3 of 60 records were rejected, empty_text 3 \(such as c\.jsonl:1: its text is empty\)"
        ):
            finish(given, max_rejected=0.04)
        # With a higher limit the run finishes, and nothing is written again.
        assert open_shard_writer(given).unfinished() == []
        assert finish(given, max_rejected=0.05).total.num_rejected == 3

    @pytest.mark.parametrize("workers", [1, 2])
    def test_during_the_run_raises(self, tmp_path, workers):
        file = json_lines(tmp_path / "t.jsonl", [{"text": ""}] * (20 * MIN_ENTRIES))
        writer = open_shard_writer(spec(tmp_path / "out", "text", file, shard_records=7 * MIN_ENTRIES))
        with pytest.raises(JanusError, match=r"records were rejected, empty_text .*--max_rejected is 0.5"):
            write_shards(writer, writer.unfinished(), workers=workers, max_rejected=0.5)
        assert writer.unfinished() != []

    def test_no_accepted_record_raises(self, tmp_path):
        file = json_lines(tmp_path / "t.jsonl", [{"text": ""}])
        with pytest.raises(JanusError, match="has no records that can be used: 1 of 1 records were rejected"):
            finish(spec(tmp_path / "out", "text", file), max_rejected=1.0)


class TestNoAcceptedRecords:
    def fail(self, given, max_rejected=0.5, workers=1):
        with pytest.raises(JanusError, match=r"empty_text .*quarantine\.jsonl lists them, and the folder can be used"):
            run_prepare(given, PrepareOptions(workers, max_rejected))

    def quarantined(self, output):
        assert [path.name for path in output.iterdir()] == [QUARANTINE]
        return [json.loads(line)["reason"] for line in (output / QUARANTINE).read_text().split("\n")[:-1]]

    @pytest.mark.parametrize("max_rejected", [0.5, 1.0])
    def test_free_the_output_and_leave_the_quarantine_file(self, tmp_path, max_rejected):
        file = json_lines(tmp_path / "t.jsonl", [{"text": ""}] * 5)
        self.fail(spec(tmp_path / "out", "text", file, shard_records=2), max_rejected)
        assert self.quarantined(tmp_path / "out") == ["empty_text"] * 5
        # Other options and another input are now possible. The result does not mention the failed run.
        good = json_lines(tmp_path / "good.jsonl", [{"body": "A boat."}])
        run_prepare(spec(tmp_path / "out", "text", good, text_field="body"), PrepareOptions(1, 0.5))
        assert [record.text for record in read_back(tmp_path / "out")] == ["A boat."]
        assert (tmp_path / "out" / QUARANTINE).read_text() == ""

    @pytest.mark.parametrize("workers", [1, 2])
    def test_also_if_the_run_stops_early(self, tmp_path, workers):
        file = json_lines(tmp_path / "t.jsonl", [{"text": ""}] * (4 * MIN_ENTRIES))
        self.fail(spec(tmp_path / "out", "text", file, shard_records=2 * MIN_ENTRIES), workers=workers)
        assert set(self.quarantined(tmp_path / "out")) == {"empty_text"}

    def test_accepted_records_are_kept(self, tmp_path, captions):
        given = make(tmp_path / "out", captions)
        with pytest.raises(JanusError, match=r"Finished shards are kept\.$"):
            run_prepare(given, PrepareOptions(1, 0.01))
        assert run_prepare(given, PrepareOptions(1, 0.5)).total.records == 57


def test_a_killed_worker_raises_and_names_its_part(tmp_path):
    given = spec(tmp_path / "out", f"{OWN}:deadly", "")
    writer = open_shard_writer(given)
    begun = time.monotonic()
    with pytest.raises(JanusError, match=r"A worker process was killed .* part 2"):
        write_shards(writer, writer.unfinished(), workers=2, max_rejected=0.5)
    assert time.monotonic() - begun < 60
    assert 2 in open_shard_writer(given).unfinished()


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_earlier_runs(tmp_path, captions, workers):
    writer = open_shard_writer(make(tmp_path / "out", captions))
    write_shards(writer, [0, 1], workers=1, max_rejected=0.5)
    reports = []

    def report(entries, total, rejected, shards):
        reports.append((entries, total, rejected, shards))

    write_shards(writer, writer.unfinished(), workers=workers, max_rejected=0.5, report=report)
    assert (reports[0], reports[-1]) == ((14, 60, 1, 2), (60, 60, 3, 9))
    assert sorted(reports) == reports


def test_a_full_disk_raises_and_leaves_no_shard(tmp_path, captions, monkeypatch):
    from array_record.python import array_record_module

    class Writer(array_record_module.ArrayRecordWriter):
        def write(self, content):
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Writer)
    with pytest.raises(StorageFull, match=r"cannot be written, the disk is full"):
        finish(make(tmp_path / "out", captions))
    assert not list((tmp_path / "out").glob("records-*"))


def test_an_error_of_the_source_is_not_reported_as_a_full_disk(tmp_path):
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


def test_an_error_of_the_source_in_a_record_rejects_that_record(tmp_path):
    read = prepare(tmp_path / "out", f"{OWN}:faulty", "")
    assert read.keys == ["0", "2"]
    assert read.reasons == {"1": "malformed"}
    assert "KeyError" in read.rejections[0].message
