"""A record: one sample as it lies on disk, before a model's tokenizer and image sizes make a row of it.

Prepared data sets are TFDS data sets of records in ArrayRecord files, so that TFDS, grain and anyone's own reader open
them; images stay in the encoding in which they came.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from janus_jax.errors import JanusError
from janus_jax.processing import Message, Task

NO_IDS: Int[np.ndarray, "0"] = np.zeros(0, np.int32)
NO_LATENTS: Float[np.ndarray, "0"] = np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Record:
    """One sample.

    Attributes:
      key: names the record among those of its source, for good: what is random about a record (its crop, whether
        its caption is cut) follows from it.
      task: what the record teaches.
      text: a document (text), or the caption (generation); "" where there are messages.
      messages: a conversation, with an `<image_placeholder>` for each image and the images themselves left out.
      images: encoded image files, in the order of their placeholders; one for generation.
      image_tokens: ids of the image to generate, where they were computed beforehand.
      image_latents: of JanusFlow's VAE in place of ids: the scaled mean of each place, row by row.
    """

    key: str
    task: Task
    text: str = ""
    messages: tuple[Message, ...] = ()
    images: tuple[bytes, ...] = ()
    image_tokens: Int[np.ndarray, " N"] = field(default_factory=lambda: NO_IDS)
    image_latents: Float[np.ndarray, " h*w*C"] = field(default_factory=lambda: NO_LATENTS)

    def to_example(self) -> dict[str, Any]:
        """The record as `features` describes it."""
        return {
            "key": self.key,
            "task": self.task.value,
            "text": self.text,
            "messages": json.dumps(self.messages, ensure_ascii=False),
            "images": np.array(self.images, object),
            "image_tokens": self.image_tokens,
            "image_latents": self.image_latents,
        }

    @classmethod
    def from_example(cls, example: Mapping[str, Any]) -> "Record":
        """A record from what TFDS reads.

        Raises:
          JanusError: the data set holds something else.
        """
        try:
            return cls(
                key=_text(example["key"]),
                task=Task(_text(example["task"])),
                text=_text(example["text"]),
                messages=tuple(json.loads(example["messages"])),
                images=tuple(example["images"]),
                image_tokens=np.asarray(example["image_tokens"], np.int32),
                image_latents=np.asarray(example["image_latents"], np.float32),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise JanusError(f"An example holds no record ({error}); make the data set with janus-prepare.") from error


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


@functools.cache
def features() -> Any:
    """The TFDS features of a record."""
    from tensorflow_datasets import features as tfds  # Here: it takes seconds, and records are made without it.

    return tfds.FeaturesDict(
        {
            "key": tfds.Text(),
            "task": tfds.Text(),
            "text": tfds.Text(),
            "messages": tfds.Text(),
            "images": tfds.Tensor(shape=(None,), dtype=np.object_),
            "image_tokens": tfds.Tensor(shape=(None,), dtype=np.int32),
            "image_latents": tfds.Tensor(shape=(None,), dtype=np.float32),
        }
    )
