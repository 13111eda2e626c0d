"""Runs benchmarks: distributes items over processes, records answers, and continues interrupted runs."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from janus_jax.distributed import Cluster
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import ItemT, Question
from janus_jax.evaluation.journal import claim_folder, open_journal, read_answers
from janus_jax.files import prefix_errors
from janus_jax.processing import Background, DamagedImage, Processor, TokenSequence

OnProgress = Callable[[int, int], object]
"""Function of the number of answered items and the total number of items."""

_READERS = min(8, os.cpu_count() or 1)


class ChatModel(Protocol):
    """A model that answers questions, such as `Pretrained`."""

    @property
    def processor(self) -> Processor: ...

    def answer(
        self, prompts: Sequence[TokenSequence], max_new_tokens: int = ..., temperature: float = ...
    ) -> list[str]:
        """Returns the completions of prompts."""
        ...


def collect_answers(
    items: Sequence[ItemT],
    answer_items: Callable[[Sequence[ItemT]], Iterator[Mapping[str, str | None]]],
    folder: Path,
    settings: Mapping[str, Any],
    *,
    keep_skipped: bool = False,
    cluster: Cluster | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, str] | None:
    """Answers the items that have no saved answer yet.

    Each process answers a share of the items and appends to its own journal. A later run reads the journals of all
    processes and may have another number of processes.

    Args:
      items: All items of the benchmark.
      answer_items: Yields answers to the given items by id, one batch at a time; None for skipped items.
      folder: The run's folder, visible to all processes.
      settings: Everything that the answers depend on; see `claim_folder`.
      keep_skipped: Whether items that an earlier run skipped stay skipped. Otherwise they are asked again.
      cluster: Processes of this run; None for a single process.
      on_progress: Called before the first batch and after each batch, with the numbers of this process. Both numbers
        include the items that earlier runs answered.

    Returns:
      All answers by id, without skipped items, on the first process; None on other processes.

    Raises:
      JanusError: The folder belongs to another run or cannot be written.
      StorageFull: The disk is full.
    """
    cluster = cluster or Cluster()
    cluster.run_on_all(lambda: claim_folder(folder, settings) if cluster.is_primary else None)
    # All processes read the answers before any of them writes, so that they agree on the remaining items.
    earlier = cluster.run_on_all(lambda: read_answers(folder))
    done_ids = {id for id, answer in earlier.items() if answer is not None or keep_skipped}
    remaining = [item for item in items if item.id not in done_ids]
    share = [remaining[number] for number in cluster.share(range(len(remaining)))]

    def answer_share() -> None:
        done = len(items) - len(remaining)
        total = done + len(share)
        on_progress(done, total)
        with open_journal(folder, cluster.index if cluster.count > 1 else None) as journal:
            for answers in answer_items(share):
                journal.append(answers)
                done += len(answers)
                on_progress(done, total)

    cluster.run_on_all(answer_share)
    if not cluster.is_primary:
        return None
    answers = read_answers(folder)
    if missing := sum(item.id not in answers for item in items):
        raise JanusError(
            f"{folder} lacks {missing} answers of other processes; give an --out that all processes share."
        )
    return {item.id: answer for item in items if (answer := answers[item.id]) is not None}


def answer_questions(
    model: ChatModel,
    questions: Sequence[Question],
    batch_size: int,
    *,
    skip_damaged: bool = False,
    background: Background = "none",
) -> Iterator[Mapping[str, str | None]]:
    """Answers questions with greedy decoding.

    Batches contain questions of similar length and are always full, so that few shapes are compiled. Except for
    rounding, an answer does not depend on the other questions of its batch.

    Args:
      skip_damaged: Whether to skip questions with a damaged image. A warning names the image.
      background: Background of transparent pixels, see `Background`.

    Yields:
      Answers of a batch by question id; None for skipped questions.

    Raises:
      DamagedImage: An image is damaged, and `skip_damaged` is False.
      JanusError: A question is malformed or too long.
    """
    batches = batch_questions(questions, batch_size, lambda question: estimate_length(model.processor, question))
    with ThreadPoolExecutor(_READERS) as readers:

        def submit(batch: Sequence[Question]) -> list[Future[TokenSequence | None]]:
            return [readers.submit(_prompt, model.processor, question, skip_damaged, background) for question in batch]

        # Images of the next batch are decoded while the devices process this one.
        pending = submit(batches[0]) if batches else []
        for batch, following in zip(batches, [*batches[1:], []], strict=False):
            results, pending = [future.result() for future in pending], submit(following)
            ids = [question.id for question in batch]
            prompts = {id: prompt for id, prompt in zip(ids, results, strict=True) if prompt is not None}
            answers: dict[str, str | None] = dict.fromkeys(ids)
            if prompts:
                padded = [*prompts.values()]
                padded += [padded[-1]] * (batch_size - len(padded))
                texts = model.answer(padded, max_new_tokens=batch[0].max_new_tokens, temperature=0.0)
                answers |= zip(prompts, texts, strict=False)
            yield answers


def batch_questions(
    questions: Sequence[Question], batch_size: int, length: Callable[[Question], int]
) -> list[list[Question]]:
    """Groups questions with equal `max_new_tokens` and similar length into batches, the longest first.

    With this order, a batch that exceeds the memory fails at the start, and progress bars do not show too little time.
    """
    batches: list[list[Question]] = []
    for question in sorted(questions, key=lambda question: (question.max_new_tokens, length(question)), reverse=True):
        if batches and len(batches[-1]) < batch_size and batches[-1][0].max_new_tokens == question.max_new_tokens:
            batches[-1].append(question)
        else:
            batches.append([question])
    return batches


def estimate_length(processor: Processor, question: Question) -> int:
    """Estimates a prompt's length in tokens without decoding images. Omits the tokens that all prompts share."""
    text = " ".join(message["content"] for message in question.messages) + question.system_prompt
    images = sum(len(message.get("images", ())) for message in question.messages)
    return len(processor.tokenizer.encode(text)) + images * (processor.num_und_tokens + 1)


def _prompt(
    processor: Processor, question: Question, skip_damaged: bool, background: Background
) -> TokenSequence | None:
    name = f"Question {question.id}"
    try:
        with prefix_errors(name):
            return processor.understanding_sequence(question.messages, None, question.system_prompt, background)
    except DamagedImage as error:
        if not skip_damaged:
            raise
        logging.warning("%s The question is skipped.", error)
        return None
