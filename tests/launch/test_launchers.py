"""The files that start a run elsewhere, on machines that are made up: programs that stand in for a cluster's."""

import math
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from janus_jax.errors import ExitCode
from tests.commands.conftest import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*/*.sh"), *LAUNCH.glob("*/*.sbatch")])
MANIFESTS = sorted(LAUNCH.glob("gke/*.yaml"))


@pytest.fixture
def stand_in(tmp_path):
    """Puts a program of a name on the PATH of `run`; each notes how it was called in `calls`."""
    (tmp_path / "bin").mkdir()

    def make(name, body=""):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{tmp_path}/calls"\n{body}\n')
        program.chmod(0o755)

    return make


@pytest.fixture
def start(tmp_path):
    """Starts a script with nothing but the stand-ins and the system's own programs."""

    def begin(script, *arguments, **variables):
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)} | variables
        return subprocess.Popen(
            ["bash", str(LAUNCH / script), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


@pytest.fixture
def calls(tmp_path):
    def read():
        return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []

    return read


SHOWS = '[[ $1 != show ]] || echo "JobId=17 JobName=janus JobState={} Reason=None"'
JOB = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-4]"}


@pytest.mark.parametrize("code", ExitCode)
def test_a_job_is_requeued_on_preemption_alone(code, stand_in, start, calls):
    stand_in("srun", f"exit {int(code)}")
    stand_in("scontrol", SHOWS.format("RUNNING"))
    job = start("slurm/train.sbatch", "--config", "c.py", **JOB)
    job.communicate(timeout=60)
    assert job.returncode == code
    srun, *rest = calls()
    assert srun.endswith("python -m launch.train --distributed --config c.py")
    assert [call for call in rest if "show" not in call] == (
        ["scontrol requeue 17"] if code is ExitCode.PREEMPTED else []
    )


def test_a_job_that_was_cancelled_does_not_come_back(stand_in, start, calls):
    stand_in("srun", f"exit {int(ExitCode.PREEMPTED)}")
    stand_in("scontrol", SHOWS.format("CANCELLED"))
    job = start("slurm/train.sbatch", **JOB)
    job.communicate(timeout=60)
    assert job.returncode == ExitCode.PREEMPTED
    assert not any("requeue" in call for call in calls())


@pytest.mark.parametrize("notice", ["USR1", "TERM"])
def test_a_notice_is_passed_on_and_the_job_waits_for_the_save(notice, stand_in, start, calls, tmp_path):
    stand_in(
        "srun",
        f"trap 'sleep 1; touch {tmp_path}/saved; exit 75' USR1; touch {tmp_path}/up; while :; do sleep 0.1; done",
    )
    stand_in("scontrol", SHOWS.format("RUNNING"))
    job = start("slurm/train.sbatch", **JOB)
    for _ in range(600):
        if (tmp_path / "up").exists():
            break
        time.sleep(0.1)
    subprocess.run(["kill", f"-{notice}", str(job.pid)], check=True)
    job.communicate(timeout=60)
    assert job.returncode == ExitCode.PREEMPTED
    assert (tmp_path / "saved").exists()
    assert calls()[-1] == "scontrol requeue 17"


# One state after the other of what was queued for; the run on its first machine ends with CODE.
GCLOUD = """
case "$*" in
  *describe*)
    n=$(cat "$HOME/n" 2>/dev/null || echo 0); echo $((n + 1)) > "$HOME/n"
    states=(NONE WAITING_FOR_RESOURCES ACTIVE SUSPENDED NONE ACTIVE)
    [[ $n -ge 4 ]] && echo CODE > "$HOME/code"
    [[ ${states[n]} == NONE ]] && exit 1
    echo "${states[n]}" ;;
  *ssh*) cat "$HOME/code" 2>/dev/null ;;
esac
exit 0
"""
POD = {"PROJECT": "p", "ZONE": "z", "IMAGE": "host/image", "SHARE": "s:/", "PAUSE": "0"}


@pytest.mark.parametrize("code", [ExitCode.SUCCESS, ExitCode.USER_ERROR])
def test_a_pod_that_was_taken_away_is_queued_for_again(code, stand_in, start, calls):
    stand_in("gcloud", GCLOUD.replace("CODE", str(int(code))))
    pod = start("tpu/train.sh", "mine", "v5litepod-16", "--workdir", "/shared/a b", **POD)
    out, err = pod.communicate(timeout=60)
    assert (pod.returncode, err) == (code, "")
    assert out.splitlines()[-1] == f"mine: launch.train ended with {int(code)}."
    done = [call.split()[4] for call in calls() if "queued-resources" in call]
    assert [word for word in done if word != "describe"] == ["create", "delete", "create", "delete"]


CURL = """
case "$*" in *image) echo host/image ;; *share) echo s:/ ;; *arguments) printf '%q ' --workdir '/shared/a b' ;; esac
"""


@pytest.mark.parametrize(("codes", "ended"), [("75 0", 0), ("2", 2)])
def test_a_machine_of_a_pod_goes_on_after_a_notice_alone(codes, ended, stand_in, start, calls, tmp_path):
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes.split()))
    stand_in("curl", CURL)
    for name in ("gcloud", "mkdir", "mountpoint"):
        stand_in(name)
    stand_in(
        "docker",
        '[[ $1 == run ]] || exit 0\nprintf "<%s>" "${@: -2}" >> "$HOME/given"\n'
        'code=$(head -1 "$HOME/codes"); sed -i 1d "$HOME/codes"; exit "$code"',
    )
    machine = start("tpu/startup.sh", STATE=str(tmp_path), PAUSE="0")
    _, err = machine.communicate(timeout=60)
    assert (machine.returncode, err) == (0, "")
    assert (tmp_path / "exit_code").read_text() == f"{ended}\n"
    assert (tmp_path / "given").read_text() == "<--workdir></shared/a b>" * len(codes.split())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_know_preemption_by_its_code(script):
    assert re.findall(r"PREEMPTED=(\d+)", script.read_text()) == [str(int(ExitCode.PREEMPTED))]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_give_up_on_what_would_fail_again_and_on_nothing_else(manifest):
    spec = yaml.safe_load(manifest.read_text())["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    [rule] = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    for job in spec["replicatedJobs"]:
        [rule] = job["template"]["spec"]["podFailurePolicy"]["rules"]
        codes = rule["onExitCodes"]
        assert (rule["action"], codes["operator"]) == ("FailJob", "In")
        assert codes["values"] == [ExitCode.USER_ERROR, ExitCode.DIVERGED, ExitCode.DISK_FULL]
        [container] = job["template"]["spec"]["template"]["spec"]["containers"]
        assert codes["containerName"] == container["name"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_agree_with_themselves_on_the_size(manifest):
    whole = yaml.safe_load(manifest.read_text())
    [job] = whole["spec"]["replicatedJobs"]
    job_spec = job["template"]["spec"]
    pod = job_spec["template"]["spec"]
    [container] = pod["containers"]
    assert job_spec["parallelism"] == job_spec["completions"]
    if topology := pod["nodeSelector"].get("cloud.google.com/gke-tpu-topology"):
        chips = container["resources"]["limits"]["google.com/tpu"] * job_spec["completions"]
        assert math.prod(map(int, topology.split("x"))) == chips
    else:
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert int(variables["JAX_NUM_PROCESSES"]) == job_spec["completions"]
        name = whole["metadata"]["name"]
        assert variables["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-{job['name']}-0-0.{name}:")


def test_images_are_built_of_files_that_are_there():
    for file in LAUNCH.glob("docker/*.Dockerfile"):
        for names in re.findall(r"^COPY (.+) \S+$", file.read_text(), re.M):
            assert all((ROOT / name).exists() for name in names.split()), (file, names)
        extra = re.search(r"'\.\[(\w+)\]'", file.read_text())[1]
        assert f'"{extra}": [' in Path(ROOT / "setup.py").read_text()
