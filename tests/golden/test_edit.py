"""Compares image editing with the PyTorch implementations of Janus-4o and Janus-Pro-R1-Edit, in float32.

`data/janus_edit` has the config, manifest and images of the set that its `base.json` names.
"""

import json
import os
import re
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.released import LAYOUT, config_from_json, unused_shapes
from janus_jax.config import Execution
from janus_jax.data.pipeline.examples import Example
from janus_jax.data.pipeline.packing import Budget, pack
from janus_jax.generation.decode import guide
from janus_jax.models.backbone import apply, scan_params
from janus_jax.models.janus import Janus
from janus_jax.processing import EDITING_STYLES, TEMPLATES, Edit, Processor, editing_sequence, guidance_sequences
from janus_jax.processing.tokenizer import Encoded, SpecialIds
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.param_paths import partition
from janus_jax.training.train_step import Microbatching, compute_gradients
from tests.golden.conftest import DATA, GoldenSet, assert_close

JANUS_4O, R1 = EDITING_STYLES["janus_4o"], EDITING_STYLES["janus_pro_r1_edit"]
TRAINED = ("und_encoder/*", "und_adaptor/*", "gen_embed/*", "gen_adaptor/*", "gen_head/*", "llm/*")


class GoldenTokenizer:
    """Tokenizer of the golden sequences. Token i of an instruction is written as the character `_FIRST + i`."""

    _FIRST = 0xF0000

    def __init__(self, layouts):
        self.special = SpecialIds(**layouts["special_ids"])
        self._ids = layouts["text_ids"] | {"<image_placeholder>": self.special.image_placeholder}
        names = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, names), "."]), re.DOTALL)

    def write(self, ids):
        return "".join(chr(self._FIRST + i) for i in ids)

    def encode_with_spans(self, text):
        pieces = list(self._pattern.finditer(text))
        ids = [self._ids.get(piece.group(), ord(piece.group()[0]) - self._FIRST) for piece in pieces]
        return Encoded([self.special.bos, *ids], [(0, 0), *(piece.span() for piece in pieces)])


class GoldenEdits:
    """Model, processor and expected values of the golden set."""

    def __init__(self, path):
        self.path = path
        base = json.loads((path / "base.json").read_text())
        self.base = GoldenSet((path / base["base"]).resolve())
        self.base.__dict__["salt"] = int(base["salt"])
        self.layouts = json.loads((path / "layouts.json").read_text())
        self.config = config_from_json(JsonObject(self.base.config, "config.json"), self.base.shapes)
        self.model = Janus(self.config, Execution(layers="unrolled"))
        tokenizer, und, gen = GoldenTokenizer(self.layouts), self.config.und_encoder, self.config.gen_encoder
        self.processor = Processor(
            tokenizer, TEMPLATES["janus_pro"], und.image_size, und.num_patches, gen.image_size, gen.num_tokens
        )

    def _read(self, name):
        with np.load(self.path / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    @cached_property
    def expected(self):
        return self._read("expected")

    @cached_property
    def train(self):
        return self._read("train")

    @cached_property
    def r1(self):
        return self._read("r1")

    @cached_property
    def params(self):
        return self.base.params(LAYOUT, self.config, self.model.execution)

    def edit(self, instruction, sources, target=None):
        """Returns an edit of images by number, with an instruction as ids."""
        paths = self.base.images
        text = self.processor.tokenizer.write(instruction)
        return Edit.open(text, [paths[number] for number in sources], None if target is None else paths[target])

    def batch(self, *sequences, gen_ids):
        """Packs sequences into one sequence each, with the golden image tokens in place of those computed here."""
        contexts = max(sequence.num_context_images for sequence in sequences)
        und = max(len(sequence.und_images) for sequence in sequences)
        examples = [
            [Example("edit", one, np.zeros(0, np.int32), starts(one, self.processor.num_gen_tokens), gen_ids=ids)]
            for one, ids in zip(sequences, gen_ids, strict=True)
        ]
        budget = Budget(max(map(len, sequences)), und, 1, 0, max(contexts, 1))
        return pack(examples, budget, self.processor, precomputed_image_tokens=True)

    def training_example(self, kept):
        """Returns the sequence of Janus-4o's training example, and its image tokens."""
        train = self.train
        edit = self.edit(train["train_instruction"], [int(train["train_source"])], int(train["train_target"]))
        sequence = editing_sequence(self.processor, JANUS_4O, edit, kept=[kept], precomputed=True)
        ids = [train["train_target_vq_ids"], *[train["train_source_vq_ids"]] * kept]
        return sequence, np.array(ids)

    def r1_instruction(self, number):
        """Returns the ids of an instruction of Janus-Pro-R1-Edit, which are pads in the unconditional sequence."""
        ids, unconditional = self.r1[f"r1_ids_{number}"], self.r1[f"r1_unconditional_ids_{number}"]
        return ids[unconditional != ids]

    def r1_edit(self, number):
        """Returns the edit of Janus-Pro-R1-Edit with this number, with its target."""
        row = self.layouts["janus_pro_r1_edit"]["rows"][number]
        source, target = (int(re.findall(r"\d+", row[name])[0]) for name in ("source", "target"))
        return self.edit(self.r1_instruction(number), [source], target)

    def r1_sequence(self, number, precomputed=False):
        """Returns the training sequence of Janus-Pro-R1-Edit with this number."""
        return editing_sequence(self.processor, R1, self.r1_edit(number), precomputed=precomputed)

    def embeddings_and_losses(self, batch):
        """Returns embeddings `[:, :, ::128]`, and the cross-entropy of each token of the target images.

        A token is predicted from the position before it.
        """

        def compute(params, batch):
            embeddings = apply(self.model.embed, params, batch)
            hidden = apply(self.model.__call__, params, batch)
            positions = batch.gen_starts[:, :1] - 1 + jnp.arange(batch.gen_ids.shape[2])
            states = jnp.take_along_axis(hidden, positions[..., None], axis=1)
            logits = apply(self.model.image_logits, params, states)
            picked = jnp.take_along_axis(logits, batch.gen_ids[:, 0, :, None], axis=-1)[..., 0]
            return embeddings[:, :, ::128], jax.nn.logsumexp(logits, axis=-1) - picked

        return jax.tree.map(np.asarray, jax.jit(compute)(self.params, batch))

    def logits_after(self, groups, gen_ids, tokens):
        """Returns the image logits of each sequence after its prompt and after each given token, but the last."""
        prompts = self.processor.left_pad([sequence for group in groups for sequence in group])
        prompts = prompts._replace(gen_ids=np.repeat(gen_ids[:, None], len(groups[0]), axis=0))
        prompts = prompts._replace(gen_images=prompts.gen_images[:, :0])
        inputs = np.repeat(tokens, len(groups[0]), axis=0)
        model, steps = self.model, tokens.shape[1] - 1

        def compute(params, prompts, inputs):
            embeddings = apply(model.embed, params, prompts)
            hidden, cache = apply(model.prefill, params, prompts, prompts.shape[1] + steps)

            def step(carry, token):
                cache, positions = carry
                x = apply(model.embed_image_tokens, params, token[:, None])
                hidden, cache = apply(model.extend, params, x, positions, jnp.ones_like(positions), cache)
                return (cache, positions + 1), apply(model.image_logits, params, hidden[:, 0])

            start = (cache, prompts.positions[:, -1:] + 1)
            _, logits = jax.lax.scan(step, start, inputs[:, :-1].T)
            return embeddings[:, :, ::64], jnp.stack([apply(model.image_logits, params, hidden[:, -1]), *logits])

        return jax.tree.map(np.asarray, jax.jit(compute)(self.params, prompts, inputs))

    def tensors(self, tree):
        """Yields name and value of each released tensor whose parameter is in the tree."""
        for unit in LAYOUT.map(model_parameters(self.config)):
            node = tree
            for key in unit.parameter.keys:
                node = node.get(key) if isinstance(node, dict) else None
            if node is not None:
                yield from unit.write(np.asarray(node) if unit.layer is None else np.asarray(node[unit.layer]))

    @cached_property
    def janus_4o_training(self):
        """Embeddings and token losses of Janus-4o's training example, with its source's image tokens and without."""
        sequences, ids = zip(*(self.training_example(kept) for kept in (True, False)), strict=True)
        return self.embeddings_and_losses(self.batch(*sequences, gen_ids=ids))


def starts(sequence, num_tokens):
    """Returns the position of the target image."""
    return np.flatnonzero(sequence.gen_token_index == 0)[: sequence.num_target_images].astype(np.int32)


@pytest.fixture(scope="module")
def golden():
    given = os.environ.get("JANUS_GOLDEN_DIR")
    path = DATA / "janus_edit" if given is None else Path(given)
    if not (path / "layouts.json").is_file():
        pytest.skip(f"{path} has no values of editing")
    return GoldenEdits(path)


def runs(pairs):
    return np.concatenate([np.full(count, token) for token, count in pairs])


def written_ids(golden, sequence, placeholder):
    """Returns the tokens of a sequence with `placeholder` at image tokens, as the golden sequences have it."""
    return np.where(sequence.gen_token_index >= 0, placeholder, sequence.tokens)


@pytest.mark.parametrize("number", [0, 1])
def test_edit_sequences_of_janus_4o(golden, number):
    pad = golden.processor.tokenizer.special.pad
    edit = golden.edit(golden.expected[f"edit_instruction_{number}"], [number])
    full, part, unconditional = guidance_sequences(golden.processor, JANUS_4O, edit)
    np.testing.assert_array_equal(written_ids(golden, full, pad), golden.expected[f"edit_ids_{number}"])
    np.testing.assert_array_equal(part.tokens, golden.expected[f"edit_ids_{number}"])
    np.testing.assert_array_equal(unconditional.tokens, golden.expected[f"edit_unconditional_ids_{number}"])
    assert [one.num_context_images for one in (full, part, unconditional)] == [1, 0, 0]
    assert [len(one.und_images) for one in (full, part, unconditional)] == [1, 1, 0]


@pytest.mark.parametrize("number", [0, 1])
def test_edit_sequences_of_janus_pro_r1(golden, number):
    edit = golden.edit(golden.r1_instruction(number), [number])
    conditional, unconditional = guidance_sequences(golden.processor, R1, edit)
    np.testing.assert_array_equal(conditional.tokens, golden.r1[f"r1_ids_{number}"])
    np.testing.assert_array_equal(unconditional.tokens, golden.r1[f"r1_unconditional_ids_{number}"])
    assert conditional.num_context_images == unconditional.num_context_images == 1
    assert len(conditional.und_images) == 0


def test_edit_source_pixels_of_janus_pro_r1(golden):
    pixels = np.stack([golden.r1_sequence(number).gen_images[-1] for number in (0, 1)])
    actual = (pixels.astype(np.float32) * (2 / 255) - 1).transpose(0, 3, 1, 2)[:, :, ::13, ::13]
    assert_close(actual, golden.r1["r1_source_pixels"], 1e-6)


@pytest.fixture(scope="module")
def janus_4o_groups(golden):
    edits = [golden.edit(golden.expected[f"edit_instruction_{number}"], [number]) for number in (0, 1)]
    return [guidance_sequences(golden.processor, JANUS_4O, edit) for edit in edits]


def steps(expected, prefix):
    """Returns the stored values of a kind by step."""
    return {int(name.removeprefix(prefix)): expected[name] for name in expected if name.startswith(prefix)}


def assert_guided_logits(expected, kind, weights, logits):
    """Compares logits [T, R * Q, V] with the guided logits at the stored steps."""
    stored = steps(expected, f"{kind}_cfg_logits_step")
    assert stored
    for step, values in stored.items():
        guided = guide(jnp.asarray(logits[step]), len(values), weights)
        assert_close(guided[:, ::16], values, 1e-4)


@pytest.mark.slow
def test_edit_guided_logits_of_given_tokens(golden, janus_4o_groups):
    """Batches both edits, which are padded to one length; the golden values were computed one by one."""
    expected = golden.expected
    embeddings, logits = golden.logits_after(janus_4o_groups, expected["source_vq_ids"], expected["edit_forced_tokens"])
    for number in (0, 1):
        values = expected[f"edit_embeds_{number}"]
        assert_close(embeddings[3 * number : 3 * number + 3, -values.shape[1] :], values, 2e-5)
    weights = np.array(JANUS_4O.guidance_weights(*expected["edit_forced_weights"]), np.float32)
    assert_guided_logits(expected, "edit_forced", weights, logits)
    for step, rows in steps(expected, "edit_forced_row_logits_step").items():
        assert_close(logits[step].reshape(2, 3, -1)[..., ::64], rows, 1e-4)


@pytest.mark.nightly
def test_edit_guided_logits_of_greedy_tokens(golden, janus_4o_groups):
    expected = golden.expected
    _, logits = golden.logits_after(janus_4o_groups, expected["source_vq_ids"], expected["edit_greedy_tokens"])
    weights = np.array(JANUS_4O.guidance_weights(*expected["edit_weights"]), np.float32)
    assert_guided_logits(expected, "edit", weights, logits)
    guided = np.stack([guide(jnp.asarray(step), 2, weights) for step in logits], axis=1)
    clear = expected["edit_margins"] > 1e-3 * np.ptp(guided, axis=-1)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(guided.argmax(-1)[clear], expected["edit_greedy_tokens"][clear])


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["greedy", "forced"])
def test_edit_guided_logits_of_janus_pro_r1(golden, kind):
    r1 = golden.r1
    groups = [guidance_sequences(golden.processor, R1, golden.r1_edit(number)) for number in (0, 1)]
    _, logits = golden.logits_after(groups, r1["r1_source_vq_ids"], r1[f"r1_{kind}_tokens"])
    weights = np.array(R1.guidance_weights(float(r1["r1_weight"]), 0.0), np.float32)
    assert_guided_logits(r1, f"r1_{kind}", weights, logits)


VARIANTS = pytest.mark.parametrize("variant", ["kept", "dropped"])


@VARIANTS
def test_edit_training_embeddings(golden, variant):
    embeddings = golden.janus_4o_training[0][int(variant == "dropped")]
    assert_close(embeddings, golden.train[f"train_embeds_{variant}"], 2e-5)


@VARIANTS
def test_edit_training_token_losses(golden, variant):
    losses = golden.janus_4o_training[1][int(variant == "dropped")]
    assert_close(losses, golden.train[f"train_token_losses_{variant}"], 1e-5)
    np.testing.assert_allclose(losses.sum(), golden.train[f"train_loss_sum_{variant}"], rtol=1e-5)


@pytest.mark.nightly
@VARIANTS
def test_edit_training_gradients(golden, variant):
    """Computes the loss and gradients with the objective, which trains on the first image token too."""
    train, (sequence, ids) = golden.train, golden.training_example(variant == "kept")
    trained, frozen = partition(golden.params, TRAINED)
    batch = golden.batch(sequence, gen_ids=[ids])
    objective, microbatching = TokenObjective(golden.model), Microbatching(logits_chunk=100)
    run = jax.jit(lambda trained, frozen, batch: compute_gradients(objective, microbatching, trained, frozen, batch))
    grads, sums = run(trained, frozen, batch)
    np.testing.assert_allclose(float(sums.loss), train[f"train_loss_{variant}"], rtol=1e-5)

    norms = {}
    for side in ("", "siglip_"):
        names = train[f"train_{side}grad_names"].tolist()
        norms |= dict(zip(names, train[f"train_{side}grad_norms_{variant}"], strict=True))
    found = dict(golden.tensors(scan_params(grads, golden.config)))
    unused = unused_shapes(golden.config)
    assert not any(norms.pop(name) for name in list(norms) if name in unused)
    assert found.keys() == norms.keys()
    total = train[f"train_grad_global_norm_with_siglip_{variant}"]
    for name, norm in norms.items():
        actual = np.linalg.norm(found[name].astype(np.float64))
        np.testing.assert_allclose(actual, norm, rtol=1e-4, atol=1e-8 * total, err_msg=name)
    np.testing.assert_allclose(float(optax.tree.norm(grads)), total, rtol=1e-5)
    prefix = f"train_grad_{variant}:"
    slices = {name.removeprefix(prefix): value for name, value in train.items() if name.startswith(prefix)}
    assert slices
    for name, expected in slices.items():
        gradient = found[name]
        assert_close(gradient[::4] if gradient.ndim == 1 else gradient[::16, ::8], expected, 1e-4)
    special = found["language_model.model.embed_tokens.weight"][:6, ::4]
    assert_close(special, train[f"train_grad_special_embeds_{variant}"], 1e-4)


@pytest.mark.nightly
def test_edit_training_token_losses_of_janus_pro_r1(golden):
    r1 = golden.r1
    ids = [np.stack(pair) for pair in zip(r1["r1_target_vq_ids"], r1["r1_source_vq_ids"], strict=True)]
    sequences = [golden.r1_sequence(number, precomputed=True) for number in (0, 1)]
    losses = golden.embeddings_and_losses(golden.batch(*sequences, gen_ids=ids))[1]
    assert_close(losses, r1["r1_token_losses"], 1e-5)
    np.testing.assert_allclose(losses.mean(), r1["r1_loss"], rtol=1e-5)


@pytest.mark.nightly
def test_edit_training_token_losses_of_two_sources(golden):
    train = golden.train
    sources, kept = train["train_two_sources"].tolist(), train["train_two_kept"].tolist()
    expected = runs(golden.layouts["janus_4o"]["training_two_sources"]["ids"])
    special, n = golden.processor.tokenizer.special, golden.processor.num_gen_tokens
    # The instruction is between the last end-of-image and the five tokens of the template's end.
    start = np.flatnonzero(expected == special.end_of_image)[-1] + 1
    edit = golden.edit(expected[start : len(expected) - n - 4], sources, int(train["train_target"]))
    sequence = editing_sequence(golden.processor, JANUS_4O, edit, kept=kept, precomputed=True)
    np.testing.assert_array_equal(written_ids(golden, sequence, special.pad), expected)
    ids = [train["train_target_vq_ids"], *(train["vq_ids"][s] for s, keep in zip(sources, kept, strict=True) if keep)]
    losses = golden.embeddings_and_losses(golden.batch(sequence, gen_ids=[np.array(ids)]))[1][0]
    assert_close(losses, train["train_two_token_losses"], 1e-5)
    np.testing.assert_allclose(losses.mean(), train["train_two_loss"], rtol=1e-5)
