"""Work for the tests of data workers. Each function returns the function from task to result."""

import sys
import time


def report_jax(loader):
    """Loads examples. The result also says whether jax is imported."""
    load = loader()
    return lambda task: (load(task), "jax" in sys.modules)


def sleep():
    """Sleeps for the given number of seconds."""
    return time.sleep


def fail(error):
    """Raises an error when the worker starts."""
    raise error


def send_much():
    """Returns the given number of megabytes, so that a worker can be killed while it sends them."""
    return lambda megabytes: bytes(megabytes << 20)
