"""What the two commands share: a progress bar on stderr."""

from collections.abc import Callable

import tqdm


def meter(total: int) -> Callable[[int], None]:
    """A bar that counts bytes; what it gives is told of those written, from any thread."""
    bar = tqdm.tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1000, smoothing=0.1)

    def progress(count: int) -> None:
        with bar.get_lock():
            bar.update(count)
            if bar.n >= total:
                bar.close()

    return progress
