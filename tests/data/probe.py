"""Work for data workers that tells of the worker itself."""

import sys
import time


class LooksForJax:
    """Makes the samples that it is asked for, and says whether jax was imported for it."""

    def __init__(self, make_samples):
        self.make_samples = make_samples

    def __call__(self):
        work = self.make_samples()
        return lambda task: (work(task), "jax" in sys.modules)


class Sleeps:
    """Waits as many seconds as it is asked to."""

    def __call__(self):
        return time.sleep


class Fails:
    """Cannot be made."""

    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


class SendsMuch:
    """Sends so much at a time that whoever ends it ends it while it is sending."""

    def __call__(self):
        return lambda megabytes: bytes(megabytes << 20)
