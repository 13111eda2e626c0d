"""Records of the dataset: held-out combinations do not occur in training."""

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    FULL_VOCABULARY,
    Category,
    Focus,
    ShapesDataset,
    Split,
    detect,
    sample_scene,
)
from examples.shapes.dataset.captions import inventory, plural
from examples.shapes.dataset.scene import held_out
from examples.shapes.dataset.vocabulary import (
    ALL_COLORS,
    ALL_SHAPES,
    HELD_OUT_COUNTS,
    HELD_OUT_SHAPE_PAIRS,
    HELD_OUT_SINGLES,
    NUMBERS,
    is_held_out_pair,
)
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER

COUNT = 250
WORDS = {word: shape for shape in ALL_SHAPES for word in (shape, plural(shape))}


def text_of(record):
    return " ".join(f"{text}." for text in (record.text, *(turn["content"] for turn in record.messages))).lower()


def seen(record):
    """Returns the objects that the detector finds in the record's image."""
    (file,) = record.images
    image = np.asarray(Image.open(io.BytesIO(file)))
    return [(obj.shape, obj.color) for obj in detect(image)]


def named_shapes(text):
    return {WORDS[word] for word in re.findall("[a-z]+", text) if word in WORDS}


def named_colors(text):
    """Returns every `color shape` in a text."""
    pairs = re.findall(rf"\b({'|'.join(ALL_COLORS)}) ({'|'.join(WORDS)})\b", text)
    return {(WORDS[shape], color) for color, shape in pairs}


def named_numbers(text):
    """Returns every `number ... shapes` in a text, and every answer to `how many shapes are there?`."""
    numbers = {word: number for number, word in NUMBERS.items()}
    stated = re.findall(rf"\b({'|'.join(numbers)}) (?:\w+ ){{0,2}}?({'|'.join(WORDS)})\b", text)
    asked = re.findall(rf"how many ({'|'.join(WORDS)}) are there\?\W+({'|'.join(numbers)})\b", text)
    return {(WORDS[shape], numbers[number]) for number, shape in [*stated, *((n, s) for s, n in asked)]}


@pytest.mark.parametrize("vocabulary", [DEFAULT_VOCABULARY, FULL_VOCABULARY])
@pytest.mark.parametrize("task", [Task.UNDERSTANDING, Task.GENERATION])
def test_no_training_image_shows_only_a_held_out_combination(task, vocabulary):
    for record in ShapesDataset(vocabulary=vocabulary).records(task, COUNT):
        assert not held_out(seen(record))


@pytest.mark.parametrize("vocabulary", [DEFAULT_VOCABULARY, FULL_VOCABULARY])
def test_no_training_caption_names_only_a_held_out_combination(vocabulary):
    """Checks captions that name one or two objects, as prompts do."""
    for record in ShapesDataset(vocabulary=vocabulary).records(Task.GENERATION, COUNT):
        text = record.text.partition(".")[0]
        shapes = named_shapes(text)
        if len(named_colors(text)) + len(named_numbers(text)) <= 2 and len(re.findall(",", text)) == 0:
            if len(seen(record)) <= 2:
                assert len(seen(record)) > 1 or not named_colors(text) & HELD_OUT_SINGLES, text
                assert not any(is_held_out_pair(*pair) for pair in itertools.combinations(named_colors(text), 2)), text
                assert frozenset(shapes) not in HELD_OUT_SHAPE_PAIRS, text
            if len(shapes) == 1 and len(set(seen(record))) == 1:
                assert not named_numbers(text) & HELD_OUT_COUNTS, text


@pytest.mark.parametrize("task", [Task.UNDERSTANDING, Task.GENERATION])
def test_every_test_image_shows_a_held_out_combination(task):
    for record in ShapesDataset(Split.TEST).records(task, 60):
        assert held_out(seen(record))


def test_the_text_patterns_find_names_and_counts():
    text = "a photo of two small red stars. how many triangles are there? three is there a yellow star?"
    assert named_colors(text) == {("star", "red"), ("star", "yellow")}
    assert named_numbers(text) == {("star", 2), ("triangle", 3)}
    assert named_shapes(text) == {"star", "triangle"}


@pytest.mark.parametrize("task", [Task.TEXT, Task.UNDERSTANDING, Task.GENERATION])
def test_records_depend_on_seed_and_index_only(task):
    dataset = ShapesDataset(seed=3)
    records = list(dataset.records(task, 10))
    again = [dataset.record(task, index) for index in reversed(range(10))][::-1]
    assert [record.to_example()["key"] for record in records] == [record.key for record in again]
    assert [(text_of(record), record.images) for record in records] == [
        (text_of(record), record.images) for record in again
    ]
    assert len({record.key for record in records}) == 10
    assert text_of(ShapesDataset(seed=4).record(task, 0)) != text_of(dataset.record(task, 0))


def test_conversations_have_several_turns_and_one_image():
    turns = set()
    for record in ShapesDataset().records(Task.UNDERSTANDING, COUNT):
        roles = [message["role"] for message in record.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert text_of(record).count(IMAGE_PLACEHOLDER) == 1
        assert record.messages[0]["content"].startswith(IMAGE_PLACEHOLDER)
        turns.add(len(roles) // 2)
    assert turns >= {1, 2, 3, 4, 5, 6}


def test_yes_and_no_are_equally_frequent():
    contents = [
        message["content"] for record in ShapesDataset().records(Task.UNDERSTANDING, 500) for message in record.messages
    ]
    assert 0.4 < contents.count("yes") / (contents.count("yes") + contents.count("no")) < 0.6


def test_captions_vary_in_phrasing():
    captions = [record.text for record in ShapesDataset().records(Task.GENERATION, COUNT)]
    assert {caption.split(" of ")[0] for caption in captions} >= {"a photo", "a picture", "an image"}
    second = [". " in caption for caption in captions]
    assert 0.25 < np.mean(second) < 0.55


def test_captions_name_what_the_image_shows():
    for record in ShapesDataset(vocabulary=FULL_VOCABULARY).records(Task.GENERATION, COUNT):
        kinds = seen(record)
        assert named_colors(record.text) <= set(kinds)
        assert named_shapes(record.text) == {shape for shape, _ in kinds}


def test_records_can_be_about_new_words():
    about = frozenset({"heart", "pink"})
    dataset = ShapesDataset(vocabulary=DEFAULT_VOCABULARY.with_extras(*about), about=about)
    for task in (Task.TEXT, Task.UNDERSTANDING, Task.GENERATION):
        for record in dataset.records(task, 40):
            shown = {name for kind in seen(record) for name in kind} if record.images else set()
            assert about & (shown | named_shapes(text_of(record)) | set(re.findall("[a-z]+", text_of(record))))


def test_texts_are_those_of_the_records():
    dataset = ShapesDataset(seed=5)
    expected = []
    for index in range(3):
        expected.append(dataset.record(Task.TEXT, index).text)
        expected += [message["content"] for message in dataset.record(Task.UNDERSTANDING, index).messages]
        expected.append(dataset.record(Task.GENERATION, index).text)
    assert list(dataset.texts(3)) == expected


@pytest.mark.parametrize("task", [Task.GENERATION, Task.UNDERSTANDING])
def test_scenes_can_be_restricted_to_categories(task):
    dataset = ShapesDataset(categories=(Category.COLORS, Category.SINGLE_OBJECT))
    assert all(len(seen(record)) == 1 for record in dataset.records(task, 40))
    assert any(len(seen(record)) > 1 for record in ShapesDataset().records(task, 40))


def turns(focus, count):
    for record in ShapesDataset(focus=focus).records(Task.UNDERSTANDING, count):
        for question, answer in zip(record.messages[::2], record.messages[1::2], strict=True):
            yield question["content"], answer["content"]


def test_conversations_can_be_about_positions_only():
    questions = [question for question, _ in turns(Focus.POSITIONS, 40)]
    assert all(re.search(r"In which (row|column) is the \w+( object)?\?$", question) for question in questions)
    assert {"object" in question for question in questions} == {True, False}


def test_conversations_about_relations_include_held_out_pairs():
    asked = list(turns(Focus.RELATIONS, 400))
    assert all(re.search(r"(seen from|Is the \w+|What shape is) ", question) for question, _ in asked)
    shapes = {answer for question, answer in asked if re.search(r"What shape is .* the square\?", question)}
    assert shapes == {*DEFAULT_VOCABULARY.shapes} - {"square"}


def test_inventory_names_every_object_with_its_position():
    scene = sample_scene(np.random.default_rng(3))
    text = inventory(scene)
    for obj in scene.objects:
        assert f"{obj.size} {obj.color} {obj.shape} {obj.row} {obj.column}" in text
    assert text.count(",") == len(scene.objects) - 1
    assert text.endswith(scene.background.texture)


def test_invalid_datasets_are_refused():
    with pytest.raises(JanusError, match="image_size is 8"):
        ShapesDataset(image_size=8)
    with pytest.raises(JanusError, match="about names 'heart'"):
        ShapesDataset(about=frozenset({"heart"}))
