"""Lets processes of a training run fail in ten ways and measures how soon the run ends, and what it loses.

    python -m benchmarks.faults --workdir /tmp/faults --faults 60 -- --config tests/training/runs.py ...

The arguments after `--` are those of `janus-train`. Four processes on this machine train one run. Each start of the run
has one fault (`benchmarks.fault_injection`) at a random step of a random process, the kinds in turn. After the run has
ended, the next start resumes it. At the end the run finishes without a fault, and its losses are compared with those of
an undisturbed run in `WORKDIR/undisturbed`, which is made first.

For each kind the table shows the number of faults, the number of runs that went on, the exit codes of the processes
that did not fail, whether their log names the process that did, the time until all of them had ended, and the steps
that the next start repeated. The last line is a JSON object with all faults.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from absl import flags

from benchmarks.fault_injection import KINDS, Fault
from benchmarks.fault_runs import is_named, newest_checkpoint, run_cluster, steps_logged
from janus_jax.commands import cli
from janus_jax.errors import JanusError

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs; must not exist", required=True)
_FAULTS = flags.DEFINE_integer("faults", 60, "number of faults", lower_bound=0)
_KINDS = flags.DEFINE_list("kinds", list(KINDS), "kinds of faults")
_PROCESSES = flags.DEFINE_integer("processes", 4, "processes", lower_bound=2)
_EVERY = flags.DEFINE_integer("every", 4, "steps between checkpoints", lower_bound=1)
_LOST = flags.DEFINE_float("lost_seconds", 10.0, "see config.resources.lost_seconds", lower_bound=1)
_WATCHDOG = flags.DEFINE_float("watchdog_seconds", 30.0, "limit of a step", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "seed of the faults")


def main(arguments: Sequence[str]) -> None:
    """Runs the faults and prints the table."""
    workdir, count, rng = Path(_WORKDIR.value), _PROCESSES.value, random.Random(_SEED.value)
    if workdir.exists():
        raise JanusError(f"{workdir} exists; give a folder that does not exist.")
    # Each start takes up to `span` steps before its fault, and repeats some.
    span = 3 * _EVERY.value
    steps = (_FAULTS.value + 1) * span
    common = (
        *arguments,
        f"--config.intervals.save={_EVERY.value}",
        f"--config.stages.stage_1.steps={steps}",
        f"--config.resources.lost_seconds={_LOST.value}",
        f"--config.resources.watchdog_minutes={_WATCHDOG.value / 60}",
    )
    undisturbed, disturbed = workdir / "undisturbed", workdir / "disturbed"
    (end, *_) = run_cluster([*common, f"--workdir={undisturbed}"], count, workdir / "logs" / "undisturbed")
    if end.code:
        raise JanusError(f"The undisturbed run has failed with exit code {end.code}: {end.log[-2000:]}")
    print(f"undisturbed: {steps} steps", flush=True)
    results = []
    for number in range(_FAULTS.value):
        kind = _KINDS.value[number % len(_KINDS.value)]
        results.append(_run_fault(kind, number, disturbed, common, rng))
        print(results[-1], flush=True)
    ends = run_cluster([*common, f"--workdir={disturbed}"], count, workdir / "logs" / "last")
    found, expected = steps_logged(disturbed), steps_logged(undisturbed)
    difference = max((abs(found.get(step, float("inf")) - loss) for step, loss in expected.items()), default=0.0)
    print(f"last run: exit codes {[end.code for end in ends]}, largest difference of a loss {difference:.3g}\n")
    _print_table(results)
    print(json.dumps({"faults": results, "difference": difference, "codes": [end.code for end in ends]}))


def _run_fault(kind: str, number: int, workdir: Path, common: Sequence[str], rng: random.Random) -> dict[str, object]:
    count, every = _PROCESSES.value, _EVERY.value
    begin = newest_checkpoint(workdir)
    process = 0 if kind == "coordinator_killed" else rng.randrange(1, count) if kind == "kill" else rng.randrange(count)
    step = begin + rng.randint(2, 2 * every)
    # Data are counted in batches since the start, other delays in seconds.
    delay = float(rng.randint(2, 2 * every)) if kind.startswith("loader") else rng.choice([0.0, rng.uniform(0, 0.3)])
    logs = Path(_WORKDIR.value) / "logs" / f"{number:03d}_{kind}"
    fault = Fault(kind, process, step, delay, str(logs / "mark"))
    # A start whose fault does not end it would run to the last step.
    stop = f"--config.stages.stage_1.stop_at={begin + 3 * every}"
    ends = run_cluster([*common, stop, f"--workdir={workdir}"], count, logs, fault=fault)
    mark = Path(fault.mark)
    happened = float(mark.read_text()) if mark.exists() else None
    others = [end for index, end in enumerate(ends) if index != process]
    reached = max(steps_logged(workdir), default=0)
    return {
        "kind": kind,
        "process": process,
        "step": step,
        "codes": [end.code for end in ends],
        "went_on": all(end.code == 0 for end in ends),
        "named": is_named(fault, ends, count),
        "seconds": None if happened is None else round(max(end.time for end in others) - happened, 2),
        "lost_steps": reached - newest_checkpoint(workdir),
    }


def _print_table(results: Sequence[dict[str, object]]) -> None:
    print("kind                faults  went on  codes of the others   named  seconds (median, most)  lost steps (mean)")
    for kind in KINDS:
        those = [result for result in results if result["kind"] == kind and result["seconds"] is not None]
        if not those:
            continue
        codes = sorted({c for one in those for i, c in enumerate(one["codes"]) if i != one["process"]})  # type: ignore
        seconds = [float(str(one["seconds"])) for one in those]
        lost = [int(str(one["lost_steps"])) for one in those]
        print(
            f"{kind:<19} {len(those):>6}  {sum(bool(one['went_on']) for one in those):>7}  {codes!s:<20}  "
            f"{sum(bool(one['named']) for one in those):>5}  {median(seconds):>8.1f} {max(seconds):>8.1f}        "
            f"{sum(lost) / len(lost):>5.1f}"
        )


def run() -> None:
    """Runs `benchmarks.faults`."""
    # Everything after -- is for janus-train.
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    rest, sys.argv = sys.argv[split + 1 :], sys.argv[:split]
    cli.run(lambda _: main(rest), name="benchmarks.faults")


if __name__ == "__main__":
    run()
