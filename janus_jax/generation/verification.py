"""Probabilities that a model assigns to given answers of questions about images.

A model that understands and generates can check its own images: the probability of "yes" for the question whether a
picture shows its prompt is a score of the picture (self-verification, arXiv 2501.13926).
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from PIL import Image

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.errors import JanusError
from janus_jax.generation.padding import bucket_length, round_up
from janus_jax.generation.sampling import check_not_nan
from janus_jax.models.backbone import Backbone, Params, apply
from janus_jax.processing import Message, Processor, TokenSequence
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.sharding import batch_sharding, num_data_shards, to_host, use_mesh

_NO_TOKEN = -1


class ImageQuestion(NamedTuple):
    """A question about an image, with its possible answers.

    Attributes:
      image: The image.
      text: The question.
      choices: The possible answers. Upper and lower case of their first letter count as one answer.
    """

    image: Image.Image
    text: str
    choices: tuple[str, ...]


def choice_probabilities(
    model: Backbone,
    params: Params,
    processor: Processor,
    questions: Sequence[ImageQuestion],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 16,
) -> list[Float[np.ndarray, " C"]]:
    """Returns the probabilities of the choices of each question, which add up to 1.

    The probability of a choice is that of its first token that the others do not share, relative to those of all
    choices. All batches of a call have one shape, so that one program is compiled.

    Args:
      model: The network.
      params: Parameters of the network.
      processor: Processor of the model.
      questions: The questions.
      mesh: Mesh over which the parameters are sharded. None: a single device.
      batch_size: Number of questions per batch, rounded up to a multiple of the data shards.

    Raises:
      JanusError: Choices begin with the same token, a question is longer than the model's context, or the logits are
        NaN.
    """
    if not questions:
        return []
    answers = {choices: _answer_tokens(processor, choices) for choices in {question.choices for question in questions}}
    shape = [max(answer.tokens.shape[axis] for answer in answers.values()) for axis in (0, 1)]
    prompts = [_prompt(processor, question, answers[question.choices].prefix) for question in questions]
    longest = max(map(len, prompts))
    if longest > model.config.llm.max_positions:
        raise JanusError(
            f"A question about an image has {longest} tokens, but the model's context is "
            f"{model.config.llm.max_positions}; shorten the question."
        )
    size = round_up(min(batch_size, len(questions)), num_data_shards(mesh))
    results: list[Float[np.ndarray, " C"]] = []
    for start in range(0, len(questions), size):
        part = questions[start : start + size]
        padded = [*prompts[start : start + size], *[prompts[-1]] * (size - len(part))]
        batch = processor.left_pad(padded, bucket_length(longest))
        choices = np.full((size, *shape), _NO_TOKEN, np.int32)
        for row, question in zip(choices, part, strict=False):
            found = answers[question.choices].tokens
            row[: found.shape[0], : found.shape[1]] = found
        choices[len(part) :] = choices[0]
        if mesh is not None:
            batch = jax.device_put(batch, batch_sharding(mesh))
        with use_mesh(mesh):
            probabilities = to_host(_probabilities(model, params, batch, choices))
        check_not_nan(np.isnan(probabilities))
        results += [row[: len(question.choices)] for row, question in zip(probabilities, part, strict=False)]
    return results


@functools.partial(jax.jit, static_argnames=("model",))
def _probabilities(
    model: Backbone, params: Params, prompts: Batch, choices: Int[Array, "B C V"]
) -> Float[Array, "B C"]:
    """Returns the probabilities of choices as the next token.

    Args:
      choices: First tokens of the variants of each choice, padded with `_NO_TOKEN`.
    """
    hidden = apply(model.__call__, params, prompts)[:, -1]
    logits = apply(model.text_logits, params, hidden)
    picked = jnp.take_along_axis(logits[:, None], jnp.maximum(choices, 0), axis=-1)
    picked = jnp.where(choices == _NO_TOKEN, -jnp.inf, picked)
    return jax.nn.softmax(jax.nn.logsumexp(picked, axis=-1), axis=-1)


def _messages(text: str, answer: str = "") -> list[Message]:
    question: Message = {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{text}"}
    return [question, {"role": "assistant", "content": answer}] if answer else [question]


class _AnswerTokens(NamedTuple):
    """Tokens that distinguish the choices of a question.

    Attributes:
      prefix: Tokens with which all choices begin, such as a space. The model reads them with the question.
      tokens: Next tokens of the variants of each choice, padded with `_NO_TOKEN`.
    """

    prefix: Int[np.ndarray, " T"]
    tokens: Int[np.ndarray, "C V"]


def _answer_tokens(processor: Processor, choices: Sequence[str]) -> _AnswerTokens:
    """Returns the tokens that distinguish choices."""
    start = len(processor.understanding_tokens(_messages("?"), 1))

    def tokens_of(answer: str) -> list[int]:
        return processor.understanding_tokens(_messages("?", answer), 1).tokens[start:].tolist()

    answers = [tokens_of(choice) for choice in choices]
    in_step = zip(*answers, strict=False)
    prefix = [tokens[0] for tokens in itertools.takewhile(lambda tokens: len({*tokens}) == 1, in_step)]
    first = [answer[len(prefix)] for answer in answers]
    for index, token in enumerate(first):
        if token in first[:index]:
            other = choices[first.index(token)]
            raise JanusError(
                f"The answers {other!r} and {choices[index]!r} begin with the same token; choose answers that the "
                f"model's tokenizer distinguishes."
            )
    # The same word with the other case of its first letter, if it begins with another token.
    others = [tokens_of(choice[:1].swapcase() + choice[1:]) for choice in choices]
    others = [answer[len(prefix) :][:1] if answer[: len(prefix)] == prefix else [] for answer in others]
    counts = Counter([*first, *(token for answer in others for token in answer)])
    found = [[token, *(one for one in other if counts[one] == 1)] for token, other in zip(first, others, strict=True)]
    width = max(map(len, found))
    padded = [tokens + [_NO_TOKEN] * (width - len(tokens)) for tokens in found]
    return _AnswerTokens(np.array(prefix, np.int32), np.array(padded, np.int32))


def _prompt(processor: Processor, question: ImageQuestion, prefix: Int[np.ndarray, " T"]) -> TokenSequence:
    """Returns the sequence of a question, followed by the prefix of its answers."""
    sequence = processor.understanding_sequence(_messages(question.text), [question.image])
    return dataclasses.replace(
        sequence,
        tokens=np.append(sequence.tokens, prefix),
        answer_mask=np.append(sequence.answer_mask, np.zeros(len(prefix), bool)),
        und_patch_index=np.append(sequence.und_patch_index, np.full(len(prefix), NO_IMAGE, np.int32)),
        gen_token_index=np.append(sequence.gen_token_index, np.full(len(prefix), NO_IMAGE, np.int32)),
    )
