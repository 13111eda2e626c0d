"""Text of an answer, decoded while its tokens are generated."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from janus_jax.processing import StreamDecoder, Tokenizer


class AnswerDecoder:
    """Decodes one answer, up to end-of-sentence, the first stop string or `limit` tokens."""

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str], limit: int) -> None:
        self.text = ""
        self.finished = False
        self._left = limit
        self._decoder = StreamDecoder(tokenizer)
        self._eos = tokenizer.special.eos
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)

    def read(self, tokens: Int[np.ndarray, " T"]) -> None:
        for token in tokens.tolist():
            if not self.finished and (token == self._eos or not self._left):
                self.finish()
            if self.finished:
                return
            self._left -= 1
            self._append(self._decoder.push(token))
        if not self._left:
            self.finish()

    def finish(self) -> str:
        if not self.finished:
            self._append(self._decoder.finish())
            self.finished = True
        return self.text

    def _append(self, piece: str) -> None:
        self.text += piece
        ends = [end for stop in self._stop if (end := self.text.find(stop)) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.finished = True


def safe_length(text: str, stop: str | Sequence[str]) -> int:
    """Returns the length of the text up to an end that may be the start of a stop string."""
    stops = (stop,) if isinstance(stop, str) else stop
    pending = (size for one in stops for size in range(1, len(one)) if text.endswith(one[:size]))
    return len(text) - max(pending, default=0)
