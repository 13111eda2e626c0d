import re
from collections import Counter

import pytest

from examples.shapes.dataset import (
    DEFAULT,
    EVERYTHING,
    Negatives,
    Relation,
    Split,
    Topic,
    Vocabulary,
    chance_of_answers,
    detect,
    draw,
    questions,
    score_answers,
)
from examples.shapes.dataset.captions import counted, listed, plural
from examples.shapes.dataset.scoring import sides
from examples.shapes.dataset.vocabulary import NUMBERS
from janus_jax.errors import JanusError

PER_TOPIC = 60
SHAPE = "(?P<shape>[a-z]+)"
OTHER = "(?P<other>[a-z]+)"


def of(topic, split=Split.TEST, **settings):
    return [question for question in questions(split, PER_TOPIC, **settings) if question.topic is topic]


def seen(question):
    """The answer that the picture gives, as the detector sees it."""
    found = detect(draw(question.scene, 64))

    def named(shape):
        (thing,) = [thing for thing in found if thing.shape == shape]
        return thing

    def matching(pattern):
        return re.fullmatch(pattern, question.text)

    if match := matching(rf"What color is the {SHAPE}\?"):
        return named(match["shape"]).colour
    if match := matching(r"What shape is the (\w+) object\?"):
        (thing,) = [thing for thing in found if thing.colour == match[1]]
        return thing.shape
    if match := matching(r"How many (\w+ )?objects are there\?"):
        return NUMBERS[sum(match[1] in (None, f"{thing.colour} ") for thing in found)]
    if match := matching(r"How many (\w+) are there\?"):
        return NUMBERS[sum(plural(thing.shape) == match[1] for thing in found)]
    if match := matching(r"Is there an? (\w+ )?(\w+)\?"):
        there = any(match[1] in (None, f"{thing.colour} ") and thing.shape == match[2] for thing in found)
        return "yes" if there else "no"
    if match := matching(rf"In which (row|column) is the {SHAPE}\?"):
        axis, names = (0, ("left", "middle", "right")) if match[1] == "column" else (1, ("top", "middle", "bottom"))
        return names[int(3 * named(match["shape"]).middle[axis])]
    if match := matching(rf"Where is the {SHAPE}, seen from the {OTHER}\?"):
        return question.answer if question.answer in sides(named(match["shape"]), named(match["other"])) else "?"
    if match := matching(rf"Is the {SHAPE} (\w+) or (\w+)(?: of)? the {OTHER}\?"):
        (side,) = {match[2], match[3]} & sides(named(match["shape"]), named(match["other"]))
        return str(side)
    match = matching(rf"What shape is (?P<side>\w+)(?: of)? the {OTHER}\?")
    (thing,) = [thing for thing in found if match["side"] in sides(thing, named(match["other"]))]
    return thing.shape


@pytest.mark.parametrize(("split", "vocabulary"), [(Split.TRAIN, EVERYTHING), (Split.TEST, DEFAULT)])
def test_the_picture_gives_the_answer(split, vocabulary):
    for question in questions(split, PER_TOPIC, vocabulary=vocabulary):
        assert seen(question) == question.answer, question.text


def test_answers_are_one_word_among_the_choices():
    for question in questions(Split.TEST, PER_TOPIC):
        assert question.answer in question.choices
        assert question.answer.isalpha()


def test_questions_follow_from_their_seed():
    assert questions(Split.TEST, 5) == questions(Split.TEST, 5)
    assert questions(Split.TEST, 5) != questions(Split.TEST, 5, seed=1)
    assert questions(Split.TEST, 5)[:5] == questions(Split.TEST, 8)[:5]


def test_existence_is_asked_as_pope_asks_it():
    asked = of(Topic.EXISTENCE)
    balance = Counter((question.negatives, question.answer) for question in asked)
    assert set(balance.values()) == {PER_TOPIC // (2 * len(Negatives))}


def test_popular_absent_things_are_popular_and_adversarial_ones_near():
    vocabulary = Vocabulary()
    absent = [question for question in of(Topic.EXISTENCE, Split.TRAIN) if question.answer == "no"]
    coloured = [question for question in absent if len(question.named) == 2]
    popular = {*vocabulary.shapes[:2], *vocabulary.colours[:3]}
    shares = {
        setting: sum(len(question.named & popular) for question in coloured if question.negatives is setting)
        / sum(question.negatives is setting for question in coloured)
        for setting in Negatives
    }
    assert shares[Negatives.POPULAR] > shares[Negatives.RANDOM]
    for question in coloured:
        if question.negatives is Negatives.ADVERSARIAL:
            assert question.named & (question.scene.shapes | question.scene.colours)


def test_positions_are_asked_in_four_ways():
    ways = Counter(question.text.split()[0] for question in of(Topic.POSITION))
    assert set(ways) == {"In", "Where", "Is", "What"}
    assert min(ways.values()) >= PER_TOPIC // 8
    assert set(Relation) <= {question.answer for question in of(Topic.POSITION)}


def test_counts_are_asked_for_every_number():
    assert {question.answer for question in of(Topic.COUNT, Split.TRAIN)} == set(NUMBERS.values())


def test_new_words_can_be_asked_for():
    about = frozenset({"heart", "pink"})
    vocabulary = DEFAULT.with_extras(*about)
    for split in Split:
        asked = questions(split, 12, vocabulary=vocabulary, about=about)
        assert all(question.named & about for question in asked)
        exist = Counter(question.answer for question in asked if question.topic is Topic.EXISTENCE)
        assert exist["yes"] == exist["no"] == 6


def test_what_cannot_be_asked_is_refused():
    never_apart = Vocabulary(("circle", "square", "triangle", "moon"))
    with pytest.raises(JanusError, match="No test scene for position can be made of circle, square, triangle, moon"):
        questions(Split.TEST, 40, vocabulary=never_apart)


def test_right_answers_score_one_and_case_and_full_stops_do_not_matter():
    asked = questions(Split.TEST, 4)
    scores = score_answers(asked, [f" {question.answer.capitalize()}. " for question in asked])
    assert scores.overall == 1
    assert set(scores.by_category) == set(Topic)
    wrong = score_answers(asked, ["none of it"] * len(asked))
    assert wrong.overall == 0
    with pytest.raises(JanusError, match="3 answers for 20 questions"):
        score_answers(asked, ["yes"] * 3)


def test_chance_is_what_blind_guesses_score():
    by_topic = chance_of_answers(questions(Split.TEST, PER_TOPIC)).by_category
    assert by_topic["existence"] == pytest.approx(1 / 2)
    assert by_topic["colour"] == pytest.approx(1 / 6)
    assert by_topic["shape"] == pytest.approx(1 / 5)


def test_words_are_put_as_english_has_them():
    assert counted(1, "orange cross") == "an orange cross"
    assert counted(2, "red cross") == "two red crosses"
    assert counted(3, "star") == "three stars"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a"]) == "a"
