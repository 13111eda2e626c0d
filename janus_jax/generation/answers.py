"""Converts the tokens of an answer to text, and finds its end."""

from collections.abc import Iterable, Sequence

from janus_jax.processing import StreamDecoder, Tokenizer


class AnswerDecoder:
    """Decodes one answer, up to end-of-sentence, the first stop string or a number of tokens.

    Attributes:
      text: The answer so far, without the stop string.
      finished: Whether the answer has ended.
      num_tokens: Number of tokens read, with the end-of-sentence.
      reached_limit: Whether the answer ended because of the number of tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str], limit: int) -> None:
        """Starts an answer.

        Args:
          tokenizer: Tokenizer of the model.
          stop: Strings that end the answer.
          limit: Maximum number of tokens.
        """
        self.text = ""
        self.finished = False
        self.num_tokens = 0
        self.reached_limit = False
        self._limit = limit
        self._decoder = StreamDecoder(tokenizer)
        self._eos = tokenizer.special.eos
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)

    def read(self, tokens: Iterable[int]) -> None:
        """Appends tokens. Those after the end of the answer are ignored."""
        for token in tokens:
            if self.finished:
                return
            self.num_tokens += 1
            if token == self._eos:
                self.finish()
                return
            self._append(self._decoder.push(token))
            if self.num_tokens == self._limit and not self.finished:
                self.finish()
                self.reached_limit = True

    def finish(self) -> str:
        """Ends the answer if it has not ended yet, and returns it."""
        if not self.finished:
            self._append(self._decoder.finish())
            self.finished = True
        return self.text

    @property
    def safe_length(self) -> int:
        """Length of the text that no later token changes."""
        return len(self.text) if self.finished else safe_length(self.text, self._stop)

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
