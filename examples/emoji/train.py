"""Trains a small Janus from scratch on emoji and evaluates it, by the commands that any user has.

    python -m examples.emoji.train --workdir runs/emoji --budget 60min

The command prints and runs the commands of README.md. Repeat it to continue an interrupted run: completed commands are
skipped. WORKDIR/report.json has the minutes of each command and the scores.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from examples.emoji.commands import run
from janus_jax.commands import cli

_WORKDIR = flags.DEFINE_string("workdir", "runs/emoji", "folder of the run")
_BUDGET = flags.DEFINE_enum(
    "budget", "60min", ["smoke", "60min", "gpu"], "60min: two CPU cores; gpu: larger models; smoke: two steps"
)
_PACKAGE = flags.DEFINE_string("package", None, "the .tgz that npm pack writes (default: fetched by npm)")


def main(_: Sequence[str]) -> None:
    """Trains with the budget that the flags name."""
    run(Path(_WORKDIR.value), _BUDGET.value, Path(_PACKAGE.value) if _PACKAGE.value else None)


if __name__ == "__main__":
    cli.run(main)
