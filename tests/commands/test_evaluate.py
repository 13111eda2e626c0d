"""The command: POPE in the authors' files, a tiny checkpoint, and figures; then mistakes."""

import json
import subprocess
import sys
import time

import pytest

from janus_jax.evaluation.registry import BENCHMARKS
from tests.commands.conftest import environment, run
from tests.evaluation.asking import put_picture
from tests.training.test_processes import together

DEVICES = "--xla_force_host_platform_device_count={}"
SPLITS = ("random", "popular", "adversarial")


def put_pope(folder, pictures=True):
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = [
            {"question_id": n, "image": f"{n}.jpg", "text": "Is there a cat?", "label": label}
            for n, label in enumerate(["yes", "no"])
        ]
        (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for n in range(2 if pictures else 1):
        put_picture(folder / "val2014" / f"{n}.jpg", n)
    return folder


def command(checkpoint, folder):
    data, out = folder / "data", folder / "out"
    flags = [f"--model={checkpoint}", "--benchmark=pope", f"--data={data}", f"--out={out}", "--dtype=float32"]
    return ["-m", "launch.evaluate", *flags]


def evaluate(checkpoint, folder, *more, devices=1):
    return run(*command(checkpoint, folder)[1:], *more, XLA_FLAGS=DEVICES.format(devices))


@pytest.fixture(scope="module")
def done(checkpoint, tmp_path_factory):
    """A folder with the data and what one run made of it, and what the run said."""
    folder = tmp_path_factory.mktemp("pope")
    put_pope(folder / "data")
    ran = evaluate(checkpoint, folder, "--batch_size=4")
    assert ran.returncode == 0, ran.stderr
    return folder, ran


def test_results_hold_the_figures_and_all_that_they_depend_on(done):
    folder, _ = done
    results = json.loads((folder / "out" / "results.json").read_text())
    assert {f"{part}.accuracy" for part in (*SPLITS, "mean")} <= set(results["scores"])
    assert results["number of questions"] == 6
    assert results["run"]["benchmark"] == "pope"
    assert (results["run"]["dtype"], results["run"]["seed"], results["run"]["limit"]) == ("float32", 0, None)
    assert results["config"]["name"] == "tiny"
    assert {"python", "jax", "flax"} <= set(results["versions"])


def test_every_answer_is_kept_and_written_for_the_scorer(done):
    folder, _ = done
    answers = [json.loads(line) for line in (folder / "out" / "answers.jsonl").read_text().splitlines()]
    assert {answer["id"] for answer in answers} == {f"{split}/{n}" for split in SPLITS for n in range(2)}
    for split in SPLITS:
        lines = (folder / "out" / "predictions" / f"coco_pope_{split}.jsonl").read_text().splitlines()
        texts = {answer["id"]: answer["answer"] for answer in answers}
        assert [json.loads(line)["text"] for line in lines] == [texts[f"{split}/{n}"] for n in range(2)]


def test_figures_and_progress_are_shown(done):
    _, ran = done
    assert "random.accuracy" in ran.stdout
    assert "6/6" in ran.stderr


def test_another_seed_is_refused_and_the_same_run_goes_on_without_asking(done, checkpoint):
    folder, first = done
    refused = evaluate(checkpoint, folder, "--seed=1")
    assert refused.returncode == 2
    assert "was begun with seed 0, not 1" in refused.stderr
    answers = (folder / "out" / "answers.jsonl").read_bytes()
    again = evaluate(checkpoint, folder, "--batch_size=2")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert (folder / "out" / "answers.jsonl").read_bytes() == answers


def test_the_list_needs_no_model_and_names_all_benchmarks():
    done = run("launch.evaluate", "--list", JAX_PLATFORMS="nowhere")
    assert done.returncode == 0, done.stderr
    for name, benchmark in BENCHMARKS.items():
        assert name in done.stdout
        assert all(line in done.stdout for line in benchmark.layout.splitlines())


MISTAKES = {
    "no benchmark": (["--benchmark="], "--benchmark is empty; there are pope, mme"),
    "no such benchmark": (["--benchmark=poope"], "There is no benchmark 'poope'; there are pope"),
    "no data": (["--data="], "--data is required for pope; --list shows what is to lie there."),
    "no such data": (["--data=absent"], "coco_pope_random.json does not exist"),
    "a missing picture": (["--data=no_picture"], "1.jpg, the picture of question random/1, is missing"),
    "several in one folder": (["--benchmark=pope,gqa"], "data/pope/coco_pope_random.json does not exist"),
    "an option of none": (["--option=circular=true"], "--option circular=true is of none of pope"),
    "an option without a value": (["--option=circular"], "--option circular has no value"),
    "another value": (["--benchmark=mmbench", "--option=circular=maybe"], "must be one of false, true"),
    "a file in the way": (["--out=taken"], "taken cannot be written"),
    "no such model": (["--model=absent"], "absent does not exist"),
    "truncated weights": (["--model=truncated_weights"], "model.safetensors is truncated"),
    "no tokenizer": (["--model=without_tokenizer"], "tokenizer.json is missing"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_before_any_device_is_looked_for(refuses, spoiled, checkpoint, mistake):
    put_pope(spoiled / "data")
    put_pope(spoiled / "no_picture", pictures=False)
    arguments, words = MISTAKES[mistake]
    given = {argument.split("=")[0] for argument in arguments}
    usual = {"--model": checkpoint, "--benchmark": "pope", "--data": "data", "--out": "out"}
    arguments = [*arguments, *(f"{flag}={value}" for flag, value in usual.items() if flag not in given)]
    assert words in refuses("launch.evaluate", *arguments, cwd=spoiled)
    assert not (spoiled / "out").exists()


def test_what_is_required_is_said(refuses, tmp_path):
    assert "is required" in refuses("launch.evaluate", cwd=tmp_path)


def same_results(one, other):
    return all(one[name] == other[name] for name in ("scores", "run", "number of questions"))


@pytest.mark.slow
def test_a_run_that_was_killed_has_the_results_of_one_that_was_not(done, checkpoint, tmp_path):
    folder, _ = done
    put_pope(tmp_path / "data")
    answers = tmp_path / "out" / "answers.jsonl"
    killed = subprocess.Popen(
        [sys.executable, *command(checkpoint, tmp_path), "--batch_size=1"],
        env=environment(XLA_FLAGS=DEVICES.format(1)),
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (answers.exists() and answers.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
    before = answers.read_text()
    assert before
    again = evaluate(checkpoint, tmp_path)
    assert again.returncode == 0, again.stderr
    after = answers.read_text()
    assert after.startswith(before[: before.rfind("\n") + 1])
    assert len({json.loads(line)["id"] for line in after.splitlines()}) == len(after.splitlines()) == 6
    one, two = (json.loads((place / "out" / "results.json").read_text()) for place in (folder, tmp_path))
    assert same_results(one, two)


@pytest.mark.slow
def test_eight_devices_have_the_results_of_one(done, checkpoint, tmp_path):
    folder, _ = done
    put_pope(tmp_path / "data")
    spread = evaluate(checkpoint, tmp_path, devices=8)
    assert spread.returncode == 0, spread.stderr
    one, eight = (json.loads((place / "out" / "results.json").read_text()) for place in (folder, tmp_path))
    assert (one["devices"]["mesh"], eight["devices"]["mesh"]) == (None, "-1,1,1")
    assert same_results(one, eight)


@pytest.mark.slow
def test_two_processes_have_the_results_of_one(done, checkpoint, tmp_path):
    folder, _ = done
    arguments = [f"--model={checkpoint}", f"--data={folder / 'data'}", f"--out={tmp_path}", "--dtype=float32"]
    outputs = together(2, "-m", "launch.evaluate", "--benchmark=pope", "--distributed", "--batch_size=2", *arguments)
    assert "random.accuracy" in outputs[0]
    assert "random.accuracy" not in outputs[1]
    journals = [(tmp_path / f"answers.{index}.jsonl").read_text().splitlines() for index in range(2)]
    assert [len(lines) for lines in journals] == [3, 3]
    one, two = (json.loads((place / "results.json").read_text()) for place in (folder / "out", tmp_path))
    assert same_results(one, two)
    assert two["devices"]["processes"] == 2
