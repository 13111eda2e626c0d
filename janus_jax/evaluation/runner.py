"""One runner for all benchmarks: shares the work, writes down what is done, goes on where it stopped.

What is done with the items that are left is a `Work`: `answering` asks a model questions; a benchmark of pictures has
one that draws, and answers with the names of the files.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from janus_jax.distributed import Cluster
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Asked, Question
from janus_jax.evaluation.journal import appending, claim, read_answers
from janus_jax.files import naming
from janus_jax.processing import Processor, TokenSequence

Work = Callable[[Sequence[Asked]], Iterator[Mapping[str, str]]]
"""From the items that are left to their answers by id, a batch at a time."""

Report = Callable[[int, int], object]
"""Told how many of a process's items are done, and how many there are; those that earlier runs did are among them."""

_READERS = min(8, os.cpu_count() or 1)


class Model(Protocol):
    """What answers: a `Pretrained`."""

    @property
    def processor(self) -> Processor: ...

    def answer(self, rows: Sequence[TokenSequence], max_new_tokens: int = ..., temperature: float = ...) -> list[str]:
        """The answers to rows of places."""
        ...


def collect(
    items: Sequence[Asked],
    work: Work[Asked],
    folder: Path,
    began: Mapping[str, Any],
    cluster: Cluster | None = None,
    report: Report = lambda done, total: None,
) -> dict[str, str] | None:
    """The answers to all items, by id, for the first process; None for the others.

    Items are shared by their number; every process appends to a file of its own, and a later run reads them all, of
    however many processes it has.

    Args:
      work: what is done with those that no earlier run has done.
      folder: where the answers go, batch by batch.
      began: settings that the answers depend on; a folder that was begun with others is refused.
      report: told before the first batch and after each.

    Raises:
      JanusError: the folder is of another run, or cannot be written.
      StorageFull: the disk is full.
    """
    cluster = cluster or Cluster()
    cluster.run_on_all(lambda: claim(folder, began) if cluster.is_first else None)
    # Read by all before any of them writes: they must agree on what is left.
    before = cluster.run_on_all(lambda: read_answers(folder))
    left = [item for item in items if item.id not in before]
    mine = [left[number] for number in cluster.share(range(len(left)))]

    def finish() -> None:
        done = len(items) - len(left)
        total = done + len(mine)
        report(done, total)
        with appending(folder, cluster.index if cluster.count > 1 else None) as journal:
            for answers in work(mine):
                journal.append(answers)
                done += len(answers)
                report(done, total)

    cluster.run_on_all(finish)
    if not cluster.is_first:
        return None
    answers = read_answers(folder)
    if absent := sum(item.id not in answers for item in items):
        raise JanusError(f"{folder} lacks {absent} answers of other processes; give an --out that all of them see.")
    return {item.id: answers[item.id] for item in items}


def answering(model: Model, batch_size: int) -> Work[Question]:
    """Asks a model, `batch_size` questions at a time, for its likeliest answers.

    Batches are of questions of about one length, and always full: a model compiles for few shapes. What a question
    is asked with does not change its answer, but for rounding.
    """

    def work(questions: Sequence[Question]) -> Iterator[Mapping[str, str]]:
        batches = batched(questions, batch_size, lambda question: num_places(model.processor, question))
        with ThreadPoolExecutor(_READERS) as readers:

            def read(batch: Sequence[Question]) -> list[Future[TokenSequence]]:
                return [readers.submit(_row, model.processor, question) for question in batch]

            # Pictures of the next batch are read while the devices are busy with this one.
            coming = read(batches[0]) if batches else []
            for batch, following in zip(batches, [*batches[1:], []], strict=False):
                rows, coming = [row.result() for row in coming], read(following)
                rows += [rows[-1]] * (batch_size - len(rows))
                texts = model.answer(rows, max_new_tokens=batch[0].max_new_tokens, temperature=0.0)
                yield {question.id: text for question, text in zip(batch, texts, strict=False)}

    return work


def batched(questions: Sequence[Question], size: int, length: Callable[[Question], int]) -> list[list[Question]]:
    """Questions of one limit of ids and about one length together, the longest first.

    What does not fit into memory then shows at once, and the time left is not told too short.
    """
    batches: list[list[Question]] = []
    for question in sorted(questions, key=lambda question: (question.max_new_tokens, length(question)), reverse=True):
        if batches and len(batches[-1]) < size and batches[-1][0].max_new_tokens == question.max_new_tokens:
            batches[-1].append(question)
        else:
            batches.append([question])
    return batches


def num_places(processor: Processor, question: Question) -> int:
    """Places that a question takes, but for the few that are the same for all; its pictures stay closed."""
    text = " ".join(message["content"] for message in question.messages) + question.system_prompt
    images = sum(len(message.get("images", ())) for message in question.messages)
    return len(processor.tokenizer.encode(text)) + images * (processor.und_tokens + 1)


def _row(processor: Processor, question: Question) -> TokenSequence:
    with naming(f"Question {question.id}"):
        return processor.understanding_sequence(question.messages, None, question.system_prompt)
