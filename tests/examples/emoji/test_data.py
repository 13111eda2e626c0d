"""Pictures, split, questions and tables of the emoji example."""

import json

import numpy as np
import pytest

from examples.emoji.dataset import Split, read_package
from examples.emoji.questions import Questions
from janus_jax.data.sources import SourceOptions, get_source
from janus_jax.errors import JanusError
from janus_jax.processing import Processor, Task
from tests.examples.emoji.conftest import NAMES


@pytest.fixture(scope="module")
def emoji(package, tmp_path_factory):
    return read_package(package, tmp_path_factory.mktemp("pictures"))


def rows(workdir, name):
    return [json.loads(line) for line in (workdir / "data" / name).read_text().splitlines()]


def records(workdir, source, table, task):
    data = workdir / "data"
    options = SourceOptions((str(data / table),), task, images=str(data / "pictures"))
    return [entry.make() for part in get_source(source).parts(options) for entry in part.entries()]


def test_the_split_holds_out_one_variant_and_whole_emoji(emoji):
    held_out = {split: [one.name for one in emoji if one.split is split] for split in Split}
    assert held_out[Split.VARIANT] == ["left-facing fist, light skin tone"]
    assert held_out[Split.EMOJI] == ["bug", "norway flag"]
    assert len(emoji) == len({one.name for one in emoji}) == len(NAMES) + 5


@pytest.mark.parametrize("kind", ["choice of 2", "choice of 4"])
def test_choices_are_distinct_and_contain_the_answer(emoji, kind):
    questions = Questions(emoji)
    for number, one in enumerate(emoji):
        question = questions.ask(one, kind, np.random.default_rng(number))
        choices = question.text.removeprefix("Which is it: ").removesuffix("?").split("; ")
        assert question.answer == one.name
        assert question.answer in choices
        assert len(set(choices)) == len(choices) == round(1 / question.chance)


def test_yes_and_no_are_right(emoji):
    questions = Questions(emoji)
    asked = [questions.ask(emoji[0], "yes or no", np.random.default_rng(seed)) for seed in range(40)]
    assert {question.answer for question in asked} == {"yes", "no"}
    for question in asked:
        assert (question.text == f"Is it {emoji[0].name}?") == (question.answer == "yes")


def test_tests_are_about_held_out_pictures_and_training_is_not(workdir, emoji):
    file_of = {split: {one.file for one in emoji if one.split is split} for split in Split}
    test, questions = rows(workdir, "test.jsonl"), rows(workdir, "questions.jsonl")
    assert {row["image"] for row in test} == file_of[Split.VARIANT] | file_of[Split.EMOJI]
    assert {row["image"] for row in questions} == {row["image"] for row in rows(workdir, "train.jsonl")}
    assert {row["image"] for row in questions} == file_of[Split.TRAIN]
    assert {row["kind"] for row in test if row["image"] in file_of[Split.EMOJI]} == {"category"}


def test_janus_prepare_reads_the_tables(workdir):
    (first, *_) = found = records(workdir, "captions", "train.jsonl", Task.GENERATION)
    assert len(found) == 9
    assert first.text == "left-facing fist"
    assert first.alternatives == ("left facing fist",)
    conversations = records(workdir, "conversations", "questions.jsonl", Task.UNDERSTANDING)
    assert {len(record.messages) for record in conversations} == {6}
    chat = records(workdir, "conversations", "chat.jsonl", Task.TEXT)
    assert {record.messages[1]["content"] for record in chat} >= {"animals & nature", "food & drink"}


def test_the_text_tokenizer_encodes_the_names(workdir):
    from examples.emoji.configs.janus import MODEL

    processor = Processor.from_directory(workdir / "data" / "text", MODEL)
    assert processor.tokenizer.decode(processor.tokenizer.encode("penguin", add_bos=False)) == "penguin"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.tgz").write_bytes(b"no archive")
    with pytest.raises(JanusError, match=r"other\.tgz is not a readable package of emoji .* fetch it with npm pack"):
        read_package(tmp_path / "other.tgz", tmp_path / "pictures")
