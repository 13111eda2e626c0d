"""Measures `janus-serve`, a process of its own, with concurrent clients of which some fail, over the loopback.

    python -m benchmarks.serve_http
    python -m benchmarks.serve_http --requests 100 --clients 4

Of 20 requests, 2 are cancelled midway, 2 are malformed and 1 is larger than the server accepts. Each other request must
have the answer that the same request had alone. At the end the server must have no request and no slot in use, and its
memory must not have grown since the warm-up. Then clients that read nothing must not delay others, and a server that
was killed must answer after a restart. The exit code is 1 if one of these checks fails.
"""

import json
import os
import sys
from collections.abc import Sequence

from absl import flags

from benchmarks.http_load import measure
from benchmarks.server_process import ROOT
from benchmarks.shared import machine
from janus_jax.commands import cli

_MODEL = flags.DEFINE_string(
    "model",
    str(ROOT / "examples/shapes/models/Janus-shapes-edits"),
    "model folder; it must generate images in answers",
)
_REQUESTS = flags.DEFINE_integer("requests", 500, "number of requests", lower_bound=20)
_CLIENTS = flags.DEFINE_integer("clients", 8, "number of concurrent clients", lower_bound=1)


def main(_argv: Sequence[str]) -> None:
    """Prints the figures as a line of JSON."""
    figures = measure(_MODEL.value, _REQUESTS.value, _CLIENTS.value)
    for failure in figures["failures"]:
        print(failure)
    print(json.dumps(figures | {"failures": len(figures["failures"])} | machine() | {"load": os.getloadavg()[0]}))
    sys.exit(1 if figures["failures"] else 0)


if __name__ == "__main__":
    cli.run(main)
