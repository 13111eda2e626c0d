"""Training records as stored on disk, independent of a model's tokenizer and image sizes.

Prepared datasets are TFDS datasets of records in ArrayRecord files, so TFDS, grain and other readers open them.
Images keep their original encoding.
"""

import dataclasses
import functools
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from janus_jax.errors import JanusError
from janus_jax.processing import Message, Task, assistant_images


@dataclass(frozen=True, eq=False)
class Record:
    """One training record.

    Attributes:
      key: Unique, permanent name of the record within its source. The random numbers of the record depend on it.
      task: Task that the record trains.
      text: Document (text), caption (generation) or instruction (editing); "" for conversations.
      messages: Turns of a conversation, with one `<image_placeholder>` per image.
      images: Encoded image files, in the order of their placeholders. A generation record has one, its target image.
        An editing record has its source images, then its target image. In an interleaved record, images in turns of the
        assistant are target images.
      alternatives: Further captions of the image, which `for_epoch` selects. In a conversation, further last answers.
      image_tokens: Precomputed tokens of the images `tokenized_images`, one image after the other, or empty.
      image_latents: Precomputed latents of the target image for JanusFlow, or empty. They are the scaled means of the
        VAE in row-major order.
      unused: Names of the input's fields that the record does not use, for the report. Not stored.
    """

    key: str
    task: Task
    text: str = ""
    messages: tuple[Message, ...] = ()
    images: tuple[bytes, ...] = ()
    alternatives: tuple[str, ...] = ()
    image_tokens: Int[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int32))
    image_latents: Float[np.ndarray, " h*w*C"] = field(default_factory=lambda: np.zeros(0, np.float32))

    unused: tuple[str, ...] = ()

    @property
    def tokenized_images(self) -> list[int]:
        """Indices of the images that are read as image tokens: target images, and the source images of an edit."""
        if self.task is Task.INTERLEAVED:
            return assistant_images(self.messages)
        if self.task is Task.EDITING:
            return list(range(len(self.images)))
        return [0] if self.task is Task.GENERATION else []

    def for_epoch(self, epoch: int) -> "Record":
        """Returns the record with the caption that an epoch uses, without alternatives.

        The choice depends on the key and the epoch only. In n epochs, each of n captions is used once.
        """
        if not self.alternatives:
            return self
        captions = (self.messages[-1]["content"] if self.messages else self.text, *self.alternatives)
        # CRC-32, because hash() differs between runs. Records start with different captions.
        start = zlib.crc32(self.key.encode("utf-8", "surrogatepass"))
        caption = captions[(start + epoch) % len(captions)]
        if self.messages:
            answer: Message = {"role": self.messages[-1]["role"], "content": caption}
            return dataclasses.replace(self, messages=(*self.messages[:-1], answer), alternatives=())
        return dataclasses.replace(self, text=caption, alternatives=())

    def to_example(self) -> dict[str, Any]:
        """Returns the record as a TFDS example with the features of `features`."""
        return {
            "key": self.key,
            "task": self.task.value,
            "text": self.text,
            "messages": json.dumps(self.messages, ensure_ascii=False),
            "images": np.array(self.images, object),
            "alternatives": np.array([text.encode() for text in self.alternatives], object),
            "image_tokens": self.image_tokens,
            "image_latents": self.image_latents,
        }

    @classmethod
    def from_example(cls, example: Mapping[str, Any]) -> "Record":
        """Returns the record in a TFDS example.

        Raises:
          JanusError: A field is missing or has an invalid value.
        """
        try:
            return cls(
                key=_text(example["key"]),
                task=Task(_text(example["task"])),
                text=_text(example["text"]),
                messages=tuple(json.loads(example["messages"])),
                images=tuple(example["images"]),
                alternatives=tuple(map(_text, example["alternatives"])),
                image_tokens=np.asarray(example["image_tokens"], np.int32),
                image_latents=np.asarray(example["image_latents"], np.float32),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise JanusError(f"An example is not a record ({error}); make the dataset with janus-prepare.") from error


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


@functools.cache
def features() -> Any:
    """Returns the TFDS features of a record."""
    # Imported here because the import takes seconds and most users of records do not need it.
    from tensorflow_datasets import features as tfds

    return tfds.FeaturesDict(
        {
            "key": tfds.Text(),
            "task": tfds.Text(),
            "text": tfds.Text(),
            "messages": tfds.Text(),
            "images": tfds.Tensor(shape=(None,), dtype=np.object_),
            "alternatives": tfds.Tensor(shape=(None,), dtype=np.object_),
            "image_tokens": tfds.Tensor(shape=(None,), dtype=np.int32),
            "image_latents": tfds.Tensor(shape=(None,), dtype=np.float32),
        }
    )
