"""Training of a stage: resume, initial parameters and errors."""

import itertools
import json
import os
import re
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest

from janus_jax.config import PRESETS
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.errors import DataChanged, Diverged, Interrupted, JanusError, Preempted
from janus_jax.sharding import make_mesh
from janus_jax.training import data_task
from janus_jax.training.array_batches import opened
from janus_jax.training.callbacks.samples import GenerateSamples
from janus_jax.training.init_from import initial_state, open_initialisation
from janus_jax.training.param_paths import merge
from janus_jax.training.preemption import Preemption
from janus_jax.training.recipe import DataOptions
from janus_jax.training.setup import set_up_stage
from janus_jax.training.stage_config import Initialisation
from janus_jax.training.train_step import put_batch
from janus_jax.training.trainer import TrainingTask, train
from tests import tiny
from tests.training import runs, toy


def logged(workdir, *names, stage=1):
    """Metrics of each step whose names start with one of these."""
    lines = map(json.loads, (workdir / f"stage_{stage}" / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key == "step" or key.startswith(names)} for line in lines]


def params(state):
    return merge(state.params, state.frozen)


def assert_equal(found, expected):
    for name, (one, other) in enumerate(zip(*map(jax.tree.leaves, (found, expected)), strict=True)):
        np.testing.assert_array_equal(one, other, err_msg=str(name))


def preempted(recipe, workdir, monkeypatch, at):
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", lambda self, step: step == at)
        with pytest.raises(Preempted, match=f"Preempted at step {at}"):
            runs.run(recipe, workdir)


@pytest.mark.parametrize("kind", ["janus", pytest.param("flow", marks=pytest.mark.nightly)])
def test_preempted_run_resumes_bit_for_bit(kind, tmp_path, monkeypatch):
    recipe, (workdir, state) = runs.recipe(kind=kind), runs.finished(kind)
    preempted(recipe, tmp_path, monkeypatch, at=3)
    assert_equal(runs.run(recipe, tmp_path), state)
    names = ("loss", "grad_norm", *(f"tokens/{term}" for term in ("text", "understanding", "generation", "alignment")))
    curve, undisturbed = logged(tmp_path, *names), logged(workdir, *names)
    assert curve == [line for line in undisturbed if "loss" in line]
    assert [line["step"] for line in curve] == [1, 2, 3, 4]


@pytest.mark.nightly
def test_a_stage_with_changed_data_starts_a_new_order_once(tmp_path, monkeypatch):
    preempted(runs.recipe(), tmp_path / "a", monkeypatch, at=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    changed = runs.recipe(phases=(Phase(None, {"understanding": 1, "generation": 3}),))
    with pytest.raises(DataChanged, match=r"saved with phases .* with --config\.data\.restart=True\.$"):
        runs.run(changed, tmp_path / "a")
    allowed = replace(changed, data=DataOptions(restart=True))
    expected = runs.run(allowed, tmp_path / "a")
    preempted(allowed, tmp_path / "b", monkeypatch, at=3)
    assert_equal(runs.run(allowed, tmp_path / "b"), expected)
    for folder in ("a", "b"):
        orders = [line for line in logged(tmp_path / folder, "data/order") if "data/order" in line]
        assert orders == [{"step": 2, "data/order": 1}]


class NumberedData:
    """Yields its number of records, the seed, and the step since its start. Its position belongs to that number."""

    example_ids = ()

    def __init__(self, records, start):
        self.records, self.start, self.count = records, start, 0

    def __next__(self):
        self.count += 1
        return self.records, self.start.seed(7), self.count

    def get_state(self):
        return {"records": self.records, "count": self.count}

    def set_state(self, state):
        if state["records"] != self.records:
            raise DataChanged(f"The data had {state['records']} records, and now have {self.records}")
        self.count = state["count"]

    def close(self):
        pass


def test_changed_data_start_a_new_order_once(tmp_path, monkeypatch):
    state, read = toy.make(0), []

    def step(state, batch):
        read.append(batch)
        return state, {"loss": np.float32(1), "finite": np.float32(1)}

    def run(records, last_step, restart=False):
        read.clear()
        task = TrainingTask(
            config={},
            abstract_state=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state),
            initial_state=lambda data: state,
            step=step,
            open_data=lambda start: opened(lambda start: NumberedData(records, start), start),
            counts=lambda batch, data: {},
            last_step=last_step,
            save_every=1,
            report_every=1,
            restart_data=restart,
        )
        train(task, tmp_path)
        return list(read)

    assert run(10, 2) == [(10, 7, 1), (10, 7, 2)]
    with pytest.raises(DataChanged, match=r"10 records, and now have 11; .* with --config\.data\.restart=True\.$"):
        run(11, 3)
    (batch,) = run(11, 3, restart=True)
    assert (batch[0], batch[2]) == (11, 1)
    assert batch[1] != 7
    assert run(11, 4, restart=True) == [(11, batch[1], 2)]
    assert run(11, 5) == [(11, batch[1], 3)]
    (other,) = run(10, 6, restart=True)
    assert other[1] not in (7, batch[1])
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line for line in lines if "data/order" in line] == [
        {"step": 2, "data/order": 1},
        {"step": 5, "data/order": 2},
    ]


@pytest.mark.slow
def test_interrupted_run_saves_and_resumes(tmp_path, monkeypatch, capsys):
    def interrupt(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(GenerateSamples, "before_step", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted, match=r"^Interrupted at step 2; a checkpoint is saved\."):
            runs.run(runs.recipe(), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    first = capsys.readouterr().out
    assert re.search(r"  parameters  [\d,]+, of which [\d,]+ are trained \([\d.]+%\)\n  devices     1 x cpu\n", first)
    assert "  mesh        one device\n" in first
    assert "  batch       2 sequences of 256 tokens, 512 tokens in all\n" in first
    assert "  held out    none (to add generation, set config.sources.generation.held_out)\n" in first
    assert re.search(r"compiling the training step \.\.\. [\d.]+ s\n", first)
    assert "Ctrl-C: the run saves a checkpoint" in first

    runs.run(replace(runs.recipe(), max_skipped=5), tmp_path)
    second = capsys.readouterr().out
    assert f"resuming after step 2 of 4, saved in {tmp_path / 'stage_1'}/checkpoints/2\n" in second
    changes = re.findall("changed since this checkpoint: (.*)", second)
    assert changes == ["config.max_skipped was 0 and is 5"]
    assert f"finished: step 4 is saved in {tmp_path / 'stage_1'}/checkpoints/4\n" in second
    assert "\r" not in first + second


@pytest.mark.nightly
def test_resumed_run_keeps_its_number_of_data_shards(tmp_path, monkeypatch):
    """The config of the resumed run has no effect on it."""
    recipe = replace(runs.recipe(), data_shards=2)
    undisturbed = runs.run(recipe, tmp_path / "undisturbed")
    preempted(recipe, tmp_path / "disturbed", monkeypatch, at=3)
    with pytest.raises(DataChanged, match=r"2 shards, which cannot share a batch of 3 .*config\.data\.restart=True"):
        runs.run(runs.recipe(batch_size=3), tmp_path / "disturbed")
    assert_equal(runs.run(runs.recipe(), tmp_path / "disturbed"), undisturbed)


@pytest.mark.slow
def test_finished_run_is_unchanged(capsys):
    workdir, state = runs.finished()
    capsys.readouterr()
    assert_equal(runs.run(runs.recipe(), workdir), state)
    out = capsys.readouterr().out
    assert "The run is finished, nothing is left to train. To train longer, raise config.stages.stage_1.steps;" in out
    assert "compiling" not in out


def test_metrics_are_written():
    (first, *_) = logged(runs.finished()[0], "")
    assert {"loss", "loss/understanding", "loss/generation", "grad_norm", "learning_rate"} < set(first)
    assert {"tokens/s", "samples/s", "flops/s", "data_wait"} < set(first)
    assert "loss/text" not in first


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Last state of stage 2, with a learning rate that changes nothing."""
    workdir = tmp_path_factory.mktemp("second") / "run"
    shutil.copytree(runs.finished()[0], workdir)
    optimizer = replace(runs.STAGE.optimizer, learning_rate=1e-30)
    recipe = runs.recipe(stage=2, optimizer=optimizer, stop_at=1)
    # The tokenizer is in the workdir from stage 1.
    return runs.run(replace(recipe, tokenizer=""), workdir)


@pytest.mark.slow
def test_stage_starts_from_the_previous_one(second):
    first = runs.finished()[1]
    assert set(second.params) - set(first.params) == {"llm"}
    assert_equal(params(second), params(first))


def test_held_out_loss_is_reported():
    losses = [line for line in logged(runs.finished()[0], "held_out") if len(line) > 1]
    names = {"held_out/loss", "held_out/loss/understanding", "held_out/loss/generation"}
    assert [(line["step"], set(line) - {"step"}) for line in losses] == [(2, names), (4, names)]
    assert losses[1]["held_out/loss"] < losses[0]["held_out/loss"]


def test_unfinished_previous_stage_is_reported():
    recipe = runs.recipe(stage=2)
    recipe = replace(recipe, stages=(replace(runs.STAGE, steps=9), recipe.current))
    with pytest.raises(JanusError, match=r"is at step 4 of 9; .*--config\.stages\.stage_1\.stop_at=4"):
        runs.run(recipe, runs.finished()[0])


def started(*start, mesh=None, **folders):
    """Initial parameters of a stage."""
    recipe = starting(*start, **folders)
    opened = open_initialisation(recipe, "workdir").checkpoints
    return params(initial_state(recipe, "workdir", set_up_stage(recipe, mesh), opened))


@pytest.mark.parametrize("mesh", [None, make_mesh(1, 2, 2, jax.devices()[:4])])
def test_stage_starts_from_a_model(mesh):
    assert_equal(started("model", model=str(runs.models() / "model"), mesh=mesh), tiny.stacked_params())


@pytest.mark.slow
def test_image_tokens_start_from_the_codebook():
    parts = {part: str(runs.models() / part) for part in ("llm", "und_encoder", "gen_encoder")}
    found, random = started("parts", **parts, image_tokens_from_codebook=True), started("parts", **parts)
    codes = tiny.stacked_params()["gen_encoder"]["codebook"]["embedding"]
    codes = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    embedding, head = np.asarray(found["gen_embed"]["embedding"]), np.asarray(found["gen_head"]["fc2"]["weight"])
    np.testing.assert_allclose(embedding, (codes - codes.mean(0)) / codes.std(), atol=1e-5)
    # Similar codes have similar rows of the head. The scale is that of random initialization.
    assert np.linalg.matrix_rank(head, tol=1e-3) == codes.shape[1]
    np.testing.assert_allclose(head.std(), head.shape[1] ** -0.5, rtol=1e-3)
    np.testing.assert_array_equal(found["gen_head"]["fc1"]["weight"], random["gen_head"]["fc1"]["weight"])


def test_stage_starts_from_parts_and_random_params():
    parts = {part: str(runs.models() / part) for part in ("llm", "und_encoder", "gen_encoder")}
    # One part comes from a whole model.
    found = started("parts", **parts | {"gen_encoder": str(runs.models() / "model")})
    for part in parts:
        assert_equal(found[part], tiny.stacked_params()[part])
    assert set(found) == set(tiny.stacked_params())
    assert np.std(found["gen_adaptor"]["fc2"]["weight"]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [0, 1])
def test_non_finite_gradients_end_the_run(tmp_path, allowed):
    recipe = replace(starting("model", model=str(runs.models() / "spoiled")), max_skipped=allowed)
    with pytest.raises(Diverged, match=f"At step {1 + allowed} the gradient is not finite"):
        runs.run(recipe, tmp_path)
    dumps = sorted((tmp_path / "stage_1" / "not_finite").iterdir())
    assert [file.name for file in dumps] == [f"step_{step}.process_0.json" for step in range(1, 2 + allowed)]
    head = json.loads(dumps[-1].read_text())["example_ids"]
    assert len(head) == runs.STAGE.batch_size
    assert all(re.match("(understanding|generation)", name) for sequence in head for name in sequence)


@pytest.mark.slow
def test_non_finite_step_is_skipped(tmp_path, monkeypatch):
    steps = itertools.count(1)

    def spoil(batch, mesh):
        # An unknown token's embedding is NaN.
        unknown = np.full_like(batch.tokens, runs.MODEL.llm.vocab_size)
        return put_batch(batch._replace(tokens=unknown) if next(steps) == 2 else batch, mesh)

    monkeypatch.setattr(data_task, "put_batch", spoil)
    state = runs.run(replace(runs.recipe(), max_skipped=1), tmp_path)
    assert int(state.step) == runs.STEPS
    assert [line["skipped"] for line in logged(tmp_path, "skipped")] == [0, 1, 1, 1]
    assert [line["loss"] is None for line in logged(tmp_path, "loss")] == [False, True, False, False]
    assert [file.name for file in (tmp_path / "stage_1" / "not_finite").iterdir()] == ["step_2.process_0.json"]


def changed(**fields):
    return replace(runs.recipe(), **fields)


def starting(*start, **folders):
    return runs.recipe(initialisation=Initialisation(*start, **folders))


def starting_from_llm():
    """A recipe that reads the parameters of all parts from the folder of an LLM."""
    return starting("parts", **dict.fromkeys(("llm", "und_encoder", "gen_encoder"), str(runs.models() / "llm")))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: changed(model="huge", architecture=None), "The model 'huge' is unknown"),
        (
            lambda: replace(runs.recipe(initialisation=Initialisation("random")), architecture=None),
            "config.model is empty; set it to a preset (janus_1.3b, janus_pro_1b,",
        ),
        (lambda: changed(tokenizer=""), "config.tokenizer is empty"),
        (lambda: changed(tokenizer="absent"), "absent/tokenizer.json is missing"),
        (lambda: starting("stage"), "stage 1 has no previous stage"),
        (lambda: starting("model", model="absent"), "absent"),
        (lambda: runs.recipe(stage=2), "stage_1/checkpoints has no checkpoint; run --config.stage=1 in"),
        (
            lambda: runs.recipe(trained=("lmm/*",)),
            "pattern 'lmm/*', which matches no parameter; the parts of the model",
        ),
        (starting_from_llm, "llm, which holds a LlamaConfig; a SiglipConfig is needed"),
        (
            lambda: replace(starting("model", model=str(runs.models() / "model")), architecture=PRESETS["tiny"]),
            "llm/layers/attn/k/weight has shape [3, 2, 16, 64] there and",
        ),
    ],
)
def test_user_errors_are_reported(make, sentence, tmp_path):
    with pytest.raises(JanusError, match=re.escape(sentence)):
        runs.run(make(), tmp_path)
