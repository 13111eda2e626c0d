"""Files in the forms that other tools write, read without writing a dataset."""

import base64
import functools
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from janus_jax.data.prepare.validation import validate
from janus_jax.data.records import Record
from janus_jax.data.sources import RejectedRecord, get_source
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from tests.data.samples import image, json_lines, options, parquet, table, tar, turns

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FORMS = re.findall(r"^\| (.+) \| `(--source [^`]+)` \| `(\{.+\})` \| (\w+), (\d) images? \|$", PAGE, re.MULTILINE)


class Read(NamedTuple):
    records: list[Record]
    rejected: dict[str, RejectedRecord]

    @property
    def reasons(self):
        return {key: error.reason.value for key, error in self.rejected.items()}

    @property
    def texts(self):
        return [record.text or record.messages[-1]["content"] for record in self.records]


def read(kind, *inputs, **more):
    """Returns the valid records, and the rejections by key."""
    result = Read([], {})
    for part in get_source(kind).parts(options(kind, *inputs, **more)):
        for entry in part.entries():
            try:
                record = entry.make()
                validate(record)
                result.records.append(record)
            except RejectedRecord as error:
                result.rejected[entry.key] = error
    return result


def contents(record):
    return [(message["role"], message["content"]) for message in record.messages]


@pytest.fixture
def folder(tmp_path):
    """A folder with images of cats and dogs."""
    for number, name in enumerate(("cat.jpg", "dog.jpg")):
        (tmp_path / name).write_bytes(image(number))
    return tmp_path


@pytest.mark.parametrize("form", FORMS, ids=[name for name, *_ in FORMS])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_the_documented_forms_give_the_documented_records(folder, form, ending):
    _, flags, text, task, images = form
    address = base64.b64encode(image(2, "PNG")).decode()
    content = json.dumps(json.loads(text.replace("base64,PNG", f"base64,{address}")))
    (folder / f"a.{ending}").write_text(f"[{content},\n{content}]" if ending == "json" else f"{content}\n{content}\n")
    given = dict(flag.split(" ") for flag in flags.removeprefix("--").split(" --"))
    result = read(given["source"], folder / f"a.{ending}", task=Task(given["task"]) if "task" in given else None)
    assert not result.rejected
    assert [(record.task.value, len(record.images)) for record in result.records] == [(task, int(images))] * 2
    assert [record.unused for record in result.records] == [(), ()]


def test_the_page_has_forms_of_all_tasks():
    assert {task for *_, task, _ in FORMS} == {task.value for task in Task}


CHAT = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]}
USER, ANSWER = ("user", "<image_placeholder>What?"), ("assistant", "A cat.")


class TestConversations:
    def chat(self, folder, value, **more):
        return read("conversations", json_lines(folder / "a.jsonl", [value]), **more)

    def test_images_beside_messages_are_kept_with_the_system_prompt(self, folder):
        (record,) = self.chat(folder, CHAT | {"images": ["cat.jpg"], "system": "Be brief."}).records
        assert contents(record) == [("system", "Be brief."), USER, ANSWER]
        assert record.images == (image(0),)

    def test_history_comes_before_the_query(self, folder):
        value = {"query": "<image>What?", "response": "A cat.", "images": ["dog.jpg"], "history": [["Hi.", "Hello."]]}
        (record,) = self.chat(folder, value).records
        assert contents(record) == [("user", "Hi."), ("assistant", "Hello."), USER, ANSWER]

    def test_parts_keep_the_order_of_texts_and_images(self, folder):
        parts = [
            {"type": "image"},
            {"type": "text", "text": "or"},
            {"type": "image_url", "image_url": {"url": "dog.jpg", "detail": "low"}},
            {"type": "text", "text": "?"},
        ]
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
        ]
        (record,) = self.chat(folder, {"images": ["cat.jpg"], "messages": messages}).records
        assert contents(record) == [("user", "<image_placeholder>\nor<image_placeholder>?"), ("assistant", "Yes")]
        assert record.images == (image(0), image(1))

    def test_parquet_with_structs_of_images_and_parts(self, folder):
        def part(kind, text=None):
            return {"index": 0 if kind == "image" else None, "text": text, "type": kind}

        messages = [
            {"role": "user", "content": [part("text", "What?"), part("image")]},
            {"role": "assistant", "content": [part("text", "A cat.")]},
        ]
        structs = [{"bytes": image(0), "path": None}]
        file = parquet(folder / "a.parquet", {"messages": [messages], "images": [structs], "id": [7]})
        (record,) = read("conversations", file).records
        assert contents(record) == [("user", "What?<image_placeholder>"), ("assistant", "A cat.")]
        assert record.images == (image(0),)
        assert record.unused == ("id", "part.index")

    @pytest.mark.parametrize(
        ("value", "reason", "words"),
        [
            (CHAT | {"images": ["cat.jpg", "dog.jpg"]}, "image_count", "2 images and 1 marks"),
            (CHAT | {"images": []}, "image_count", "0 images and 1 marks"),
            (CHAT | {"image": "cat.jpg", "images": ["dog.jpg"]}, "image_count", "different images in images and image"),
            (CHAT | {"images": ["cat.jpg"], "videos": ["a.mp4"]}, "unsupported_field", "field videos"),
            (CHAT | {"images": ["cat.jpg"], "tools": "[{}]"}, "unsupported_field", "field tools"),
            (CHAT | {"images": ["cat.jpg"], "history": [["a", "b"]]}, "bad_conversation", "turns in history"),
            (CHAT | {"images": ["https://a.org/cat.jpg"]}, "remote_image", "download the images"),
            ({"messages": None}, "missing_field", "its messages is null"),
            ({"caption": "A cat."}, "missing_field", "--source captions reads"),
            (
                {
                    "messages": [{"role": "system", "content": "A"}, *CHAT["messages"]],
                    "images": ["cat.jpg"],
                    "system": "B",
                },
                "bad_conversation",
                "its system differs",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
                "bad_conversation",
                "a part has the type 'audio'",
            ),
        ],
    )
    def test_content_that_a_record_cannot_hold_is_rejected(self, folder, value, reason, words):
        (error,) = self.chat(folder, value).rejected.values()
        assert error.reason.value == reason
        assert words in str(error)

    def test_unknown_fields_are_named(self, folder):
        value = {
            "id": 1,
            "source": "web",
            "note": None,
            "tags": [],
            "tools": "[]",
            "images": ["cat.jpg"],
            "videos": [],
        } | CHAT
        (record,) = self.chat(folder, value).records
        assert record.unused == ("id", "source")


class TestCaptions:
    def test_several_captions_are_all_kept_and_alternate(self, folder):
        captions = ["One.", "Two.", " ", "Three."]
        file = parquet(folder / "a.parquet", {"image": [{"bytes": image(), "path": None}], "caption": [captions]})
        for task in (Task.GENERATION, Task.UNDERSTANDING):
            (record,) = read("captions", file, task=task).records
            epochs = [record.for_epoch(epoch) for epoch in range(6)]
            texts = [each.text or each.messages[-1]["content"] for each in epochs]
            assert sorted(texts[:3]) == ["One.", "Three.", "Two."]
            assert texts[3:] == texts[:3]
            assert all(len(each.messages) == len(record.messages) and not each.alternatives for each in epochs)

    def test_records_start_with_different_captions(self, folder):
        records = [Record(f"{i}", Task.GENERATION, "a", alternatives=("b", "c")) for i in range(30)]
        assert {record.for_epoch(0).text for record in records} == {"a", "b", "c"}

    def test_an_edit_is_rejected_with_the_source_that_reads_it(self, folder):
        (error,) = read("captions", json_lines(folder / "a.jsonl", [EDIT])).rejected.values()
        assert (error.reason.value, "--source edits" in str(error)) == ("wrong_task", True)

    def test_class_labels_of_a_hub_dataset_become_captions(self, folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        features = {"label": {"names": ["tabby_cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        structs = [{"bytes": image(i), "path": f"{i}.jpg"} for i in range(2)]
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        data = pa.table({"image": structs, "label": [0, 1]}).replace_schema_metadata(metadata)
        pq.write_table(data, folder / "a.parquet")
        assert read("captions", folder / "a.parquet").texts == ["tabby cat", "dog"]
        names = folder / "names.json"
        names.write_text('{"tabby_cat": "a striped cat", "dog": "a dog"}')
        assert read("captions", folder / "a.parquet", class_names=str(names)).texts == ["a striped cat", "a dog"]

    def test_a_number_of_a_class_needs_names(self, folder):
        file = table(folder / "a.csv", [("image", "label"), ("cat.jpg", "0"), ("dog.jpg", "7")])
        errors = read("captions", file).rejected.values()
        assert all("--class_names" in str(error) for error in errors)
        (folder / "names.txt").write_text("\ufeffgreat tit\r\nrobin\r\n")
        result = read("captions", file, class_names=str(folder / "names.txt"))
        assert (result.texts, result.reasons) == (["great tit"], {"a.csv:2": "missing_field"})


EDIT = {"input_image": ["cat.jpg"], "input_prompt": "Make it blue.", "output_image": "dog.jpg"}


class TestEdits:
    read = staticmethod(functools.partial(read, "edits"))

    @pytest.mark.parametrize("form", ["array", "indented array", "lines", "BOM", "gzip", "one object"])
    def test_json(self, folder, form):
        several = EDIT | {"input_image": ["dog.jpg", "cat.jpg"], "id": 7}
        values = [EDIT, EDIT | {"input_image": "cat.jpg"}, several]
        text = "\n".join(map(json.dumps, values)) if form == "lines" else json.dumps(values, indent=2 * ("in" in form))
        if form == "one object":
            text = json.dumps(EDIT, indent=2)
        content = b"\xef\xbb\xbf" * (form == "BOM") + text.encode()
        file = folder / f"a.json{'.gz' * (form == 'gzip')}"
        file.write_bytes(gzip.compress(content) if form == "gzip" else content)
        result = self.read(file)
        images = [record.images for record in result.records]
        single = (image(0), image(1))
        assert images == ([single] if form == "one object" else [single, single, (image(1), image(0), image(1))])
        assert {(record.task, record.text) for record in result.records} == {(Task.EDITING, "Make it blue.")}
        assert not result.rejected
        assert form == "one object" or result.records[2].unused == ("id",)

    @pytest.mark.parametrize("as_list", [False, True])
    def test_images_in_parquet(self, folder, as_list):
        source, target = ({"bytes": image(number, "PNG"), "path": f"{number}.png"} for number in range(2))
        columns = {
            "input_image": [[source] if as_list else source],
            "input_prompt": ["Blue."],
            "output_image": [target],
        }
        (record,) = self.read(parquet(folder / "a.parquet", columns)).records
        assert (record.text, record.images) == ("Blue.", (image(0, "PNG"), image(1, "PNG")))

    def test_texts_to_images_are_rejected_with_the_source_that_reads_them(self, folder):
        values = [{"input_prompt": "A cat.", "output_image": "cat.jpg"}, EDIT | {"input_image": []}, EDIT]
        result = self.read(json_lines(folder / "a.jsonl", values))
        assert result.reasons == {"a.jsonl:1": "wrong_task", "a.jsonl:2": "wrong_task"}
        assert all("--source captions --task generation" in str(error) for error in result.rejected.values())

    def test_a_table_without_edited_images_raises(self, folder):
        file = table(folder / "a.csv", [("input_image", "input_prompt"), ("cat.jpg", "Blue.")])
        with pytest.raises(JanusError, match=r"a\.csv has no column output_image .* --image_field"):
            self.read(file)

    @pytest.mark.parametrize("ending", ["tar", "tar.gz"])
    def test_tars(self, folder, ending):
        members = [
            *(("0.input.jpg", image(0)), ("0.output.jpg", image(1)), ("0.instruction.txt", b"\xef\xbb\xbfBlue.\n")),
            *(("._1.input.jpg", b"\x00\x05"), ("1.input_10.png", image(2, "PNG")), ("1.input_2.jpeg", image(3))),
            *(("1.output.jpg", image(1)), ("1.json", b'{"instruction": "Red.", "id": 7}'), ("1.mask.jpg", image(4))),
            *(("a/2.source_img.jpg", image(5)), ("a/2.target_img.jpg", image(6)), ("a/2.txt", b"Green.")),
        ]
        result = self.read(tar(folder / f"a.{ending}", members, "w:gz" if "gz" in ending else "w"))
        assert list(result.reasons.values()) == []
        assert result.texts == ["Blue.", "Red.", "Green."]
        assert [record.images for record in result.records] == [
            (image(0), image(1)),
            (image(3), image(2, "PNG"), image(1)),
            (image(5), image(6)),
        ]
        assert [record.unused for record in result.records] == [(), ("id", ".mask.jpg"), ()]

    def test_named_members_of_a_tar(self, folder):
        members = [("0.input.jpg", image(0)), ("0.after.jpg", image(1)), ("0.short.txt", b"Blue."), ("0.txt", b"No.")]
        file = tar(folder / "a.tar", members)
        (error,) = self.read(file).rejected.values()
        assert "it has no output.jpg, only input.jpg, after.jpg" in str(error)
        (record,) = self.read(file, image_field="after.jpg", text_field="short.txt").records
        assert (record.text, record.images, record.unused) == ("Blue.", (image(0), image(1)), (".txt",))

    def test_hostile_samples_of_a_tar_are_rejected(self, folder):
        good = [("input.jpg", image(0)), ("output.jpg", image(1)), ("instruction.txt", b"Blue.")]
        cases = [
            (good[1:], "no_image"),
            ([good[0], good[2]], "no_image"),
            (good[:2], "missing_field"),
            ([*good[:2], ("instruction.txt", b" ")], "empty_text"),
            ([*good[:2], ("instruction.txt", b"\xff\xfe")], "malformed"),
            ([*good[:2], ("json", b"{")], "malformed"),
            ([*good, ("output.png", image(2, "PNG"))], "image_count"),
            ([*good, ("prompt.txt", b"Red.")], "missing_field"),
            ([("input.jpg", image(0)[:100]), *good[1:]], "bad_image"),
            ([*good[:2], ("json", b'{"instruction": "Blue.", "output_image": "/etc/passwd"}')], None),
            (good, None),
        ]
        members = [(f"{i:02}.{name}", content) for i, (sample, _) in enumerate(cases) for name, content in sample]
        result = self.read(tar(folder / "a.tar", members))
        assert result.reasons == {f"a.tar/{i:02}": reason for i, (_, reason) in enumerate(cases) if reason}
        assert {record.images for record in result.records} == {(image(0), image(1))}


ROWS = [{"image": "cat.jpg", "caption": "Eine Katze, 猫."}, {"image": "dog.jpg", "caption": "A dog."}]


def write_table(path, rows):
    """Writes rows in the format of the path's endings; BOM and CRLF if the name says so."""
    import pyarrow as pa

    ending = path.suffixes[0]
    if ending == ".parquet":
        return parquet(path, {name: [row[name] for row in rows] for name in rows[0]})
    if ending == ".arrow":
        data = pa.Table.from_pylist(rows)
        new = pa.ipc.new_file if path.stem == "file" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, data.schema) as writer:
            writer.write_table(data, max_chunksize=1)
        return path
    if ending in (".csv", ".tsv"):
        content = table(path.with_suffix(ending), [tuple(rows[0]), *(tuple(row.values()) for row in rows)]).read_bytes()
    elif ending == ".json":
        content = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    else:
        content = json_lines(path.with_suffix(ending), rows).read_bytes()
    if "crlf" in path.name:
        content = b"\xef\xbb\xbf" + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    pack = {".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    path.write_bytes(pack.get(path.suffix, bytes)(content))
    return path


FILES = [
    *(f"a.{ending}{packed}" for ending in ("json", "jsonl", "csv", "tsv") for packed in ("", ".gz", ".zst")),
    *(f"crlf.{ending}" for ending in ("json", "jsonl", "csv", "jsonl.gz")),
    "a.parquet",
    "stream.arrow",
    "file.arrow",
]


@pytest.mark.parametrize("name", FILES)
def test_every_table_format_gives_the_same_records(folder, name):
    result = read("captions", write_table(folder / name, ROWS))
    assert not result.rejected
    assert result.texts == [row["caption"] for row in ROWS]
    assert [record.key for record in result.records] == [f"{name}:1", f"{name}:2"]
    texts = read("text", write_table(folder / name, [{"text": row["caption"], "n": "1"} for row in ROWS]))
    assert texts.texts == [row["caption"] for row in ROWS]
    assert {record.unused for record in texts.records} == {("n",)}


def test_parquet_under_another_name_is_recognized(folder):
    path = write_table(folder / "a.parquet", ROWS).rename(folder / "a.jsonl")
    assert len(read("captions", path).records) == 2


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_a_truncated_compressed_file_keeps_the_rows_before(folder, packed):
    path = write_table(folder / f"a.jsonl.{packed}", [{"text": f"{i} {hash(str(i))}"} for i in range(5000)])
    path.write_bytes(path.read_bytes()[:-2000])
    parts = list(get_source("text").parts(options("text", path)))
    entries, keys = parts[0].entries(), []
    with pytest.raises(RejectedRecord, match="cannot be read from here on"):
        keys.extend(entry.key for entry in entries)


class TestFolders:
    def test_a_downloaded_dataset_gives_its_split(self, folder):
        (folder / "data").mkdir()
        for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
            parquet(folder / "data" / f"{name}.parquet", {"text": [name]})
        (folder / "dataset_infos.json").write_text("{}")
        (folder / "._data.jsonl").write_bytes(b"\x00\x05\x16\x07")
        assert read("text", folder).texts == ["train-00000-of-00002", "train-00001-of-00002"]
        assert read("text", folder, input_split="test").texts == ["test-00000-of-00001"]
        with pytest.raises(JanusError, match=r"--input_split dev is not in .*; its splits are test, train"):
            read("text", folder, input_split="dev")
        json_lines(folder / "more.jsonl", [{"text": "x"}])
        with pytest.raises(JanusError, match=r"more\.jsonl without a split in its name"):
            read("text", folder)

    def test_a_dataset_saved_to_disk_gives_its_split(self, folder):
        (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        for split in ("train", "test"):
            (folder / split).mkdir()
            (folder / split / "state.json").write_text("{}")
            write_table(folder / split / "data-00000-of-00001.arrow", [{"text": split}])
        assert read("text", folder).texts == ["train"]

    @pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
    def test_an_imagefolder_with_metadata(self, folder, name):
        (folder / "train").mkdir()
        shutil.copy(folder / "cat.jpg", folder / "train" / "1.jpg")
        write_table(folder / "train" / name, [{"file_name": "1.jpg", "text": "A cat."}])
        (record,) = read("captions", folder).records
        assert (record.text, record.images) == ("A cat.", (image(0),))

    def test_images_with_names_folders_or_texts_as_captions(self, folder):
        for name in ("red_cat/a_cat.jpg", "red_cat/more/2.png"):
            (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "cat.jpg", folder / "in" / name)
        for name in ("._a_cat.jpg", ".DS_Store"):
            (folder / "in" / "red_cat" / name).write_bytes(b"\x00\x05")
        (folder / "in" / "__MACOSX").mkdir()
        shutil.copy(folder / "cat.jpg", folder / "in" / "__MACOSX" / "b.jpg")
        assert read("folder", folder / "in").texts == ["a cat", "2"]
        assert read("folder", folder / "in", caption_from="folder").texts == ["red cat", "more"]
        (folder / "in" / "red_cat" / "a_cat.txt").write_text("\ufeffA red cat.\r\n", encoding="utf-8")
        result = read("folder", folder / "in")
        assert (result.texts, result.reasons) == (["A red cat."], {"more/2.png": "missing_field"})
        assert read("folder", folder / "in", caption_from="name").texts == ["a cat", "2"]

    def test_links_to_folders_are_followed_once(self, folder):
        (folder / "in").mkdir()
        (folder / "in" / "loop").symlink_to(folder / "in")
        (folder / "in" / "other").symlink_to(folder / "photos")
        (folder / "photos").mkdir()
        shutil.copy(folder / "cat.jpg", folder / "photos")
        assert [record.key for record in read("folder", folder / "in").records] == ["cat.jpg"]

    @pytest.mark.parametrize(
        ("kind", "name", "words"),
        [
            ("captions", "a.tar", "--source edits or webdataset reads .tar files"),
            ("captions", "cat.jpg", "--source folder reads .jpg files"),
            ("captions", "a.txt", "--source text reads .txt files"),
            ("webdataset", "a.jsonl", "--source captions or conversations or edits or text reads .jsonl files"),
            ("folder", "a.jsonl", "--source captions or conversations or edits or text reads .jsonl files"),
            ("captions", "", "is a folder without .* files; --source folder reads .jpg files"),
        ],
    )
    def test_a_message_names_the_source_that_reads_a_file(self, folder, kind, name, words):
        (folder / "x").mkdir()
        shutil.copy(folder / "cat.jpg", folder / "x" / "cat.jpg")
        tar(folder / "a.tar", [("a.txt", b"x")])
        (folder / "a.txt").write_text("A cat.")
        json_lines(folder / "a.jsonl", ROWS)
        with pytest.raises(JanusError, match=words):
            read(kind, folder / name if name else folder / "x")


class TestText:
    @pytest.mark.parametrize("packed", ["", ".gz"])
    @pytest.mark.parametrize(
        ("unit", "texts"),
        [("line", ["a", "b", "c"]), ("paragraph", ["a\r\nb", "c"]), ("file", ["a\r\nb\r\n\r\nc"])],
    )
    def test_lines_paragraphs_and_files(self, folder, unit, texts, packed):
        path = folder / f"a.txt{packed}"
        path.write_bytes((gzip.compress if packed else bytes)(b"\xef\xbb\xbfa\r\nb\r\n\r\nc\r\n"))
        assert read("text", path, text_unit=unit, text_field="body").texts == texts

    def test_one_object_in_several_lines_is_one_document(self, folder):
        (folder / "a.json").write_text(json.dumps({"text": "One.", "title": "T"}, indent=2))
        (record,) = read("text", folder / "a.json").records
        assert (record.text, record.unused) == ("One.", ("title",))


class TestWebDataset:
    read = staticmethod(functools.partial(read, "webdataset"))

    def test_classes_by_number_and_name(self, folder):
        file = tar(
            folder / "a.tar",
            [("n1_7.JPEG", image()), ("n1_7.cls", b"1\n"), ("n1_8.jpg", image()), ("n1_8.cls", b"n01440764")],
        )
        (folder / "names.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
        assert self.read(file, class_names=str(folder / "names.txt")).texts == ["goldfish", "tench, Tinca tinca"]
        (folder / "index.json").write_text('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}')
        result = self.read(file, class_names=str(folder / "index.json"))
        assert (result.texts, result.reasons) == (["goldfish"], {"a.tar/n1_8": "missing_field"})

    def test_compound_and_other_endings(self, folder):
        members = [
            *(("0.input.jpg", image(0)), ("0.outputs.txt", b"A cat."), ("0.meta.npy", b"x")),
            *(("1.img", image(1)), ("1.cap", b"A dog."), ("1.json", b'{"width": 12}')),
            *(("2.png", image(2, "PNG")), ("2.caption", b"\xef\xbb\xbfA bird.")),
        ]
        result = self.read(tar(folder / "a.tar", members))
        assert result.texts == ["A cat.", "A dog.", "A bird."]
        assert [record.unused for record in result.records] == [(".meta.npy",), ("width",), ()]

    def test_named_members(self, folder):
        members = [
            *(("0.input.jpg", image(0)), ("0.mask.jpg", image(1))),
            *(("0.short.txt", b"A cat."), ("0.json", b'{"long": ["A cat on a mat."], "caption": "no"}')),
        ]
        file = tar(folder / "a.tar", members)
        (error,) = self.read(file).rejected.values()
        assert "it has input.jpg, mask.jpg; select one with --image_field" in str(error)
        (record,) = self.read(file, image_field="input.jpg", text_field="long").records
        assert (record.text, record.images) == ("A cat on a mat.", (image(0),))
        assert record.unused == ("caption", ".mask.jpg", ".short.txt")
        assert self.read(file, image_field="input.jpg", text_field="short.txt").texts == ["A cat."]

    def test_messages_list_the_endings_of_a_sample(self, folder):
        members = [("0.npy", b"x"), ("0.txt", b"A cat."), ("1.jpg", image()), ("1.npy", b"x")]
        errors = list(self.read(tar(folder / "a.tar", members)).rejected.values())
        assert "only npy, txt" in str(errors[0])
        assert "only jpg, npy" in str(errors[1])

    def test_an_archive_made_on_macos(self, folder):
        members = [
            *(("./._0.jpg", b"\x00\x05\x16\x07"), ("./0.jpg", image()), ("./._0.txt", b"\x00"), ("./0.txt", b"A cat.")),
            *(("__MACOSX/0.jpg", b"x"), ("__MACOSX/0.txt", b"x"), (".DS_Store", b"x")),
        ]
        result = self.read(tar(folder / "a.tar", members))
        assert (result.texts, result.rejected) == (["A cat."], {})

    def test_conversations_in_parts(self, folder):
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
        chat = {"messages": [*messages, {"role": "assistant", "content": "A cat."}], "image": "0.jpg"}
        file = tar(folder / "a.tar", [("0.jpg", image()), ("0.json", json.dumps(chat).encode())])
        (record,) = self.read(file, task=Task.UNDERSTANDING).records
        assert contents(record) == [("user", "<image_placeholder>\nWhat?"), ("assistant", "A cat.")]


class TestFilesOfOtherTools:
    """Files in tests/data/files, written by the libraries datasets 5.2 and webdataset 1.0, and by tar on macOS."""

    FILES = Path(__file__).parent / "files"

    def test_a_dataset_saved_to_disk(self):
        train = read("captions", self.FILES / "saved_to_disk")
        assert train.texts == ["Number 0.", "Number 1.", "Number 2."]
        assert {record.unused for record in train.records} == {("label",)}
        assert read("captions", self.FILES / "saved_to_disk", input_split="test").texts == ["Number 3."]

    def test_class_labels_in_parquet(self):
        assert read("captions", self.FILES / "labels.parquet").texts == ["tabby cat", "dog"]

    def test_lists_of_captions_in_parquet(self):
        result = read("captions", self.FILES / "captions.parquet")
        assert [(record.text, record.alternatives) for record in result.records] == [
            ("a", ("b",)),
            ("c", ()),
            ("d", ()),
        ]
        assert result.reasons == {"captions.parquet:3": "empty_text"}

    def test_conversations_of_a_hub_dataset(self):
        one, two = read("conversations", self.FILES / "hub").records
        assert contents(one) == [("user", "<image_placeholder>\nWhat?"), ("assistant", "A cat.")]
        assert contents(two)[0] == ("user", "Compare <image_placeholder> to <image_placeholder>")
        assert (len(one.images), len(two.images)) == (1, 2)
        assert len(read("conversations", self.FILES / "hub", input_split="validation").records) == 1

    def test_webdataset_and_macos(self, tmp_path):
        (tmp_path / "names").write_text("cat\ndog\n")
        result = read("webdataset", self.FILES / "webdataset.tar.gz", class_names=str(tmp_path / "names"))
        assert (result.texts, result.reasons) == (["dog", "A dog."], {"webdataset.tar.gz/s2": "image_count"})
        assert read("webdataset", self.FILES / "macos.tar.gz").texts == ["a star 0", "a star 1", "a star 2"]


def test_turns_of_conversations_name_their_unused_fields(folder):
    said = [turn | {"weight": 1} for turn in turns("<image>What?", "A cat.")]
    file = json_lines(folder / "a.jsonl", [{"image": "cat.jpg", "conversations": said}])
    (record,) = read("conversations", file).records
    assert record.unused == ("turn.weight",)
