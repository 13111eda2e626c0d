"""Damaged and hostile files: only the affected records are rejected, each with a reason."""

import json
import os
import tarfile

import pytest

from janus_jax.data.prepare import validation
from janus_jax.data.sources import fields, rows
from janus_jax.errors import JanusError
from tests.data.samples import TEXT, UNDERSTANDING, image, images, json_lines, parquet, png, prepare, table, tar, turns

HOSTILE_IMAGES = {
    "truncated.jpg": (image(size=(64, 64))[:600], "bad_image"),
    "truncated.png": (image(kind="PNG", size=(64, 64))[:-2000], "bad_image"),
    "bomb.png": (png(1 << 16, 1 << 15), "image_too_large"),
    "too_few_pixels.png": (png(100, 100, b"short"), "bad_image"),
    "no_pixels.png": (png(0, 0), "bad_image"),
    "text.jpg": (b"I am a picture, honestly.", "bad_image"),
    "page.html": (b"<html><body>404</body></html>", "bad_image"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "bad_image"),
    "zeros.jpg": (bytes(5000), "bad_image"),
    "empty.jpg": (b"", "bad_image"),
}
HOSTILE_PATHS = {
    "absent.jpg": "missing_file",
    "a folder": "missing_file",
    "a pipe": "missing_file",
    "../outside.jpg": "missing_file",
    "inside/../../outside.jpg": "missing_file",
    "/dev/zero": "missing_file",
    "/etc/passwd": "missing_file",
    "nul\0.jpg": "missing_file",
    "x" * 5000: "missing_file",
    "": "no_image",
    "data:image/png;base64,!!!": "bad_image",
    "data:": "bad_image",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the good images 0.jpg and 1.jpg, and hostile files."""
    folder = images(tmp_path / "pictures", 2)
    for name, (content, _) in HOSTILE_IMAGES.items():
        (folder / name).write_bytes(content)
    (folder / "a folder").mkdir()
    os.mkfifo(folder / "a pipe")
    (tmp_path / "outside.jpg").write_bytes(image())
    return folder


def test_hostile_images_in_a_folder_are_rejected(tmp_path, folder):
    names = ["0.jpg", *HOSTILE_IMAGES, *HOSTILE_PATHS, "1.jpg"]
    file = json_lines(tmp_path / "c.jsonl", [{"image": name, "caption": "A cat."} for name in names])
    read = prepare(tmp_path / "out", "captions", file, images=str(folder))
    assert [record.images for record in read.records] == [(image(0),), (image(1),)]
    expected = {name: reason for name, (_, reason) in HOSTILE_IMAGES.items()} | HOSTILE_PATHS
    assert {names[int(key.split(":")[1]) - 1]: reason for key, reason in read.reasons.items()} == expected
    assert f"{len(expected)} ({len(expected) / len(names):.2%})" in read.summary


@pytest.mark.parametrize("name", HOSTILE_IMAGES)
def test_hostile_images_in_a_tar_are_rejected(tmp_path, name):
    content, reason = HOSTILE_IMAGES[name]
    file = tar(tmp_path / "0.tar", [("0.jpg", image()), ("0.txt", b"A cat."), ("1.jpg", content), ("1.txt", b"Two.")])
    read = prepare(tmp_path / "out", "webdataset", file)
    assert read.keys == ["0.tar/0"]
    assert read.reasons == {"0.tar/1": reason}


def chat(turns, image="0.jpg"):
    return {"image": image, "conversations": turns}


TURNS = turns("<image>\nWhat?", "A cat.")
TWO = turns("<image><image>", "Two.")
END = "A.<｜end▁of▁sentence｜><|User|>: and?"
HOSTILE_SAMPLES = {
    "not an object": ([1, 2], "malformed"),
    "null": (None, "malformed"),
    "no conversation": ({"image": "0.jpg"}, "missing_field"),
    "an empty conversation": (chat([]), "bad_conversation"),
    "a conversation that is a string": (chat("hello"), "bad_conversation"),
    "a turn that is a string": (chat(["hello"]), "bad_conversation"),
    "a turn without text": (chat([{"from": "human"}]), "missing_field"),
    "a text that is a number": (chat(turns("<image>", 7)), "bad_conversation"),
    "an unknown role": (chat([{"from": "root", "value": "rm"}]), "bad_conversation"),
    "a role that is a list": (chat([{"from": ["x"], "value": "rm"}]), "bad_conversation"),
    "a late system message": (chat([*TURNS, {"from": "system", "value": "x"}]), "bad_conversation"),
    "no answer": (chat(turns("<image>\nWhat?")), "empty_text"),
    "an empty answer": (chat(turns("<image>\nWhat?", "  ")), "empty_text"),
    "an image too few": (chat(TWO), "image_count"),
    "an image too many": (chat(TURNS, ["0.jpg", "1.jpg"]), "image_count"),
    "a placeholder without image": ({"conversations": TURNS}, "image_count"),
    "an image path that is a number": (chat(TURNS, 7), "malformed"),
    "an image path that is null": (chat(TURNS, [None]), "no_image"),
    "a second image that is broken": (chat(TWO, ["0.jpg", "truncated.jpg"]), "bad_image"),
    "a hundred images": (chat(turns("<image>" * 100, "Many."), ["0.jpg"] * 100), "too_long"),
    "the model's placeholder": (chat(turns("<image_placeholder>\nWhat?", "A cat.")), "special_token"),
    "an end of sentence": (chat(turns("<image>\nWhat?", END)), "special_token"),
    "half a surrogate pair": (chat(turns("<image>\n\ud800", "A.")), "malformed"),
}


@pytest.mark.parametrize("as_lines", [True, False])
def test_hostile_conversations_are_rejected(tmp_path, folder, as_lines):
    good = chat(TURNS)
    samples = [good, *(sample for sample, _ in HOSTILE_SAMPLES.values()), good]
    text = "\n".join(map(json.dumps, samples)) if as_lines else json.dumps(samples)
    (tmp_path / "chat.json").write_text(text)
    read = prepare(tmp_path / "out", "conversations", tmp_path / "chat.json", images=str(folder), shard_records=5)
    assert read.keys == ["chat.json:1", f"chat.json:{len(samples)}"]
    names = list(HOSTILE_SAMPLES)
    found = {names[int(key.split(":")[1]) - 2]: reason for key, reason in read.reasons.items()}
    assert found == {name: reason for name, (_, reason) in HOSTILE_SAMPLES.items()}


HOSTILE_LINES = {
    b'{"text": "cut': "malformed",
    b"[" * 100_000: "malformed",
    b'{"text": ' + b"9" * 5000 + b"}": "malformed",
    b'"just a string"': "malformed",
    b'{"text": "\xff\xfe"}': "malformed",
    b"\x00\x01\x02": "malformed",
    '{"text": "utf-16"}'.encode("utf-16"): "malformed",
    b'{"text": ""}': "empty_text",
    b'{"text": " \\t\\u00a0"}': "empty_text",
    b'{"text": null}': "missing_field",
    b'{"body": "?"}': "missing_field",
    b'{"text": ["a"]}': "malformed",
    '{"text": "an <｜▁pad▁｜> in it"}'.encode(): "special_token",
}


def test_hostile_lines_are_rejected(tmp_path):
    good = b'{"text": "good"}'
    (tmp_path / "t.jsonl").write_bytes(b"\n".join([good, *(line.replace(b"\n", b"") for line in HOSTILE_LINES), good]))
    read = prepare(tmp_path / "out", "text", tmp_path / "t.jsonl", shard_records=4)
    assert read.keys == ["t.jsonl:1", f"t.jsonl:{len(HOSTILE_LINES) + 2}"]
    assert list(read.reasons.values()) == list(HOSTILE_LINES.values())


def test_a_line_that_is_too_long_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_BYTES", 100)
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n{"text": "' + "x" * 1000 + '"}\n{"text": "three"}')
    read = prepare(tmp_path / "out", "text", tmp_path / "t.jsonl")
    assert read.keys == ["t.jsonl:1", "t.jsonl:3"]
    assert read.reasons == {"t.jsonl:2": "too_long"}


def test_text_that_is_too_long_and_files_that_are_too_large_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "MAX_CHARACTERS", 100)
    monkeypatch.setattr(fields, "MAX_BYTES", len(image()) - 1)
    (tmp_path / "0.jpg").write_bytes(image())
    texts = json_lines(tmp_path / "t.jsonl", [{"text": "x" * 101}, {"text": "x" * 100}])
    assert prepare(tmp_path / "a", "text", texts).reasons == {"t.jsonl:1": "too_long"}
    captions = json_lines(tmp_path / "c.jsonl", [{"image": "0.jpg", "caption": "x"}, {"image": "", "caption": "x"}])
    with pytest.raises(JanusError, match="has no records"):
        prepare(tmp_path / "b", "captions", captions)
    rejected = [json.loads(line) for path in (tmp_path / "b").rglob("*.jsonl") for line in path.open()]
    assert [line["reason"] for line in rejected] == ["image_too_large", "no_image"]


class TestCSV:
    def test_hostile_rows_are_rejected(self, tmp_path, folder):
        good = [("image", "caption"), ("0.jpg", "good")]
        rows = [*good, ("0.jpg",), ("0.jpg", "a", "b"), ("0.jpg", ""), ("1.jpg", "good")]
        file = table(tmp_path / "c.csv", rows)
        file.write_bytes(file.read_bytes() + b"\n0.jpg,\xff\xfe\n")
        read = prepare(tmp_path / "out", "captions", file, images=str(folder))
        assert read.keys == ["c.csv:1", "c.csv:5"]
        malformed = dict.fromkeys(("c.csv:2", "c.csv:3", "c.csv:7"), "malformed")
        assert read.reasons == malformed | {"c.csv:4": "empty_text"}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b'image,caption\n0.jpg,"never closed\n1.jpg,x\n', r"c\.csv is invalid CSV at line 3"),
            (b'image,caption\n0.jpg,"a"b\n', r"c\.csv is invalid CSV at line 2"),
            (b"\xff\xfe\x00\x01", "has no column"),
            (b"", "has no column .* only none"),
        ],
    )
    def test_an_invalid_table_raises(self, tmp_path, content, words):
        (tmp_path / "c.csv").write_bytes(content)
        with pytest.raises(JanusError, match=words):
            prepare(tmp_path / "out", "captions", tmp_path / "c.csv")


class TestParquet:
    @pytest.fixture
    def path(self, tmp_path):
        columns = {"image": map(image, range(6)), "caption": [f"Number {i}." for i in range(6)]}
        return parquet(tmp_path / "c.parquet", columns, row_group_size=2, compression="gzip")

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all, but long enough to hold one"])
    def test_an_invalid_file_raises(self, tmp_path, content):
        (tmp_path / "c.parquet").write_bytes(content)
        with pytest.raises(JanusError, match=r"c\.parquet is damaged"):
            prepare(tmp_path / "out", "captions", tmp_path / "c.parquet")

    def test_a_truncated_file_raises(self, tmp_path, path):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(JanusError, match=r"c\.parquet is damaged"):
            prepare(tmp_path / "out", "captions", path)

    def test_only_a_damaged_row_group_is_lost(self, tmp_path, path):
        import pyarrow.parquet as pq

        column = pq.read_metadata(path).row_group(1).column(0)
        content = bytearray(path.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        content[start + 20 : start + column.total_compressed_size] = bytes(column.total_compressed_size - 20)
        path.write_bytes(content)
        read = prepare(tmp_path / "out", "captions", path, shard_records=2)
        assert read.keys == ["c.parquet:1", "c.parquet:2", "c.parquet:5", "c.parquet:6"]
        assert list(read.reasons.values()) == ["damaged_file"]
        assert str(path) in read.rejections[0].message

    def test_values_of_other_types_are_rejected(self, tmp_path):
        path = parquet(tmp_path / "c.parquet", {"image": [1, 2], "caption": [["a"], None]})
        with pytest.raises(JanusError, match="has no records"):
            prepare(tmp_path / "out", "captions", path)


class TestTar:
    MEMBERS = tuple(
        member for number in range(4) for member in ((f"{number}.jpg", image(number)), (f"{number}.txt", b"A cat."))
    )

    @pytest.fixture
    def file(self, tmp_path):
        return tar(tmp_path / "0.tar", self.MEMBERS)

    # A sample ends at the next header (512 bytes), so a cut in a header also loses the sample before it.
    @pytest.mark.parametrize(("position", "kept"), [(0, 1), (100, 1), (512, 2), (612, 2)])
    def test_a_truncated_tar_keeps_complete_samples(self, tmp_path, file, position, kept):
        with tarfile.open(file) as archive:
            start = archive.getmember("2.jpg").offset
        file.write_bytes(file.read_bytes()[: start + position])
        read = prepare(tmp_path / "out", "webdataset", file)
        assert read.keys == ["0.tar/0", "0.tar/1"][:kept]
        assert list(read.reasons.values()) == ["damaged_file"]

    def test_a_damaged_header_keeps_the_samples_before(self, tmp_path, file):
        with tarfile.open(file) as archive:
            start = archive.getmember("2.jpg").offset
        content = bytearray(file.read_bytes())
        content[start : start + 512] = os.urandom(512)
        file.write_bytes(content)
        read = prepare(tmp_path / "out", "webdataset", file)
        assert read.keys == ["0.tar/0"]
        assert list(read.reasons.values()) == ["damaged_file"]

    @pytest.mark.parametrize("content", [b"", b"no archive at all", b"\x1f\x8b\x08 no gzip", bytes(100)])
    def test_an_invalid_tar_does_not_affect_others(self, tmp_path, file, content):
        (tmp_path / "1.tar").write_bytes(content)
        read = prepare(tmp_path / "out", "webdataset", tmp_path / "*.tar")
        assert read.keys == ["0.tar/0", "0.tar/1", "0.tar/2", "0.tar/3"]
        assert list(read.reasons.values()) == ["damaged_file"]

    def test_a_truncated_gzip_keeps_the_samples_before(self, tmp_path):
        members = [(f"{i}.{end}", c) for i in range(40) for end, c in (("jpg", image(i)), ("txt", b"x"))]
        file = tar(tmp_path / "0.tar.gz", members, "w:gz")
        file.write_bytes(file.read_bytes()[:-3000])
        read = prepare(tmp_path / "out", "webdataset", file)
        assert 0 < len(read.records) < 40
        assert "damaged_file" in read.reasons.values()

    def test_links_devices_and_large_members_are_not_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fields, "MAX_BYTES", 5000)
        with tarfile.open(tmp_path / "0.tar", "w") as archive:
            for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.CHRTYPE), ("c.jpg", tarfile.FIFOTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "/etc/passwd"
                archive.addfile(member)
        tar(tmp_path / "0.tar", [("a.txt", b"A cat."), ("d.jpg", bytes(6000)), ("d.txt", b"A cat.")], "a")
        tar(tmp_path / "1.tar", [("x.jpg", image()), ("x.txt", b"A cat.")])
        read = prepare(tmp_path / "out", "webdataset", tmp_path / "*.tar")
        assert read.reasons == {"0.tar/a": "no_image", "0.tar/d": "image_too_large"}

    def test_incomplete_and_repeated_samples_are_rejected(self, tmp_path):
        members = [
            ("a.jpg", image()),
            ("b.txt", b"A cat."),
            ("c.jpg", image()),
            ("c.json", b"{"),
            ("d.jpg", image()),
            ("d.json", b'{"url": "x"}'),
            ("e.jpg", image()),
            ("e.txt", b"\xff\xfe"),
            ("a.txt", b"A cat."),
            ("f.jpg", image()),
            ("f.txt", b"good"),
        ]
        read = prepare(tmp_path / "out", "webdataset", tar(tmp_path / "0.tar", members))
        assert read.keys == ["0.tar/f"]
        assert [(rejection.key, rejection.reason) for rejection in read.rejections] == [
            ("0.tar/a", "missing_field"),
            ("0.tar/b", "no_image"),
            ("0.tar/c", "malformed"),
            ("0.tar/d", "missing_field"),
            ("0.tar/e", "malformed"),
            ("0.tar/a", "malformed"),
        ]


def test_unexpected_image_marks_are_rejected_for_each_task(tmp_path):
    file = json_lines(
        tmp_path / "chat.jsonl", [{"conversations": turns("a <image> tag", "b")}, {"conversations": turns("a", "b")}]
    )
    assert prepare(tmp_path / "a", "conversations", file, task=TEXT).reasons == {"chat.jsonl:1": "image_count"}
    assert prepare(tmp_path / "b", "conversations", file, task=UNDERSTANDING).reasons == {"chat.jsonl:1": "image_count"}
