import numpy as np
import pytest

from examples.shapes.dataset import Category, Split, sample_prompts
from examples.shapes.dataset.questions import Topic, make_question
from examples.shapes.verification import verification_metadata

PROMPTS = sample_prompts(Split.TEST, 5)


@pytest.mark.parametrize("prompt", PROMPTS[::3], ids=lambda prompt: prompt.text)
def test_the_questions_of_a_prompt_have_the_answers_of_its_scene(prompt):
    rng = np.random.default_rng(0)
    drawn = [make_question(prompt.scene, topic, rng, split=Split.TEST) for _ in range(200) for topic in Topic]
    answers = {question.text: (question.answer, question.choices) for question in drawn if question}
    for question in verification_metadata(prompt)["questions"]:
        answer, choices = answers[question["question"]]
        assert question["answer"] == answer
        assert set(question["choices"]) == set(choices)


def test_the_questions_ask_for_every_requirement():
    texts = {one.category: [asked["question"] for asked in verification_metadata(one)["questions"]] for one in PROMPTS}
    numbers = {category: len(questions) for category, questions in texts.items()}
    assert numbers == {
        Category.SINGLE_OBJECT: 2,
        Category.TWO_OBJECT: 3,
        Category.COUNTING: 3,
        Category.COLORS: 2,
        Category.POSITION: 4,
        Category.COLOR_ATTR: 3,
    }
    assert any(" or " in text for text in texts[Category.POSITION])
