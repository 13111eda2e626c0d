"""Helpers of the evaluation tests: image files, accessors of questions, and a fake chat model."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

OWN_BENCHMARK = """
import dataclasses
from janus_jax.evaluation.registry import find_benchmark, register_benchmark
register_benchmark(dataclasses.replace(find_benchmark("pope"), name="mine"))
"""


def write_image(path, seed=0):
    """Writes a small random image in the format of the file's suffix, or PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((32, 24)).save(path, None if path.suffix else "PNG")
    return path


def prompt_text(question):
    """Returns the text of a question's only message."""
    (message,) = question.messages
    return message["content"]


def image_names(question):
    """Returns the file names of a question's images, or their bytes."""
    (message,) = question.messages
    assert message["content"].count("<image_placeholder>") == len(message["images"])
    return [getattr(image, "name", image) for image in message["images"]]


def answer_in_order(questions, *answers):
    """Returns the answers by question id; the answers are in the order of the questions."""
    return {question.id: answer for question, answer in zip(questions, answers, strict=True)}


class FakeModel:
    """Chat model that answers with a function of the prompt's text and records the batches.

    Args:
      answer: Function from the prompt's text to the answer.
      stop_at: Index of the batch at which the model raises KeyboardInterrupt; None for no interruption.
    """

    def __init__(self, answer=lambda text: text.upper(), stop_at=None):
        self.batches = []
        self.processor = SimpleNamespace(
            num_und_tokens=4,
            tokenizer=SimpleNamespace(encode=lambda text: list(text)),
            understanding_sequence=lambda messages, images, system_prompt, background: messages[-1]["content"],
        )
        self._answer = answer
        self._stop_at = stop_at

    def answer(self, prompts, max_new_tokens, temperature):
        assert temperature == 0
        if len(self.batches) == self._stop_at:
            raise KeyboardInterrupt
        self.batches.append(list(prompts))
        return [self._answer(prompt) for prompt in prompts]
