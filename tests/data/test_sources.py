import json

import numpy as np
import pytest
from PIL import Image

from janus_jax.data.sources import SOURCES, get_source
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from tests.data.samples import (
    GENERATION,
    TEXT,
    UNDERSTANDING,
    image,
    images,
    json_lines,
    parquet,
    prepare,
    table,
    tar,
    turns,
)


def contents(record):
    return [(message["role"], message["content"]) for message in record.messages]


class TestConversations:
    @pytest.fixture
    def workspace(self, tmp_path):
        images(tmp_path / "photos", 3)
        return tmp_path

    SAMPLES = (
        {"id": 7, "image": "0.jpg", "conversations": turns("<image>\nWhät?", "A cat.", "Sure?", "Yes.")},
        {"image": ["1.jpg", "2.jpg"], "conversations": turns("Compare <image> to <image>.", "Alike. 猫")},
        {"conversations": turns("Hello.", "Good day.")},
        {"image": "2.jpg", "conversations": turns("What is it?", "A mat.")},
    )

    @pytest.fixture(
        params=["array", "indented array", "array behind a byte order mark", "lines", "lines behind a byte order mark"]
    )
    def file(self, request, workspace):
        path = workspace / "chat.json"
        if request.param.startswith("lines"):
            json_lines(path, self.SAMPLES)
        else:
            indent = 2 if "indented" in request.param else None
            path.write_text(json.dumps(self.SAMPLES, indent=indent, ensure_ascii=False), encoding="utf-8")
        path.write_bytes(b"\xef\xbb\xbf" * ("mark" in request.param) + path.read_bytes())
        return path

    @pytest.mark.parametrize("shard_records", [1, 3, 100])
    def test_turns_roles_and_images(self, workspace, file, shard_records):
        read = prepare(
            workspace / "out", "conversations", file, images=str(workspace / "photos"), shard_records=shard_records
        )
        assert not read.rejections
        assert read.keys == ["chat.json:1", "chat.json:2", "chat.json:3", "chat.json:4"]
        one, several, none, unmarked = read.records
        assert contents(one) == [
            ("user", "<image_placeholder>\nWhät?"),
            ("assistant", "A cat."),
            ("user", "Sure?"),
            ("assistant", "Yes."),
        ]
        assert contents(several)[0] == ("user", "Compare <image_placeholder> to <image_placeholder>.")
        assert contents(several)[1] == ("assistant", "Alike. 猫")
        assert several.images == (image(1), image(2))
        assert (none.task, none.images) == (Task.TEXT, ())
        assert contents(unmarked)[0] == ("user", "<image_placeholder>\nWhat is it?")
        assert {record.task for record in (one, several, unmarked)} == {Task.UNDERSTANDING}

    def test_the_text_task_rejects_images(self, workspace, file):
        read = prepare(workspace / "out", "conversations", file, images=str(workspace / "photos"), task=TEXT)
        assert read.keys == ["chat.json:3"]
        assert set(read.reasons.values()) == {"image_count"}

    @pytest.mark.parametrize("cut", [1, 20, 200])
    def test_a_truncated_array_raises(self, workspace, cut):
        path = workspace / "chat.json"
        path.write_text(json.dumps(self.SAMPLES)[:-cut])
        with pytest.raises(JanusError, match=r"chat\.json is (damaged|not a JSON array)"):
            prepare(workspace / "out", "conversations", path)


class TestCaptions:
    ROWS = (("0.jpg", "A cat, on a mat."), ("1.jpg", 'Two\n"dogs"\r\nrunning.'), ("2.jpg", "Drei Bäume."))

    @pytest.fixture(params=["jsonl", "csv", "tsv", "parquet"])
    def file(self, request, tmp_path):
        images(tmp_path, 3)
        path = tmp_path / f"captions.{request.param}"
        if request.param == "jsonl":
            return json_lines(path, [{"image": name, "caption": caption} for name, caption in self.ROWS])
        if request.param == "parquet":
            columns = dict(zip(("image", "caption"), zip(*self.ROWS, strict=True), strict=True))
            return parquet(path, {"extra": [1, 2, 3], **columns}, row_group_size=2)
        return table(path, [("image", "caption"), *self.ROWS])

    @pytest.mark.parametrize("shard_records", [1, 2, 100])
    def test_paths_and_captions(self, tmp_path, file, shard_records):
        read = prepare(tmp_path / "out", "captions", file, shard_records=shard_records)
        assert not read.rejections
        assert read.keys == [f"{file.name}:{number}" for number in (1, 2, 3)]
        assert [record.text for record in read.records] == [caption for _, caption in self.ROWS]
        assert [record.images for record in read.records] == [(image(i),) for i in range(3)]
        assert {record.task for record in read.records} == {Task.GENERATION}

    def test_captions_answer_alternating_prompts(self, tmp_path):
        images(tmp_path, 1)
        file = json_lines(tmp_path / "c.jsonl", [{"image": "0.jpg", "caption": f"Number {i}."} for i in range(40)])
        several = {"task": UNDERSTANDING, "prompts": ("Describe it.", "What is there?")}
        read = prepare(tmp_path / "out", "captions", file, **several)
        asked = [contents(record)[0][1] for record in read.records]
        assert set(asked) == {f"<image_placeholder>\n{prompt}" for prompt in several["prompts"]}
        assert contents(read.records[5])[1] == ("assistant", "Number 5.")
        again = prepare(tmp_path / "again", "captions", file, shard_records=7, **several)
        assert [contents(record)[0][1] for record in again.records] == asked

    @pytest.mark.parametrize("form", ["bytes", "bytes and path", "data address"])
    def test_images_in_the_table(self, tmp_path, form):
        import base64

        picture = image()
        if form == "data address":
            address = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
            file = table(tmp_path / "c.csv", [("image", "caption"), (address, "A cat.")])
        else:
            value = picture if form == "bytes" else {"bytes": picture, "path": None}
            file = parquet(tmp_path / "c.parquet", {"image": [value], "caption": ["A cat."]})
        (record,) = prepare(tmp_path / "out", "captions", file).records
        assert record.images == (picture,)

    def test_fields_with_other_names(self, tmp_path):
        images(tmp_path, 1)
        file = table(tmp_path / "c.csv", [("bild", "satz"), ("0.jpg", "Eine Katze.")])
        with pytest.raises(JanusError, match=r"c\.csv has no column .* only bild, satz; .* --text_field"):
            prepare(tmp_path / "no", "captions", file)
        (record,) = prepare(tmp_path / "out", "captions", file, text_field="satz", image_field="bild").records
        assert record.text == "Eine Katze."


class TestWebDataset:
    def test_captions_in_txt_and_json(self, tmp_path):
        members = [
            ("a/000.jpg", image(0)),
            ("a/000.txt", b"A cat.\n"),
            ("a/000.json", b'{"caption": "not this one", "more": 1}'),
            ("a/001.json", '{"caption": "Zwei Bäume."}'.encode()),
            ("a/001.webp", image(1, "WEBP")),
            ("b/000.txt", b"A dog."),
            ("b/000.PNG", image(2, "PNG")),
        ]
        file = tar(tmp_path / "00.tar", members)
        read = prepare(tmp_path / "out", "webdataset", file)
        assert not read.rejections
        assert read.keys == ["00.tar/a/000", "00.tar/a/001", "00.tar/b/000"]
        assert [record.text for record in read.records] == ["A cat.", "Zwei Bäume.", "A dog."]
        named = prepare(tmp_path / "named", "webdataset", file, text_field="caption")
        assert [record.text for record in named.records] == ["not this one", "Zwei Bäume."]

    @pytest.mark.parametrize("ending", ["tar", "tar.gz"])
    def test_each_tar_is_a_part(self, tmp_path, ending):
        (tmp_path / "in").mkdir()
        for number in range(3):
            members = [("x.jpg", image(number)), ("x.txt", b"A cat.")]
            tar(tmp_path / "in" / f"{number}.{ending}", members, "w:gz" if "gz" in ending else "w")
        read = prepare(tmp_path / "out", "webdataset", tmp_path / "in")
        assert read.keys == [f"{number}.{ending}/x" for number in range(3)]
        assert len(list((tmp_path / "out").glob("records-train.array_record-*-of-00003"))) == 3

    def test_conversations(self, tmp_path):
        chat = json.dumps({"conversations": turns("<image>\nWhat?", "A cat.")}).encode()
        file = tar(tmp_path / "0.tar", [("x.jpg", image()), ("x.json", chat)])
        (record,) = prepare(tmp_path / "out", "webdataset", file, task=UNDERSTANDING).records
        assert contents(record) == [("user", "<image_placeholder>\nWhat?"), ("assistant", "A cat.")]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A small TFDS dataset with classes."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds") / "pets" / "1.0.0"
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "pixels": tfds.features.Tensor(shape=(4, 5, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["n001", "tabby_cat"]),
            "said": tfds.features.Text(),
        }
    )
    rows = [
        {"image": Image.new("RGB", (9, 7), (i, 0, 0)), "pixels": np.full((4, 5, 3), i, np.uint8), "label": i % 2}
        for i in range(5)
    ]

    class Pets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, row | {"said": f"Pet {i}"}) for i, row in enumerate(rows))

    builder = Pets(data_dir=folder.parents[1], file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


class TestTFDS:
    @pytest.mark.parametrize("shard_records", [2, 100])
    def test_class_names_are_captions_and_images_stay_encoded(self, tmp_path, pets, shard_records):
        read = prepare(tmp_path / "out", "tfds", pets, shard_records=shard_records)
        assert not read.rejections
        assert len(read.records) == 5
        assert {record.text for record in read.records} == {"n001", "tabby cat"}
        assert all(record.images[0].startswith(b"\x89PNG") for record in read.records)
        assert read.keys == [f"pets/1.0.0/train:{number}" for number in range(5)]

    @pytest.mark.parametrize("form", ["lines", "json"])
    def test_captions_for_class_names(self, tmp_path, pets, form):
        words = {"n001": "tench, Tinca tinca", "tabby_cat": "tabby"}
        lines = "\n".join(f"{name} {text}" for name, text in words.items())
        file = tmp_path / "words"
        file.write_text(lines if form == "lines" else json.dumps(words))
        read = prepare(tmp_path / "out", "tfds", pets, class_names=str(file))
        assert {record.text for record in read.records} == set(words.values())

    def test_a_class_without_a_caption_raises(self, tmp_path, pets):
        (tmp_path / "words").write_text("n001 tench")
        with pytest.raises(JanusError, match="lacks 1 of 2 classes, the first is tabby_cat"):
            prepare(tmp_path / "out", "tfds", pets, class_names=str(tmp_path / "words"))

    def test_arrays_texts_and_partial_splits(self, tmp_path, pets):
        given = {"image_field": "pixels", "text_field": "said", "input_split": "train[1:3]"}
        read = prepare(tmp_path / "out", "tfds", pets, **given)
        assert read.keys == ["pets/1.0.0/train[1:3]:0", "pets/1.0.0/train[1:3]:1"]
        assert all(record.text.startswith("Pet ") for record in read.records)

    @pytest.mark.parametrize(
        ("name", "more", "words"),
        [
            ("no_such_data_set", {}, "is not a TFDS dataset"),
            ("mnist", {"data_dir": "/nowhere"}, "mnist/.* is not in .*/nowhere.*download_and_prepare"),
            (
                "",
                {"input_split": "dev"},
                r"pets/1\.0\.0 \(--input_split\) has no split \'dev\': its splits are train \(5 records\)",
            ),
            (
                "",
                {"input_split": "train[:9]"},
                r"pets/1\.0\.0 \(--input_split\) has no split 'train\[:9\]'.*train \(5 records\)",
            ),
            (
                "",
                {"input_split": "train[5:]"},
                r"'train\[5:\]' of TFDS dataset pets/1\.0\.0 \(--input_split\) has no records",
            ),
            ("", {"text_field": "words"}, "no feature words, only .*--text_field"),
        ],
    )
    def test_missing_data_raises(self, tmp_path, pets, name, more, words):
        with pytest.raises(JanusError, match=words):
            prepare(tmp_path / "out", "tfds", name or pets, **more)


def test_text(tmp_path):
    values = [{"text": " Once upon a time.\n"}, {"content": "Ende."}]
    file = json_lines(tmp_path / "t.jsonl", values)
    file.write_text(file.read_text() + "\n  \n" + '{"text": "after blank lines, without a line break"}')
    read = prepare(tmp_path / "out", "text", file, shard_records=2)
    assert [record.text for record in read.records] == [
        "Once upon a time.",
        "Ende.",
        "after blank lines, without a line break",
    ]
    assert read.keys == ["t.jsonl:1", "t.jsonl:2", "t.jsonl:5"]
    assert {record.task for record in read.records} == {Task.TEXT}


def test_files_with_one_name_in_several_folders_have_different_keys(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        json_lines(tmp_path / name / "t.jsonl", [{"text": name}])
    assert prepare(tmp_path / "out", "text", tmp_path / "*" / "t.jsonl").keys == ["a/t.jsonl:1", "b/t.jsonl:1"]


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_missing_input_raises(tmp_path, kind):
    with pytest.raises(JanusError, match="--input"):
        prepare(tmp_path / "out", kind, tmp_path / "absent")


@pytest.mark.parametrize("kind", ["captions", "conversations", "text"])
def test_a_git_lfs_pointer_raises(tmp_path, kind):
    file = tmp_path / "a.jsonl"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(JanusError, match="git lfs pull"):
        prepare(tmp_path / "out", kind, file)


@pytest.mark.parametrize("kind", ["poem", "no.such.module:poems", "tests.data.own_source:prose"])
def test_an_unknown_source_raises(kind):
    with pytest.raises(JanusError, match="--source"):
        get_source(kind)


def test_an_unsupported_task_raises(tmp_path):
    with pytest.raises(JanusError, match="--task generation is not supported by --source text; use text"):
        prepare(tmp_path / "out", "text", "t.jsonl", task=GENERATION)
