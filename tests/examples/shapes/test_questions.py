import re
from collections import Counter

import pytest

from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    FULL_VOCABULARY,
    Relation,
    Split,
    Topic,
    Vocabulary,
    chance_of_answers,
    detect,
    render,
    sample_questions,
    score_answers,
)
from examples.shapes.dataset.captions import plural
from examples.shapes.dataset.questions import Negatives
from examples.shapes.dataset.scoring import relations
from examples.shapes.dataset.vocabulary import NUMBERS
from janus_jax.errors import JanusError

PER_TOPIC = 60
SHAPE = "(?P<shape>[a-z]+)"
OTHER = "(?P<other>[a-z]+)"


def of(topic, split=Split.TEST, **settings):
    return [question for question in sample_questions(split, PER_TOPIC, **settings) if question.topic is topic]


def seen(question):
    """Returns the answer that follows from the objects found by the detector."""
    found = detect(render(question.scene, 64))

    def named(shape):
        (obj,) = [obj for obj in found if obj.shape == shape]
        return obj

    def matching(pattern):
        return re.fullmatch(pattern, question.text)

    if match := matching(rf"What color is the {SHAPE}\?"):
        return named(match["shape"]).color
    if match := matching(r"What shape is the (\w+) object\?"):
        (obj,) = [obj for obj in found if obj.color == match[1]]
        return obj.shape
    if match := matching(r"How many (\w+ )?objects are there\?"):
        return NUMBERS[sum(match[1] in (None, f"{obj.color} ") for obj in found)]
    if match := matching(r"How many (\w+) are there\?"):
        return NUMBERS[sum(plural(obj.shape) == match[1] for obj in found)]
    if match := matching(r"Is there an? (\w+ )?(\w+)\?"):
        is_present = any(match[1] in (None, f"{obj.color} ") and obj.shape == match[2] for obj in found)
        return "yes" if is_present else "no"
    if match := matching(rf"In which (row|column) is the {SHAPE}\?"):
        axis, names = (0, ("left", "middle", "right")) if match[1] == "column" else (1, ("top", "middle", "bottom"))
        return names[int(3 * named(match["shape"]).center[axis])]
    if match := matching(rf"Where is the {SHAPE}, seen from the {OTHER}\?"):
        return question.answer if question.answer in relations(named(match["shape"]), named(match["other"])) else "?"
    if match := matching(rf"Is the {SHAPE} (\w+) or (\w+)(?: of)? the {OTHER}\?"):
        (side,) = {match[2], match[3]} & relations(named(match["shape"]), named(match["other"]))
        return str(side)
    match = matching(rf"What shape is (?P<side>\w+)(?: of)? the {OTHER}\?")
    (obj,) = [obj for obj in found if match["side"] in relations(obj, named(match["other"]))]
    return obj.shape


@pytest.mark.parametrize(("split", "vocabulary"), [(Split.TRAIN, FULL_VOCABULARY), (Split.TEST, DEFAULT_VOCABULARY)])
def test_the_image_gives_the_answer(split, vocabulary):
    for question in sample_questions(split, PER_TOPIC, vocabulary=vocabulary):
        assert seen(question) == question.answer, question.text
        assert question.answer in question.choices


def test_questions_depend_on_the_seed_only():
    assert sample_questions(Split.TEST, 5) == sample_questions(Split.TEST, 5)
    assert sample_questions(Split.TEST, 5) != sample_questions(Split.TEST, 5, seed=1)
    assert sample_questions(Split.TEST, 5)[:5] == sample_questions(Split.TEST, 8)[:5]


def test_existence_is_balanced_as_in_pope():
    asked = of(Topic.EXISTENCE)
    balance = Counter((question.negatives, question.answer) for question in asked)
    assert set(balance.values()) == {PER_TOPIC // (2 * len(Negatives))}


def test_popular_negatives_are_frequent_and_adversarial_ones_similar():
    vocabulary = Vocabulary()
    absent = [question for question in of(Topic.EXISTENCE, Split.TRAIN) if question.answer == "no"]
    colored = [question for question in absent if len(question.named) == 2]
    popular = {*vocabulary.shapes[:2], *vocabulary.colors[:3]}
    shares = {
        setting: sum(len(question.named & popular) for question in colored if question.negatives is setting)
        / sum(question.negatives is setting for question in colored)
        for setting in Negatives
    }
    assert shares[Negatives.POPULAR] > shares[Negatives.RANDOM]
    for question in colored:
        if question.negatives is Negatives.ADVERSARIAL:
            assert question.named & (question.scene.shapes | question.scene.colors)


def test_positions_have_four_kinds_of_questions():
    first_words = Counter(question.text.split()[0] for question in of(Topic.POSITION))
    assert set(first_words) == {"In", "Where", "Is", "What"}
    assert min(first_words.values()) >= PER_TOPIC // 8
    assert set(Relation) <= {question.answer for question in of(Topic.POSITION)}


def test_counts_cover_every_number():
    assert {question.answer for question in of(Topic.COUNT, Split.TRAIN)} == set(NUMBERS.values())


def test_questions_can_be_about_new_words():
    about = frozenset({"heart", "pink"})
    vocabulary = DEFAULT_VOCABULARY.with_extras(*about)
    for split in Split:
        asked = sample_questions(split, 12, vocabulary=vocabulary, about=about)
        assert all(question.named & about for question in asked)
        exist = Counter(question.answer for question in asked if question.topic is Topic.EXISTENCE)
        assert exist["yes"] == exist["no"] == 6


def test_impossible_questions_are_refused():
    vocabulary = Vocabulary(("circle", "square", "triangle", "moon"))
    with pytest.raises(JanusError, match="No test scene for position exists with circle, square, triangle, moon"):
        sample_questions(Split.TEST, 40, vocabulary=vocabulary)


def test_correct_answers_score_one_regardless_of_case_and_period():
    asked = sample_questions(Split.TEST, 4)
    scores = score_answers(asked, [f" {question.answer.capitalize()}. " for question in asked])
    assert scores.overall == 1
    assert set(scores.by_category) == set(Topic)
    wrong = score_answers(asked, ["nothing"] * len(asked))
    assert wrong.overall == 0
    with pytest.raises(JanusError, match="3 answers for 20 questions"):
        score_answers(asked, ["yes"] * 3)


def test_chance_is_the_expected_score_of_random_guesses():
    by_topic = chance_of_answers(sample_questions(Split.TEST, PER_TOPIC)).by_category
    assert by_topic["existence"] == pytest.approx(1 / 2)
    assert by_topic["colour"] == pytest.approx(1 / 6)
    assert by_topic["shape"] == pytest.approx(1 / 5)
