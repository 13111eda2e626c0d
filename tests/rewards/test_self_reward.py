"""The probability that a model assigns to an answer is that of its logits, for any batch and tokenizer."""

import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.generation import verification
from janus_jax.generation.verification import ImageQuestion, choice_probabilities
from janus_jax.models.backbone import apply
from janus_jax.rewards import make_reward
from tests import tiny

CHOICES = ("yes", "no")
TEXTS = ("Is there a boat?", "Does the picture show two birds and a tree, drawn in ink?", "Is it red?")


@pytest.fixture(scope="module")
def janus():
    return tiny.pretrained()


def probabilities(janus, questions, **options):
    return choice_probabilities(janus.model, janus.params, janus.processor, questions, **options)


def expected(janus, text, image, variants):
    """Returns the probabilities of choices, sums over the variants of each answer, from an unpadded sequence."""
    messages = [{"role": "user", "content": f"<image_placeholder>\n{text}"}]
    prompt = janus.processor.understanding_sequence(messages, [image])

    def first(answer):
        full = janus.processor.understanding_tokens([*messages, {"role": "assistant", "content": answer}], 1)
        return full.tokens[len(prompt) :]

    tokens = [[first(answer) for answer in answers] for answers in variants]
    prefix = 0
    while len({one[prefix] for one in (answers[0] for answers in tokens)}) == 1:
        prefix += 1
    grown = janus.processor.understanding_tokens([*messages, {"role": "assistant", "content": "yes"}], 1)
    batch = janus.processor.left_pad([prompt])
    if prefix:
        ids = np.concatenate([batch.tokens, grown.tokens[None, len(prompt) : len(prompt) + prefix]], axis=1)
        none = np.full((1, prefix), -1, np.int32)
        batch = batch._replace(
            tokens=ids,
            segment_ids=np.ones_like(ids),
            positions=np.arange(ids.shape[1], dtype=np.int32)[None],
            und_patch_index=np.concatenate([batch.und_patch_index, none], axis=1),
            gen_token_index=np.concatenate([batch.gen_token_index, none], axis=1),
        )

    @jax.jit
    def logits(params, batch):
        hidden = apply(janus.model.__call__, params, batch)[0, -1]
        return apply(janus.model.text_logits, params, hidden)

    found = np.exp(np.asarray(logits(janus.params, batch), np.float64))
    sums = [sum(found[token] for token in {int(one[prefix]) for one in answers}) for answers in tokens]
    return np.array(sums) / sum(sums)


@pytest.mark.slow
def test_probabilities_are_those_of_the_next_token(janus):
    image = tiny.picture(0)
    (found,) = probabilities(janus, [ImageQuestion(image, TEXTS[0], CHOICES)])
    np.testing.assert_allclose(found, expected(janus, TEXTS[0], image, [("yes", "Yes"), ("no", "No")]), rtol=1e-4)


@pytest.mark.slow
def test_probabilities_do_not_depend_on_the_batch(janus):
    questions = [ImageQuestion(tiny.picture(index), text, CHOICES) for index, text in enumerate(TEXTS)]
    questions.append(ImageQuestion(tiny.picture(5), "Which one?", ("bird", "lake", "tree")))
    together = probabilities(janus, questions, batch_size=3)
    assert [len(found) for found in together] == [2, 2, 2, 3]
    for question, found in zip(questions, together, strict=True):
        assert abs(found.sum() - 1) < 1e-5
        np.testing.assert_allclose(found, probabilities(janus, [question])[0], rtol=1e-4)


def test_one_program_is_compiled_for_a_call(janus):
    questions = [ImageQuestion(tiny.picture(index % 3), TEXTS[index % 3], CHOICES) for index in range(5)]
    before = verification._probabilities._cache_size()
    probabilities(janus, questions, batch_size=2)
    assert verification._probabilities._cache_size() - before == 1


def test_the_reward_is_the_probability_of_yes(janus):
    images = np.stack([np.asarray(tiny.picture(index)) for index in range(2)])
    reward = make_reward("self", {"question": "Is there {prompt}?"}, model=lambda: janus)
    found = reward(["a boat", "a {bird}"], images, [{}, {}])
    for value, index, text in zip(found, range(2), ("Is there a boat?", "Is there a {bird}?"), strict=True):
        (expected,) = probabilities(janus, [ImageQuestion(tiny.picture(index), text, CHOICES)])
        np.testing.assert_allclose(value, expected[0], rtol=1e-4)


def test_questions_of_the_metadata_are_multiplied(janus):
    image = tiny.picture(0)
    one = {"question": "Is it red?", "answer": "no", "choices": ["yes", "no"]}
    two = {"question": "How many?", "answer": "two", "choices": ["one", "two"]}
    reward = make_reward("self", model=lambda: janus)
    (found,) = reward(["a boat"], np.asarray(image)[None], [{"questions": [one, two]}])
    first, second = probabilities(
        janus, [ImageQuestion(image, "Is it red?", CHOICES), ImageQuestion(image, "How many?", ("one", "two"))]
    )
    np.testing.assert_allclose(found, first[1] * second[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"questions": [{"question": "Is it red?", "answer": "yes"}]}, "The questions of the prompt 'a boat' are malf"),
        (
            {"questions": [{"question": "Red?", "answer": "maybe", "choices": CHOICES}]},
            "'maybe' of the question 'Red.' is not one of its choices",
        ),
    ],
)
def test_malformed_questions_are_refused(janus, metadata, message):
    with pytest.raises(JanusError, match=message):
        make_reward("self", model=lambda: janus)(["a boat"], np.asarray(tiny.picture(0))[None], [metadata])


def test_a_question_without_the_prompt_is_refused(janus):
    with pytest.raises(JanusError, match=r"'Is it good.' has no \{prompt\}"):
        make_reward("self", {"question": "Is it good?"}, model=lambda: janus)


def test_answers_with_equal_tokens_are_refused(janus):
    with pytest.raises(JanusError, match="'yes' and 'yes' begin with the same token"):
        probabilities(janus, [ImageQuestion(tiny.picture(0), "?", ("yes", "no", "yes"))])


def test_logits_that_are_not_numbers_are_reported(janus):
    head = janus.params["llm"]["head"] | {"weight": janus.params["llm"]["head"]["weight"] * np.nan}
    broken = dataclasses.replace(janus, params=janus.params | {"llm": janus.params["llm"] | {"head": head}})
    with pytest.raises(JanusError, match="logits are NaN"):
        probabilities(broken, [ImageQuestion(tiny.picture(0), TEXTS[0], CHOICES)])
