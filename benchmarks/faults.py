"""Lets processes of a training run fail in different ways and measures how soon the run ends, and what it loses.

    python -m benchmarks.faults --workdir /tmp/faults --faults 80 -- --config tests/training/runs.py ...

The arguments after `--` are those of `janus-train`. Four processes on this machine train one run. Each start of the run
has one fault (`benchmarks.fault_injection`) at a random step of a random process, the kinds in turn. After the run has
ended, the next start resumes it. At the end the run takes some more steps without a fault, and the losses of all steps
are compared with those of an undisturbed run. Faults of a bucket happen to a second run, whose workdir is on a local
server of a bucket. To continue an interrupted benchmark, repeat its command.

    WORKDIR/faults.jsonl   one line for each fault
    WORKDIR/logs/          output of all processes

For each kind the table shows the number of faults, the number of runs that went on, the exit codes of the processes
that did not fail, whether their log names the process that did, the time until all of them had ended, and the steps
that the next start repeated.
"""

import contextlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from absl import flags

from benchmarks.fault_injection import BUCKET_KINDS, KINDS, Fault
from benchmarks.fault_runs import Cluster, Ended, is_named, newest_checkpoint, steps_logged
from benchmarks.shared import machine
from janus_jax.buckets import as_path
from janus_jax.commands import cli
from janus_jax.errors import JanusError
from tests.bucket_server import BUCKET, BucketServer

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs", required=True)
_FAULTS = flags.DEFINE_integer("faults", 80, "number of faults", lower_bound=0)
_KINDS = flags.DEFINE_list("kinds", list(KINDS), "kinds of faults")
_PROCESSES = flags.DEFINE_integer("processes", 4, "processes", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 1000, "steps of the run; it stops earlier, after the last fault", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 4, "steps between checkpoints", lower_bound=1)
_LOST = flags.DEFINE_float("lost_seconds", 10.0, "see config.resources.lost_seconds", lower_bound=1)
_WATCHDOG = flags.DEFINE_float("watchdog_seconds", 30.0, "limit of a step", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "seed of the faults")


class Benchmark:
    """The runs with faults.

    Args:
      arguments: Arguments of `janus-train`.
      cluster: Processes of all runs.
      bucket: Server of a bucket.
    """

    def __init__(self, arguments: Sequence[str], cluster: Cluster, bucket: BucketServer) -> None:
        self._folder, self._cluster, self._bucket = Path(_WORKDIR.value), cluster, bucket
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / "faults.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.results: list[dict[str, Any]] = list(map(json.loads, lines))
        self._arguments = (
            *arguments,
            f"--config.intervals.save={_EVERY.value}",
            "--config.intervals.report=1",
            f"--config.stages.stage_1.steps={_STEPS.value}",
            f"--config.resources.lost_seconds={_LOST.value}",
            f"--config.resources.watchdog_minutes={_WATCHDOG.value / 60}",
        )

    def run_faults(self) -> None:
        """Lets processes fail until there are enough faults."""
        while len(happened := [result for result in self.results if result["seconds"] is not None]) < _FAULTS.value:
            numbers = Counter(result["kind"] for result in happened)
            kind = min(_KINDS.value, key=lambda kind: numbers[kind])
            result = self._run_fault(kind, len(self.results))
            self.results.append(result)
            with self._file.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print({name: value for name, value in result.items() if name != "losses"}, flush=True)

    def differences(self) -> dict[str, float]:
        """Finishes the runs, and returns the largest difference of their losses from those of an undisturbed run."""
        found = dict[str, list[tuple[int, float]]]()
        for workdir in (self._folder / "disturbed", self._bucket_workdir):
            if newest := newest_checkpoint(workdir):
                self._finish(workdir, newest + _EVERY.value)
                found[str(workdir)] = list(steps_logged(workdir).items())
        # Also losses of steps that a later start has repeated, and those on the bucket of an earlier part.
        found["each start"] = [(int(step), loss) for one in self.results for step, loss in one["losses"].items()]
        undisturbed = self._folder / "undisturbed"
        self._finish(undisturbed, max((step for losses in found.values() for step, _ in losses), default=0))
        expected = steps_logged(undisturbed)
        return {
            name: max((abs(expected[step] - loss) for step, loss in losses), default=0.0)
            for name, losses in found.items()
        }

    def figures(self) -> dict[str, Any]:
        """Returns the figures of each kind of fault, and the starts that ended before their fault."""
        kinds = {}
        for kind in KINDS:
            those = [one for one in self.results if one["kind"] == kind and one["seconds"] is not None]
            if not those:
                continue
            ended = [one["seconds"] for one in those if not one["went_on"]]
            kinds[kind] = {
                "faults": len(those),
                "went_on": len(those) - len(ended),
                "codes": sorted({code for one in those for i, code in enumerate(one["codes"]) if i != one["process"]}),
                "named": sum(one["named"] for one in those),
                "seconds": {"least": min(ended), "median": median(ended), "most": max(ended)} if ended else None,
                "lost_steps": {"mean": mean(lost := [one["lost_steps"] for one in those]), "most": max(lost)},
            }
        return {"kinds": kinds, "ended_early": [one["codes"] for one in self.results if one["seconds"] is None]}

    @property
    def _bucket_workdir(self) -> Path:
        return as_path(f"gs://{BUCKET}/disturbed")

    def _finish(self, workdir: Path, step: int) -> None:
        for number, end in enumerate(self._run(workdir, step, self._folder / "logs" / f"last_{workdir.name}")):
            if end.code:
                raise JanusError(f"Process {number} of {workdir} has failed with code {end.code}: {end.log[-2000:]}")

    def _run(self, workdir: Path, stop: int, logs: Path, fault: Fault | None = None) -> list[Ended]:
        arguments = [*self._arguments, f"--workdir={workdir}", f"--config.stages.stage_1.stop_at={stop}"]
        return self._cluster.run(arguments, logs, fault=fault, bucket=self._bucket)

    def _run_fault(self, kind: str, number: int) -> dict[str, Any]:
        count, every, rng = _PROCESSES.value, _EVERY.value, random.Random(f"{_SEED.value}/{number}")
        workdir = self._bucket_workdir if kind in BUCKET_KINDS else self._folder / "disturbed"
        begin = newest_checkpoint(workdir)
        process = rng.randrange(count)
        if kind in ("kill", "coordinator_killed"):
            process = 0 if kind == "coordinator_killed" else rng.randrange(1, count)
        step = begin + rng.randint(2, 2 * every)
        # Data are counted in batches since the start, other delays in seconds.
        delay = rng.choice([0.0, rng.uniform(0, 0.3)])
        if kind.startswith("loader"):
            delay = float(rng.randint(2, 2 * every))
        logs = self._folder / "logs" / f"{number:03d}_{kind}"
        fault = Fault(kind, process, step, delay, str(logs / "mark"))
        # A start whose fault does not end it would run to the last step. A slow process is named after three reports.
        ends = self._run(workdir, begin + (6 if kind == "loader_crawls" else 3) * every, logs, fault)
        mark = Path(fault.mark)
        happened = float(mark.read_text()) if mark.exists() else None
        others = [end for index, end in enumerate(ends) if index != process]
        losses = steps_logged(workdir)
        return {
            "number": number,
            "kind": kind,
            "workdir": str(workdir),
            "process": process,
            "step": step,
            "codes": [end.code for end in ends],
            "went_on": all(end.code == 0 for end in ends),
            "named": is_named(fault, ends),
            "seconds": None if happened is None else round(max(end.time for end in others) - happened, 2),
            "lost_steps": max(losses, default=0) - newest_checkpoint(workdir),
            "load": round(os.getloadavg()[0], 1),
            "losses": {step: loss for step, loss in losses.items() if step > begin},
        }


def print_table(figures: dict[str, Any]) -> None:
    """Prints the results by kind."""
    print("kind                faults  went on  codes of the others   named  seconds (median, most)  lost steps")
    for kind, row in figures["kinds"].items():
        seconds = f"{row['seconds']['median']:>8.1f} {row['seconds']['most']:>8.1f}" if row["seconds"] else " " * 17
        print(
            f"{kind:<19} {row['faults']:>6}  {row['went_on']:>7}  {row['codes']!s:<20}  "
            f"{row['named']:>5}  {seconds}        {row['lost_steps']['mean']:>5.1f}"
        )
    print(f"starts that ended before their fault: {len(figures['ended_early'])} {figures['ended_early'] or ''}")


@contextlib.contextmanager
def _bucket() -> Iterator[BucketServer]:
    """Context manager of a server of a bucket. This process and its children use it for gs:// paths."""
    server = BucketServer()
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        server.stop()


def main(arguments: Sequence[str]) -> None:
    """Runs the faults and prints the table and the figures."""
    with _bucket() as bucket, Cluster(_PROCESSES.value) as cluster:
        benchmark = Benchmark(arguments, cluster, bucket)
        benchmark.run_faults()
        figures = benchmark.figures()
        print_table(figures)
        differences = benchmark.differences()
        for name, difference in differences.items():
            print(f"{name}: largest difference of a loss from the undisturbed run: {difference:.3g}")
        print(json.dumps(figures | {"loss_differences": differences} | machine()))


def run() -> None:
    """Runs `benchmarks.faults`."""
    # Everything after -- is for janus-train.
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    rest, sys.argv = sys.argv[split + 1 :], sys.argv[:split]
    cli.run(lambda _: main(rest), name="benchmarks.faults")


if __name__ == "__main__":
    run()
