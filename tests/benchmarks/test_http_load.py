"""The server under clients that fail, as a process, as in `benchmarks.serve_http`."""

import pytest

from benchmarks.http_load import measure
from benchmarks.http_requests import mixed_requests
from examples.shapes.models import JANUS_EDITS


def test_a_tenth_of_the_requests_is_cancelled_a_tenth_malformed_and_a_twentieth_oversized():
    fates = [request.fate for request in mixed_requests(500)]
    assert [fates.count(fate) for fate in ("good", "cancelled", "malformed", "oversized")] == [375, 50, 50, 25]


@pytest.mark.nightly
def test_a_server_bears_clients_that_fail():
    figures = measure(str(JANUS_EDITS), requests=60, clients=6, restarts=False)
    assert not figures["failures"]
    assert figures["good"] == 45
