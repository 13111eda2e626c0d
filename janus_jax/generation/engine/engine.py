"""The engine: a thread that decodes all submitted requests together (continuous batching).

Requests wait in order of submission until rows of the cache are free. Between two calls of the decode program, requests
that have finished or were cancelled lose their rows, and waiting ones get them at once (Orca, OSDI 2022, section 4).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from absl import logging

from janus_jax.config import JanusFlowConfig
from janus_jax.generation.engine.batcher import Batcher, Model
from janus_jax.generation.engine.flow_job import FlowJob
from janus_jax.generation.engine.groups import MAX_SEQUENCES, Group
from janus_jax.generation.engine.handle import Handle
from janus_jax.generation.engine.job import ImageJob, Job
from janus_jax.generation.engine.jobs import make_job
from janus_jax.generation.engine.options import EngineOptions
from janus_jax.generation.engine.requests import Event, Failed, Finished, Request
from janus_jax.sharding import num_data_shards, use_mesh

T = TypeVar("T")

_PREFILL_TOKENS = 2048
"""Number of prompt tokens after which a decode call comes before further prompts."""


class Overloaded(RuntimeError):
    """The queue is full. The request may succeed later."""


class EngineClosed(RuntimeError):
    """The engine does not accept requests: it was not started, or it is being stopped."""


@dataclass(frozen=True)
class EngineStats:
    """State of the engine and counts since its start.

    Attributes:
      waiting: Requests that have no row yet.
      running: Requests that have rows, or run as JanusFlow's steps.
      rows_used: Rows of the cache that have a request.
      rows_total: Maximum number of rows.
      finished, cancelled, failed: Requests by their last event.
      rejected: Requests that were refused because the queue was full.
      prompt_tokens: Tokens of the prompts of requests that have ended.
      cached_tokens: Prompt tokens whose keys and values were already on the device.
      text_tokens, image_tokens: Generated tokens.
      prefilled: Prompts whose keys and values were computed.
      decode_steps: Decode steps.
    """

    waiting: int
    running: int
    rows_used: int
    rows_total: int
    finished: int
    cancelled: int
    failed: int
    rejected: int
    prompt_tokens: int
    cached_tokens: int
    text_tokens: int
    image_tokens: int
    prefilled: int
    decode_steps: int


class Engine:
    """Serves requests of many threads with one model.

        with Engine(janus_jax.load(path)) as engine:
            handle = engine.submit(ChatRequest(messages=[{"role": "user", "content": "Hello"}]))
            for event in handle.events():
                ...

    Text and image tokens are those that the request alone would get from `Pretrained`, except where rounding changes a
    token.

    Attributes:
      model: The model.
      options: Options with all sizes resolved for the model.
    """

    def __init__(self, model: Model, options: EngineOptions | None = None) -> None:
        """Makes an engine. `start` starts it.

        Args:
          model: The model, such as `janus_jax.load(path)`. Its mesh shards the cache; its weights may be quantized.
          options: Sizes of the cache and of the compiled programs.

        Raises:
          JanusError: An option does not fit the model.
        """
        sequences = 1 if isinstance(model.config, JanusFlowConfig) else MAX_SEQUENCES
        self.options = (options or EngineOptions()).resolve(model.config, num_data_shards(model.mesh), sequences)
        self.model = model
        self._changed = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._jobs: dict[Job, None] = {}
        self._waiting: deque[tuple[Job, Group]] = deque()
        self._flows: deque[tuple[FlowJob, object]] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        names = ("finished", "cancelled", "failed", "rejected", "prompt_tokens", "cached_tokens")
        self._counts = dict.fromkeys(names, 0)
        self._accepts = self._stops = False
        self._batcher: Batcher | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None

    def start(self, *, warm_up: bool = True) -> None:
        """Starts the engine's thread, and waits until the programs of all sizes are compiled.

        Args:
          warm_up: False compiles each program when it is first used, which delays all requests at that time.

        Raises:
          Exception: The memory of the device does not suffice for `options`, or a program does not compile.
        """
        assert self._thread is None, "the engine was started before"
        self._thread = threading.Thread(target=self._run, args=(warm_up,), name="engine", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    def submit(self, request: Request, on_event: Callable[[Event], object] | None = None) -> Handle:
        """Checks and tokenizes a request in the caller's thread, and queues it.

        Args:
          request: The request.
          on_event: See `Handle`. By default, `Handle.events` returns the events.

        Raises:
          JanusError: The request is invalid.
          Overloaded: The queue is full.
          EngineClosed: The engine is not running.
        """
        self._check_accepts()
        handle = Handle(on_event)
        job = make_job(request, self.model, handle, self.options.max_length)
        with self._changed:
            self._check_accepts()
            self._inbox.append(job)
            self._changed.notify_all()
        return handle

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function in the engine's thread before the next decode call, such as a reward that runs the model.

        On a mesh, programs that several threads start at once could wait for each other forever.

        Args:
          function: It should be short, because all requests wait for it.

        Returns:
          The result. It is cancelled if the engine stops before.

        Raises:
          EngineClosed: The engine is not running.
        """
        future: Future[T] = Future()
        with self._changed:
            if not self._accepts:
                raise EngineClosed("The engine is not running, or it is being stopped.")
            self._calls.append((function, future))
            self._changed.notify_all()
        return future

    def drain(self, timeout: float | None = None) -> bool:
        """Refuses further requests, and waits until all others have ended.

        Returns:
          False if `timeout` seconds passed before.
        """
        with self._changed:
            self._accepts = False
            return self._changed.wait_for(lambda: not (self._inbox or self._jobs or self._calls), timeout)

    def stop(self) -> None:
        """Cancels all requests and ends the engine's thread."""
        with self._changed:
            self._accepts, self._stops = False, True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts requests."""
        return self._accepts

    def stats(self) -> EngineStats:
        """Returns the state and the counts of the engine."""
        batcher = self._batcher
        with self._changed:
            waiting = len(self._inbox) + len({job for job, _ in self._waiting})
            return EngineStats(
                waiting=waiting,
                running=max(0, len(self._inbox) + len(self._jobs) - waiting),
                rows_used=batcher.num_rows if batcher else 0,
                rows_total=self.options.rows[-1],
                text_tokens=batcher.num_tokens[False] if batcher else 0,
                image_tokens=batcher.num_tokens[True] if batcher else 0,
                prefilled=batcher.num_prefilled if batcher else 0,
                decode_steps=batcher.num_steps if batcher else 0,
                **self._counts,
            )

    def _check_accepts(self) -> None:
        if not self._accepts:
            raise EngineClosed("The engine is not running, or it is being stopped.")
        if len(self._inbox) + len(self._jobs) >= self.options.max_queue:
            self._counts["rejected"] += 1
            raise Overloaded(f"{self.options.max_queue} requests wait or run, the maximum; try again later.")

    def _run(self, warm_up: bool) -> None:
        try:
            with use_mesh(self.model.mesh):
                begin = time.monotonic()
                self._batcher = Batcher(self.model, self.options)
                if warm_up:
                    self._batcher.warm_up()
                    logging.info("The engine compiled its programs in %.0f seconds.", time.monotonic() - begin)
                self._accepts = True
                self._started.set()
                while self._wait_for_work():
                    self._step(self._batcher)
        except BaseException as error:
            self._error = error
            logging.exception("The engine has stopped.")
        finally:
            with self._changed:
                self._accepts = False
                for job in (*self._inbox, *self._jobs):
                    job.finish("cancelled") if self._error is None else job.fail(EngineClosed("The engine has failed."))
                for _, future in self._calls:
                    future.cancel()
                self._inbox.clear()
                self._jobs.clear()
                self._calls.clear()
                self._changed.notify_all()
            self._started.set()

    def _wait_for_work(self) -> bool:
        """Waits for a request. Returns False if the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._jobs or self._calls or self._stops)
            while self._inbox:
                job = self._inbox.popleft()
                self._jobs[job] = None
                if isinstance(job, FlowJob):
                    self._flows.append((job, job.run()))
                self._waiting.extend((job, group) for group in job.take_new())
            return not self._stops

    def _step(self, batcher: Batcher) -> None:
        """Gives rows to waiting requests, and runs one decode call and one step of JanusFlow."""
        self._run_calls()
        self._remove_ended(batcher)
        self._guard(batcher, lambda: self._admit(batcher))
        self._guard(batcher, batcher.decode)
        self._send_pictures(batcher)
        self._run_flow()
        with self._changed:
            # The next part of a conversation comes before requests that have not started.
            self._waiting.extendleft((job, group) for job in self._jobs for group in job.take_new())
        self._remove_ended(batcher)

    def _guard(self, batcher: Batcher, run: Callable[[], object]) -> None:
        """Runs a device call that changes the cache. If it fails, the requests with rows fail and the cache is new."""
        try:
            run()
        except Exception as error:
            logging.exception("A call of the engine's device programs failed.")
            for job in list(self._jobs):
                if any(group.rows for group in job.groups):
                    job.fail(error)
            batcher.reset()

    def _admit(self, batcher: Batcher) -> None:
        admitted: list[Group] = []
        free, tokens = batcher.free_rows, 0
        while self._waiting and tokens < _PREFILL_TOKENS:
            _, group = self._waiting[0]
            if group.num_rows > free:
                break
            free -= group.num_rows
            tokens += sum(len(prompt) for prompt in group.prompts if prompt.prefilled is None)
            admitted.append(group)
            with self._changed:
                self._waiting.popleft()
        if not admitted:
            return
        try:
            batcher.admit(admitted)
        except Exception as error:
            for group in admitted:
                group.fail(error)
            raise

    def _send_pictures(self, batcher: Batcher) -> None:
        for job in list(self._jobs):
            if not isinstance(job, ImageJob) or not job.pending:
                continue
            pending, job.pending = job.pending, []
            for picture in pending:
                try:
                    (image,) = batcher.to_images([picture.tokens])
                    job.send_picture(picture, image)
                except Exception as error:
                    job.fail(error)

    def _run_flow(self) -> None:
        if not self._flows:
            return
        job, steps = self._flows.popleft()
        if job.is_done:
            return
        try:
            # An exhausted generator has sent the last event.
            next(steps, None)  # type: ignore[call-overload]
        except Exception as error:
            job.fail(error)
        if not job.is_done:
            self._flows.append((job, steps))

    def _run_calls(self) -> None:
        while self._calls:
            function, future = self._calls[0]
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)
            with self._changed:
                self._calls.popleft()
                self._changed.notify_all()

    def _remove_ended(self, batcher: Batcher) -> None:
        """Sends the last event of cancelled requests, and removes all requests that have ended."""
        for job in self._jobs:
            if job.handle.is_cancelled:
                job.finish("cancelled")
        ended = [job for job in self._jobs if job.is_done]
        if not ended:
            return
        for group in _groups(ended):
            if group.rows:
                batcher.remove(group)
        with self._changed:
            self._waiting = deque((job, group) for job, group in self._waiting if not job.is_done)
            for job in ended:
                self._count(job)
                del self._jobs[job]
            self._changed.notify_all()

    def _count(self, job: Job) -> None:
        last = job.handle.last_event
        assert isinstance(last, Finished | Failed)
        outcome = "failed" if isinstance(last, Failed) else "cancelled" if last.reason == "cancelled" else "finished"
        self._counts[outcome] += 1
        self._counts["prompt_tokens"] += job.usage.prompt_tokens
        self._counts["cached_tokens"] += last.usage.cached_tokens if isinstance(last, Finished) else 0


def _groups(jobs: Iterable[Job]) -> list[Group]:
    return [group for job in jobs for group in job.groups]
