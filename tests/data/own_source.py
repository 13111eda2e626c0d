"""Sources that users could add, some of them faulty."""

import functools
import os
import signal
import time

from janus_jax.data.records import Record
from janus_jax.data.sources import Entry, Part, register_source
from janus_jax.processing import Task


@register_source("poems", Task.TEXT)
def poems(options):
    yield Part("poems", functools.partial(_entries, int(options.inputs[0])))


def _entries(count):
    for number in range(count):
        yield Entry(f"poem {number}", functools.partial(Record, f"poem {number}", Task.TEXT, f"Poem {number}"))


@register_source("slow", Task.TEXT)
def slow(options):
    """Parts of ten records, each of them takes the given number of seconds."""
    for index in range(6):
        yield Part(f"part {index}", functools.partial(_slow_entries, index, float(options.inputs[0])), 10)


def _slow_entries(index, seconds):
    for entry in _entries(10):
        time.sleep(seconds)
        yield entry._replace(key=f"{index}/{entry.key}")


@register_source("deadly", Task.TEXT)
def deadly(options):
    """The third part kills its process."""
    for index in range(6):
        yield Part(f"part {index}", functools.partial(_deadly_entries, index), 10)


def _deadly_entries(index):
    if index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from _entries(10)


@register_source("faulty", Task.TEXT)
def faulty(options):
    """The second of three records raises an error that the source did not expect."""
    yield Part("faulty", _faulty_entries)


def _faulty_entries():
    for number in range(3):
        yield Entry(f"{number}", functools.partial(_faulty_record, number))


def _faulty_record(number):
    return Record(f"{number}", Task.TEXT, text={0: "zero", 2: "two"}[number])
