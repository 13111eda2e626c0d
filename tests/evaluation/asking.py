"""What the tests of evaluation share: pictures on disk, and a model that answers what a test wants."""

from types import SimpleNamespace

import numpy as np
from PIL import Image


def put_picture(path, seed=0):
    """A small picture in a format that its name tells, or in PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((32, 24))
    picture.save(path, None if path.suffix else "PNG")
    return path


def text_of(question):
    """What a question says, its pictures in their places."""
    (message,) = question.messages
    return message["content"]


def pictures_of(question):
    """The names of its pictures, or their bytes."""
    (message,) = question.messages
    assert message["content"].count("<image_placeholder>") == len(message["images"])
    return [getattr(image, "name", image) for image in message["images"]]


def answered(questions, *answers):
    """Answers to questions in their order."""
    return {question.id: answer for question, answer in zip(questions, answers, strict=True)}


class FakeModel:
    """Answers by a function of the question's text, and keeps what it was asked, batch by batch.

    It stops for good at the batch of that number.
    """

    def __init__(self, answer=lambda text: text.upper(), stop_at=None):
        self.asked = []
        self.processor = SimpleNamespace(
            num_und_tokens=4,
            tokenizer=SimpleNamespace(encode=lambda text: list(text)),
            understanding_sequence=lambda messages, images, system_prompt: messages[-1]["content"],
        )
        self._answer = answer
        self._stop_at = stop_at

    def answer(self, rows, max_new_tokens, temperature):
        assert temperature == 0
        if len(self.asked) == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append(list(rows))
        return [self._answer(row) for row in rows]
