"""Questions with which a model checks its image of a prompt, for best of N and as a reward (`SelfReward`)."""

from typing import Any

from examples.shapes.dataset.captions import plural
from examples.shapes.dataset.prompts import Prompt
from examples.shapes.dataset.questions import axis_of, count_text, existence_text, relation_text
from examples.shapes.dataset.vocabulary import NUMBERS
from janus_jax.rewards.self_reward import QUESTIONS


def verification_metadata(prompt: Prompt) -> dict[str, Any]:
    """Returns the metadata of a prompt: questions about its requirements, in the words of the training questions.

    The questions ask for each shape (with its color), for counts above one, for the relation, and for the number of all
    objects.
    """
    questions = []

    def ask(question: str, answer: str, choices: tuple[str, ...]) -> None:
        questions.append({"question": question, "answer": answer, "choices": choices})

    numbers = tuple(NUMBERS.values())
    for required in prompt.requirements:
        ask(existence_text(required.shape, required.color), "yes", ("yes", "no"))
        if required.count > 1:
            ask(count_text(plural(required.shape)), NUMBERS[required.count], numbers)
        if required.relation:
            axis = axis_of(required.relation)
            text = relation_text(required.shape, axis, prompt.requirements[0].shape)
            ask(text, required.relation.value, (axis[0].value, axis[1].value))
    total = sum(required.count for required in prompt.requirements)
    ask(count_text("objects"), NUMBERS[total], numbers)
    return {QUESTIONS: questions}
