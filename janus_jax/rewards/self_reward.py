"""The reward `self`: the model's own answers to questions about its images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from janus_jax.errors import JanusError
from janus_jax.rewards.base import register_reward

QUESTIONS = "questions"
"""Key of the metadata with the questions about an image: objects with `question`, `answer` and `choices`."""


@register_reward("self")
@dataclass(frozen=True)
class SelfReward:
    """The probability that the model finds its image right.

    It is P(yes) / (P(yes) + P(no)) for one question. If the metadata of the prompt contains `QUESTIONS`, it is the
    product of the probabilities of their answers, each relative to the question's choices.

    Attributes:
      model: Returns the model (`janus_jax.Pretrained`).
      question: The question, with `{prompt}` where the prompt is inserted.
      yes, no: The answers.
      use_metadata: Whether questions in the metadata replace the question.
      batch_size: Number of questions per batch.

    Raises:
      JanusError: The question has no `{prompt}`.
    """

    model: Callable[[], Any]
    question: str = 'Does this picture show "{prompt}"? Answer yes or no.'
    yes: str = "yes"
    no: str = "no"
    use_metadata: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question:
            raise JanusError(f"The reward self: the question {self.question!r} has no {{prompt}}, the image's prompt.")
        if self.batch_size < 1:
            raise JanusError(f"The reward self: batch_size is {self.batch_size}; it must be positive.")

    def __call__(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " B"]:
        """See `Reward`."""
        # Imported here so that rewards without a model start quickly.
        from janus_jax.generation.verification import ImageQuestion, choice_probabilities

        questions: list[ImageQuestion] = []
        owners: list[int] = []
        expected: list[int] = []
        for index, (prompt, pixels, values) in enumerate(zip(prompts, images, metadata, strict=True)):
            image = Image.fromarray(pixels)
            for text, answer, choices in self._questions(prompt, values):
                questions.append(ImageQuestion(image, text, choices))
                owners.append(index)
                expected.append(choices.index(answer))
        model = self.model()
        found = choice_probabilities(
            model.model, model.params, model.processor, questions, mesh=model.mesh, batch_size=self.batch_size
        )
        rewards = np.ones(len(prompts), np.float32)
        for owner, probabilities, number in zip(owners, found, expected, strict=True):
            rewards[owner] *= probabilities[number]
        return rewards

    def _questions(self, prompt: str, metadata: Mapping[str, Any]) -> list[tuple[str, str, tuple[str, ...]]]:
        """Returns the questions about an image: text, expected answer and choices."""
        given = metadata.get(QUESTIONS, ()) if self.use_metadata else ()
        try:
            found = [(str(one["question"]), str(one["answer"]), tuple(map(str, one["choices"]))) for one in given]
        except (KeyError, TypeError) as error:
            raise JanusError(
                f"The questions of the prompt {prompt!r:.80} are malformed ({error!r}); give question, answer and "
                f"choices of each."
            ) from error
        for text, answer, choices in found:
            if answer not in choices:
                raise JanusError(f"The answer {answer!r} of the question {text!r:.80} is not one of its choices.")
        # Not `str.format`, because a prompt may contain braces.
        return found or [(self.question.replace("{prompt}", prompt), self.yes, (self.yes, self.no))]
