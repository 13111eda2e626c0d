"""Text to ids and back: byte-level BPE as the released `tokenizer.json` describes it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import tokenizers

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
"""What every model of the family needs."""

_RARE = "a\N{GOTHIC LETTER AHSA}"


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens with a meaning of their own; they differ between the released models."""

    bos: int
    eos: int
    pad: int
    begin_of_image: int
    end_of_image: int
    image_placeholder: int
    # JanusFlow alone has it.
    begin_of_generation: int | None = None


class Encoded(NamedTuple):
    """Ids of a text, and for each the range of the text's characters that it covers, (0, 0) for the added bos."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Tokenizer:
    """The tokenizer of one model directory.

    Attributes:
      special: ids of the special tokens, looked up by name.
      added: special tokens that `tokenizer.json` lacks, and which were given the next free ids.
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str | Path = "tokenizer.json"):
        """Takes over `backend` (which is changed: missing special tokens are added to it)."""
        self._backend = backend
        self._source = source
        # Some files carry the settings of their last training run; rows are padded and measured elsewhere.
        backend.no_truncation()
        backend.no_padding()
        self.added = tuple(token for token in REQUIRED_TOKENS if backend.token_to_id(token) is None)
        # All of them, the known ones too: a file may list one without marking it as special.
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
        """Reads `tokenizer.json` from a model directory.

        Raises:
          JanusError: the file is missing, no tokenizer, or one that cannot take every text.
        """
        file = Path(path) / "tokenizer.json"
        with reading(file):
            if not file.exists():
                raise JanusError(f"{file} is missing; copy it there from the released checkpoint.")
        text = read_text(file, "copy it from the released checkpoint again")
        try:
            backend = tokenizers.Tokenizer.from_str(text)
            # Some kinds fail only when they meet what their vocabulary lacks.
            backend.encode(_RARE, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise JanusError(
                f"{file} is no tokenizer that can be used ({error}); copy it from the released checkpoint again."
            ) from error
        return cls(backend, file)

    def __len__(self) -> int:
        """Number of tokens, the special ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Checks that a model with `vocab_size` embeddings has one for every token.

        Raises:
          JanusError: it has not; the message names the token.
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
        """The ids of `text`, in which special tokens are recognised by name, after begin-of-sentence.

        Begin-of-sentence is added once, whatever post-processor the file has, and besides any in `text` itself.

        Raises:
          JanusError: the text is no Unicode text (it holds half of a surrogate pair).
        """
        return self.encode_with_spans(text, add_bos).ids

    def encode_with_spans(self, text: str, add_bos: bool = True) -> Encoded:
        """As `encode`, with the characters that each id stands for."""
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except TypeError:
            raise JanusError(f"The text {text!r:.80} is no Unicode text; mend or leave out what is not.") from None
        if not add_bos:
            return Encoded(encoding.ids, encoding.offsets)
        return Encoded([self.special.bos, *encoding.ids], [(0, 0), *encoding.offsets])

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids of no token nothing."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def _id(self, token: str) -> int:
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise KeyError(token)
        return token_id


class StreamDecoder:
    """Text as its ids come. The pieces, `finish` included, add up to what `Tokenizer.decode` makes of all ids.

    A token of a byte-level tokenizer may end in the middle of a character; such a piece waits for its rest.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, often empty, never with part of a character."""
        self._pending.append(token_id)
        text = self._decode_pending()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """What is left when no more ids come, U+FFFD in place of an unfinished character."""
        text = self._decode_pending()
        self._pending.clear()
        return text

    def _decode_pending(self) -> str:
        return self._tokenizer.decode(self._pending, skip_special_tokens=self._skip_special_tokens)
