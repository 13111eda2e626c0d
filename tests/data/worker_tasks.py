"""Work for the tests of data workers."""

import sys
import time


class ReportJax:
    """Loads examples and reports whether jax is imported."""

    def __init__(self, loader):
        self.loader = loader

    def __call__(self):
        load = self.loader()
        return lambda task: (load(task), "jax" in sys.modules)


class Sleep:
    """Sleeps for the given number of seconds."""

    def __call__(self):
        return time.sleep


class Raise:
    """Raises an error when the work is made."""

    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


class SendMuch:
    """Returns the given number of megabytes, so that a worker can be killed while it sends them."""

    def __call__(self):
        return lambda megabytes: bytes(megabytes << 20)
