"""Compares policy optimization (GRPO) with a PyTorch implementation, in float32.

`data/janus_grpo` has the config and manifest of the set that its `base.json` names. The fast tests use the first 32 of
the 576 image tokens.
"""

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.released import LAYOUT, config_from_json
from janus_jax.batch import NO_IMAGE, PADDING_SEGMENT, Batch
from janus_jax.config import Execution
from janus_jax.models.janus import Janus
from janus_jax.pretrained import load_params
from janus_jax.training.rl.config import PolicyLoss
from janus_jax.training.rl.objective import (
    REFERENCE,
    PolicyBatch,
    PolicyObjective,
    action_terms,
    group_advantages,
)
from janus_jax.training.rl.token_policy import TokenPolicy, append_images
from janus_jax.training.train_step import Microbatching, compute_gradients
from tests.golden.conftest import DATA, GoldenSet, assert_close
from tests.golden.pseudo_weights import uniform

IMAGES, SHORT = 8, 32
LLM = "language_model."
LENGTHS = pytest.mark.parametrize("length", [SHORT, pytest.param(576, marks=pytest.mark.nightly)])


@dataclass(frozen=True)
class Reference(GoldenSet):
    """The base set with the language model of the reference."""

    scale: float = 0.0

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if not name.startswith(LLM):
            return value
        factor = 1 + self.scale * uniform(f"reference.{name}", value.shape, self.salt)
        return (value * factor).astype(np.float32)


class GoldenPolicy:
    """Model, sequences and expected values of the golden set."""

    def __init__(self, path):
        base = json.loads((path / "base.json").read_text())
        self.salt = int(base["salt"])
        with np.load(path / "expected.npz") as file:
            self.expected = {name: file[name] for name in file.files}
        self.base = Reference((path / base["base"]).resolve(), float(self.expected["reference_scale"]))
        self.base.__dict__["salt"] = self.salt
        self.config = config_from_json(JsonObject(self.base.config, "config.json"), self.base.shapes)
        self.model = Janus(self.config, Execution())

    def read(self, tensors, *parts):
        """Returns some parts of the model."""
        units = [unit for unit in LAYOUT.map(model_parameters(self.config)) if unit.parameter.keys[0] in parts]
        values = ((unit.parameter.keys, unit.layer, unit.read(tensors)) for unit in units)
        return load_params(values, self.config, self.model.execution, mesh=None)

    @cached_property
    def params(self):
        """Trained and frozen parameters, with the reference, without encoders."""
        policy = GoldenSet(self.base.path)
        policy.__dict__["salt"] = self.salt
        frozen = self.read(policy, "gen_embed", "gen_adaptor", "gen_head")
        return self.read(policy, "llm"), frozen | {REFERENCE: self.read(self.base, "llm")}

    @cached_property
    def image_ids(self):
        """The image tokens of 16 images, eight for each prompt."""
        uniforms = uniform("grpo.image_ids", (2, IMAGES, 576), self.salt).astype(np.float64)
        return np.floor((uniforms + 1) / 2 * 16384).astype(np.int32).reshape(2 * IMAGES, 576)

    def sequences(self, length, prompt_length=24):
        """Returns the left-padded prompts, each with the first tokens of eight images."""
        special = self.expected["special_ids"]
        prompts = Batch(
            tokens=np.full((2, prompt_length), special[2], np.int32),
            segment_ids=np.full((2, prompt_length), PADDING_SEGMENT, np.int32),
            positions=np.zeros((2, prompt_length), np.int32),
            und_patch_index=np.full((2, prompt_length), NO_IMAGE, np.int32),
            gen_token_index=np.full((2, prompt_length), NO_IMAGE, np.int32),
            und_images=np.zeros((2, 0, 16, 16, 3), np.uint8),
            gen_images=np.zeros((2, 0, 16, 16, 3), np.uint8),
        )
        for number in (0, 1):
            ids = self.expected[f"prompt_ids_{number}"]
            prompts.tokens[number, -len(ids) :] = ids
            prompts.segment_ids[number, -len(ids) :] = 1
            prompts.positions[number, -len(ids) :] = np.arange(len(ids))
        prompts = jax.tree.map(lambda x: np.repeat(x, IMAGES, axis=0), prompts)
        return append_images(prompts, jnp.asarray(self.image_ids[:, :length]))

    def per_image(self, name, length=576):
        """Returns expected values of tokens as [16, length]."""
        return self.expected[name].reshape(2 * IMAGES, -1)[:, :length]

    def gradients(self, loss, length, *, advantages=None, old=None):
        """Returns the loss sums, and the gradient of the trained parameters."""
        if advantages is None:
            advantages = self.expected["advantages"].reshape(-1)
        batch = PolicyBatch(self.sequences(length), advantages, old)
        objective, microbatching = (
            PolicyObjective(self.model, loss, TokenPolicy()),
            Microbatching(2, logits_chunk=100),
        )
        run = jax.jit(lambda params, frozen, batch: compute_gradients(objective, microbatching, params, frozen, batch))
        grads, sums = run(*self.params, batch)
        return sums, grads

    def tensors(self, tree):
        """Returns the released tensors whose parameters are in the tree, by name."""
        found = {}
        for unit in LAYOUT.map(model_parameters(self.config)):
            node = tree
            for key in unit.parameter.keys:
                node = node.get(key) if isinstance(node, dict) else None
            if node is not None:
                found |= unit.write(np.asarray(node) if unit.layer is None else np.asarray(node[unit.layer]))
        return found

    def assert_gradients(self, grads, prefix, *, with_slices=True):
        """Compares norms and slices of gradients with the expected values under a prefix."""
        found = self.tensors(grads)
        norms = dict(zip(self.expected["grad_names"].tolist(), self.expected[f"{prefix}_grad_norms"], strict=True))
        total = self.expected[f"{prefix}_grad_global_norm"]
        np.testing.assert_allclose(optax.tree.norm(grads), total, rtol=1e-4)
        assert found.keys() == norms.keys()
        for name, norm in norms.items():
            actual = np.linalg.norm(found[name].astype(np.float64))
            np.testing.assert_allclose(actual, norm, rtol=1e-4, atol=1e-6 * total, err_msg=name)
        slices = {name: value for name, value in self.expected.items() if name.startswith(f"{prefix}_grad:")}
        assert bool(slices) == with_slices
        for name, value in slices.items():
            actual = found[name.partition(":")[2]]
            assert_close(actual[::4] if actual.ndim == 1 else actual[::16, ::8], value, 1e-4)
        rows = grads["llm"]["embed"]["embedding"][:6, ::4]
        assert_close(rows, self.expected[f"{prefix}_grad_special_embeds"], 1e-4)


@pytest.fixture(scope="module")
def golden():
    given = os.environ.get("JANUS_GOLDEN_DIR")
    path = DATA / "janus_grpo" if given is None else Path(given)
    if not (path / "base.json").is_file() or "policy_logps" not in np.load(path / "expected.npz").files:
        pytest.skip(f"{path} has no values of policy optimization")
    return GoldenPolicy(path)


def short(length):
    return "short_" if length == SHORT else ""


def policy_loss(golden, beta):
    return PolicyLoss(
        beta=beta, clip=float(golden.expected["clip"]), epsilon=float(golden.expected["advantage_epsilon"])
    )


def test_grpo_advantages(golden):
    expected, loss = golden.expected, policy_loss(golden, 0.0)
    for prefix in ("", "extra_"):
        advantages = group_advantages(jnp.asarray(expected[f"{prefix}rewards"]), loss)
        np.testing.assert_allclose(advantages, expected[f"{prefix}advantages"], rtol=2e-5, atol=2e-6)
    centered = group_advantages(jnp.asarray(expected["rewards"]), replace(loss, normalize=False))
    np.testing.assert_allclose(centered, expected["rewards"] - expected["reward_mean"][:, None], atol=1e-6)


def test_grpo_kl_of_given_log_probabilities(golden):
    kl = TokenPolicy().kl(golden.expected["policy_logps"], golden.expected["reference_logps"])
    np.testing.assert_allclose(kl, golden.expected["kl"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(kl.mean(), golden.expected["mean_kl"], rtol=1e-5)


def test_grpo_clip_of_given_log_probabilities(golden):
    expected = golden.expected
    policy, old, reference = (golden.per_image(f"{name}_logps") for name in ("policy", "old", "reference"))
    for beta in (0.0, 0.01):
        loss = policy_loss(golden, beta)
        terms = action_terms(policy, old, TokenPolicy().kl(policy, reference), expected["advantages"].reshape(-1), loss)
        np.testing.assert_allclose(
            (terms.policy + beta * terms.kl).mean(), expected[f"clip_loss_beta{beta}"], rtol=1e-5
        )
    clipped = np.unpackbits(expected["clip_active"], axis=-1).reshape(16, 576)
    np.testing.assert_array_equal(terms.clipped, clipped)
    np.testing.assert_allclose(terms.clipped.mean(), expected["clip_fraction"], rtol=1e-6)


@pytest.mark.slow
@LENGTHS
def test_grpo_log_probabilities(golden, length):
    """The golden values were computed prompt by prompt without padding; here one batch has both padded prompts."""
    objective = PolicyObjective(golden.model, policy_loss(golden, 0.0), TokenPolicy())
    trained, frozen = golden.params
    run = jax.jit(objective.score, static_argnames="chunk")
    for name, llm in (("policy", trained["llm"]), ("reference", frozen[REFERENCE]["llm"])):
        found = run(frozen | {"llm": llm}, golden.sequences(length), chunk=100).log_probs
        np.testing.assert_allclose(found, golden.per_image(f"{name}_logps", length), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("length", [SHORT, pytest.param(576, marks=pytest.mark.nightly)])
def test_grpo_clipped_loss_and_gradients(golden, length):
    prefix, old = short(length), golden.per_image("old_logps", length)
    sums, grads = golden.gradients(policy_loss(golden, 0.01), length, old=old)
    np.testing.assert_allclose(sums.loss, golden.expected[f"{prefix}clip_loss_beta0.01"], atol=1e-6)
    assert sums.term_means[3] == pytest.approx(golden.expected[f"{prefix}clip_fraction"], abs=1e-6)
    golden.assert_gradients(grads, f"{prefix}clip_beta0.01")


@pytest.mark.parametrize(
    ("length", "beta"),
    [
        (SHORT, 0.01),
        pytest.param(SHORT, 0.03, marks=pytest.mark.nightly),
        pytest.param(576, 0.01, marks=pytest.mark.nightly),
        pytest.param(576, 0.03, marks=pytest.mark.nightly),
    ],
)
def test_grpo_loss_and_gradients_of_one_update(golden, length, beta):
    prefix = short(length)
    sums, grads = golden.gradients(policy_loss(golden, beta), length)
    np.testing.assert_allclose(sums.loss, golden.expected[f"{prefix}loss_beta{beta}"], atol=1e-6)
    np.testing.assert_allclose(sums.term_means[1], golden.expected[f"{prefix}mean_kl"], rtol=1e-4)
    golden.assert_gradients(grads, f"{prefix}beta{beta}")


@pytest.mark.nightly
@pytest.mark.parametrize("length", [SHORT, 576])
def test_grpo_gradients_without_reference_and_of_the_kl_alone(golden, length):
    prefix = short(length)
    sums, grads = golden.gradients(policy_loss(golden, 0.0), length)
    assert float(sums.loss) == pytest.approx(float(golden.expected[f"{prefix}loss_policy"]), abs=1e-6)
    golden.assert_gradients(grads, f"{prefix}policy", with_slices=False)
    sums, grads = golden.gradients(policy_loss(golden, 1.0), length, advantages=np.zeros(16, np.float32))
    np.testing.assert_allclose(sums.loss, golden.expected[f"{prefix}mean_kl"], rtol=1e-4)
    golden.assert_gradients(grads, f"{prefix}kl")


@pytest.mark.nightly
def test_grpo_log_probabilities_do_not_depend_on_the_padding(golden):
    objective = PolicyObjective(golden.model, policy_loss(golden, 0.0), TokenPolicy())
    trained, frozen = golden.params
    run = jax.jit(objective.score)
    one, other = (run(frozen | trained, golden.sequences(SHORT, padded)).log_probs for padded in (21, 40))
    np.testing.assert_allclose(one, other, atol=2e-5)
