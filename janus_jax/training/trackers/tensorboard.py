"""TensorBoard: event files in `FOLDER/tensorboard`, with images as contact sheets."""

import json
import math
import os
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from janus_jax.storage import writing
from janus_jax.training.trackers.base import TrackedRun, Tracker, register_tracker

_FLUSH_SECONDS = 20.0
_GAP = 4  # pixels between two images of a contact sheet


@register_tracker("tensorboard")
class TensorBoard(Tracker):
    """Writes event files. tensorboardX's own writer uses a thread and hangs if that thread dies."""

    def start(self, run: TrackedRun) -> None:
        """Creates an event file."""
        from tensorboardX import event_file_writer, proto, summary  # Imported late: it takes two seconds.

        self._summary = summary
        self._event = proto.event_pb2.Event
        self._path = run.files / "tensorboard"
        with writing(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            # Distinguishes runs that start in the same second: on a bucket, one would replace the file of the other.
            suffix = f".{os.getpid()}.{run.start_step}"
            self._file = event_file_writer.EventsWriter(str(self._path / "events"), suffix)
            # TensorBoard then discards what an earlier run wrote for this and later steps.
            log = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
            self._put(run.start_step + 1, session_log=log)
        self._flushed = time.monotonic()
        versions = "\n".join(f"- {name}: {version}" for name, version in run.versions.items())
        self.texts(
            run.start_step,
            {"run/versions": versions, "run/config": textwrap.indent(json.dumps(run.config, indent=2), "    ")},
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars."""
        self._write(step, (self._summary.scalar(name, value) for name, value in values.items()))

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts."""
        self._write(step, (self._summary.text(name, text) for name, text in texts.items()))

    def images(
        self, step: int, name: str, images: Sequence[UInt8[np.ndarray, "H W 3"]], captions: Sequence[str]
    ) -> None:
        """Writes one contact sheet, and the captions as the text `NAME/captions`."""
        if captions:
            self.texts(
                step, {f"{name}/captions": "\n".join(map("{}. {}".format, range(1, 1 + len(captions)), captions))}
            )
        self._write(step, [self._summary.image(name, contact_sheet(images), dataformats="HWC")])

    def answers(self, step: int, name: str, answers: Sequence[tuple[str, str]]) -> None:
        """Writes one text."""
        self.texts(step, {name: "\n\n".join(f"**{question}**\n\n{answer}" for question, answer in answers)})

    def finish(self, succeeded: bool) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()

    def _write(self, step: int, summaries: Iterable[Any]) -> None:
        with writing(self._path):
            for summary in summaries:
                self._put(step, summary=summary)
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def _put(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))


def contact_sheet(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Arranges images in an approximately square grid, row by row. Cells have the size of the largest image."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet
