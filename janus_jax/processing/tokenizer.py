"""The tokenizer of a model folder: byte-level BPE, read from `tokenizer.json`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import tokenizers

from janus_jax.buckets import as_path
from janus_jax.errors import JanusError
from janus_jax.files import read_text, reading

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
END_OF_SENTENCE = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
IMAGE_PLACEHOLDER = "<image_placeholder>"
BEGIN_OF_GENERATION = "<｜begin▁of▁generation｜>"

REQUIRED_TOKENS = (BEGIN_OF_SENTENCE, END_OF_SENTENCE, PAD, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER)
"""Special tokens that every model needs."""

_RARE = "a\N{GOTHIC LETTER AHSA}"


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens. They differ between the released models."""

    bos: int
    eos: int
    pad: int
    begin_of_image: int
    end_of_image: int
    image_placeholder: int
    begin_of_generation: int | None = None  # JanusFlow only.


class Encoded(NamedTuple):
    """Token ids of a text, and the character range (start, end) of each token; (0, 0) for begin-of-sentence."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Tokenizer:
    """Tokenizer of a model folder.

    Attributes:
      special: Ids of the special tokens.
      added: Required special tokens that `tokenizer.json` lacks. They get the next free ids.
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str | Path = "tokenizer.json"):
        """Adds the missing special tokens to `backend`.

        Args:
          backend: The tokenizer of the library `tokenizers`.
          source: The file, for messages.
        """
        self._backend = backend
        self._source = source
        # Some files contain truncation and padding settings of a training run.
        backend.no_truncation()
        backend.no_padding()
        self.added = tuple(token for token in REQUIRED_TOKENS if backend.token_to_id(token) is None)
        # Adds all of them: a file may contain a token without marking it as special.
        backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in REQUIRED_TOKENS])
        self.special = SpecialIds(
            bos=self._id(BEGIN_OF_SENTENCE),
            eos=self._id(END_OF_SENTENCE),
            pad=self._id(PAD),
            begin_of_image=self._id(BEGIN_OF_IMAGE),
            end_of_image=self._id(END_OF_IMAGE),
            image_placeholder=self._id(IMAGE_PLACEHOLDER),
            begin_of_generation=backend.token_to_id(BEGIN_OF_GENERATION),
        )

    @classmethod
    def from_directory(cls, path: str | Path) -> Self:
        """Reads `tokenizer.json` from a model folder.

        Raises:
          JanusError: The file is missing, is not a tokenizer, or cannot encode every text.
        """
        file = as_path(path) / "tokenizer.json"
        with reading(file):
            if not file.exists():
                raise JanusError(f"{file} is missing; copy it there from the released checkpoint.")
        text = read_text(file, "copy it from the released checkpoint again")
        try:
            backend = tokenizers.Tokenizer.from_str(text)
            # Some tokenizer types fail only for characters outside their vocabulary.
            backend.encode(_RARE, add_special_tokens=False)
        except Exception as error:  # The library raises no narrower type.
            raise JanusError(
                f"{file} is not a usable tokenizer ({error}); copy it from the released checkpoint again."
            ) from error
        return cls(backend, file)

    def __len__(self) -> int:
        """Number of tokens, including special tokens."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Checks that all token ids are below `vocab_size`, the model's vocabulary size.

        Raises:
          JanusError: A token id is too large. The message names the token.
        """
        for token in self.added:
            if (token_id := self._id(token)) >= vocab_size:
                raise JanusError(
                    f"{self._source} lacks the special token {token}, and the model's vocabulary of {vocab_size} has "
                    f"no room to add it as id {token_id}; take the tokenizer.json released with the model."
                )
        token, token_id = max(self._backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        if token_id >= vocab_size:
            raise JanusError(
                f"{self._source} gives the token {token} the id {token_id}, beyond the model's vocabulary of "
                f"{vocab_size}; take the tokenizer.json released with the model."
            )

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Returns the token ids of a text. The name of a special token in the text becomes that token.

        Args:
          text: The text.
          add_bos: Whether begin-of-sentence comes first. The post-processor in the file is not used.

        Raises:
          JanusError: The text is not valid Unicode (it contains half of a surrogate pair).
        """
        ids: list[int] = self._encode(text, with_spans=False).ids
        return [self.special.bos, *ids] if add_bos else ids

    def encode_with_spans(self, text: str, add_bos: bool = True) -> Encoded:
        """Returns the token ids of a text and the character range of each token. See `encode`."""
        encoding = self._encode(text)
        if not add_bos:
            return Encoded(encoding.ids, encoding.offsets)
        return Encoded([self.special.bos, *encoding.ids], [(0, 0), *encoding.offsets])

    def _encode(self, text: str, with_spans: bool = True) -> tokenizers.Encoding:
        try:
            if with_spans:
                return self._backend.encode(text, add_special_tokens=False)
            # Computes no spans, which takes a quarter less time.
            return self._backend.encode_batch_fast([text], add_special_tokens=False)[0]
        except TypeError:
            raise JanusError(f"The text {text!r:.80} is not valid Unicode; remove the invalid characters.") from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids. Invalid UTF-8 becomes U+FFFD. Ids outside the vocabulary are skipped."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def _id(self, token: str) -> int:
        token_id = self._backend.token_to_id(token)
        assert token_id is not None
        return token_id


class StreamDecoder:
    """Decodes tokens one by one. The texts of all calls, joined, equal the text of `Tokenizer.decode`.

    A token may end in the middle of a character. Its text is held back until the character is complete.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Adds a token. Returns the text that it completes, often an empty string."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """Returns the text that is still held back, with U+FFFD for an incomplete character."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text
