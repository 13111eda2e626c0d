"""Cluster launchers, run with fake versions of the programs that they call, and the manifests of Kubernetes."""

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
def fake(tmp_path):
    """Returns a function that makes a fake program, which appends its arguments to the file `calls`."""
    (tmp_path / "bin").mkdir()

    def make(name, body=""):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{tmp_path}/calls"\n{body}\n')
        program.chmod(0o755)

    return make


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts a script with only the fake and the system's programs on the PATH."""

    def start_script(script, *arguments, **variables):
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)} | variables
        return subprocess.Popen(
            ["bash", str(LAUNCH / script), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start_script


@pytest.fixture
def calls(tmp_path):
    """Returns a function that reads the calls of the fake programs."""

    def read():
        return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []

    return read


SHOWS = '[[ $1 != show ]] || echo "JobId=17 JobName=janus JobState={} Reason=None"'
JOB = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-4]"}


RETRIED = (ExitCode.PREEMPTED, ExitCode.STALLED, ExitCode.STORAGE_UNAVAILABLE, ExitCode.DISK_FULL)


@pytest.mark.parametrize("code", ExitCode)
def test_job_is_requeued_only_after_failures_that_can_pass(code, fake, start, calls):
    fake("srun", f"exit {int(code)}")
    fake("scontrol", SHOWS.format("RUNNING"))
    job = start("slurm/train.sbatch", "--config", "c.py", **JOB)
    job.communicate(timeout=60)
    assert job.returncode == code
    srun, *rest = calls()
    assert srun.endswith("janus-train --distributed --config c.py")
    assert [call for call in rest if "show" not in call] == (["scontrol requeue 17"] if code in RETRIED else [])


@pytest.mark.parametrize(("restarts", "is_requeued"), [("19", True), ("20", False)])
@pytest.mark.parametrize("code", [137, ExitCode.STORAGE_UNAVAILABLE, ExitCode.DISK_FULL])
def test_job_is_requeued_a_limited_number_of_times(code, restarts, is_requeued, fake, start, calls):
    fake("srun", f"exit {int(code)}")
    fake("scontrol", SHOWS.format("RUNNING"))
    job = start("slurm/train.sbatch", SLURM_RESTART_COUNT=restarts, **JOB)
    job.communicate(timeout=60)
    assert any("requeue" in call for call in calls()) == is_requeued


def test_cancelled_job_is_not_requeued(fake, start, calls):
    fake("srun", f"exit {int(ExitCode.PREEMPTED)}")
    fake("scontrol", SHOWS.format("CANCELLED"))
    job = start("slurm/train.sbatch", **JOB)
    job.communicate(timeout=60)
    assert job.returncode == ExitCode.PREEMPTED
    assert not any("requeue" in call for call in calls())


@pytest.mark.parametrize("notice", ["USR1", "TERM"])
def test_preemption_notice_is_passed_on_and_the_job_waits_for_the_save(notice, fake, start, calls, tmp_path):
    fake(
        "srun",
        f"trap 'sleep 1; touch {tmp_path}/saved; exit 75' USR1; touch {tmp_path}/up; while :; do sleep 0.1; done",
    )
    fake("scontrol", SHOWS.format("RUNNING"))
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


# A fake gcloud. Each `describe` prints the next state of the queued resource; `ssh` prints CODE after the fourth.
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
POD = {"PROJECT": "p", "ZONE": "z", "IMAGE": "host/image", "BUCKET": "b", "PAUSE": "0"}


@pytest.mark.parametrize("code", [ExitCode.SUCCESS, ExitCode.USER_ERROR])
def test_preempted_pod_is_requested_again(code, fake, start, calls):
    fake("gcloud", GCLOUD.replace("CODE", str(int(code))))
    pod = start("tpu/train.sh", "mine", "v5litepod-16", "--workdir", "gs://b/a b", **POD)
    out, err = pod.communicate(timeout=60)
    assert (pod.returncode, err) == (code, "")
    assert out.splitlines()[-1] == f"mine: janus-train exited with {int(code)}."
    done = [call.split()[4] for call in calls() if "queued-resources" in call]
    assert [word for word in done if word != "describe"] == ["create", "delete", "create", "delete"]


CURL = """
case "$*" in *image) echo host/image ;; *bucket) echo b ;; *arguments) printf '%q ' --workdir 'gs://b/a b' ;; esac
"""


@pytest.mark.parametrize(("codes", "ended"), [("75 76 69 74 0", 0), ("2", 2), ("74 74 74", 74)])
def test_pod_machine_resumes_only_after_failures_that_can_pass(codes, ended, fake, start, calls, tmp_path):
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes.split()))
    fake("curl", CURL)
    for name in ("gcloud", "gcsfuse", "mkdir", "mountpoint"):
        fake(name)
    fake(
        "docker",
        '[[ $1 == run ]] || exit 0\nprintf "<%s>" "${@: -2}" >> "$HOME/given"\n'
        'code=$(head -1 "$HOME/codes"); sed -i 1d "$HOME/codes"; exit "$code"',
    )
    machine = start("tpu/startup.sh", STATE=str(tmp_path), PAUSE="0", JANUS_MAX_RESTARTS="2")
    _, err = machine.communicate(timeout=60)
    assert (machine.returncode, err) == (0, "")
    assert (tmp_path / "exit_code").read_text() == f"{ended}\n"
    assert (tmp_path / "given").read_text() == "<--workdir><gs://b/a b>" * len(codes.split())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_use_the_exit_code_of_preemption(script):
    for code in (ExitCode.PREEMPTED, ExitCode.STALLED, ExitCode.STORAGE_UNAVAILABLE):
        assert re.findall(rf"{code.name}=(\d+)", script.read_text()) == [str(int(code))]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_retry_preemption_but_no_permanent_failure(manifest):
    spec = yaml.safe_load(manifest.read_text())["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    [rule] = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    for job in spec["replicatedJobs"]:
        [rule] = job["template"]["spec"]["podFailurePolicy"]["rules"]
        codes = rule["onExitCodes"]
        assert (rule["action"], codes["operator"]) == ("FailJob", "In")
        assert codes["values"] == [ExitCode.USER_ERROR, ExitCode.DIVERGED]
        [container] = job["template"]["spec"]["template"]["spec"]["containers"]
        assert codes["containerName"] == container["name"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifest_sizes_agree(manifest):
    content = yaml.safe_load(manifest.read_text())
    [job] = content["spec"]["replicatedJobs"]
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
        name = content["metadata"]["name"]
        assert variables["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-{job['name']}-0-0.{name}:")


def test_docker_images_copy_existing_files():
    for file in LAUNCH.glob("docker/*.Dockerfile"):
        for names in re.findall(r"^COPY (.+) \S+$", file.read_text(), re.M):
            assert all((ROOT / name).exists() for name in names.split()), (file, names)
        extras = re.search(r"'\.\[([\w,]+)\]'", file.read_text())[1]
        assert all(f'"{extra}": [' in Path(ROOT / "setup.py").read_text() for extra in extras.split(","))
