"""Which model fits which card: how many rows of 4096 places a device has room for, by stage.

    python -m benchmarks.memory
    python -m benchmarks.memory --write

Prints the table of docs/training.md, or writes it there. No such card is needed. What a state takes is exact: the sizes
of the very arrays that `janus-train` would make, as its mesh would share them out. Gradients are of the size of what
trains. Activations are reckoned under remat "full", with attention that keeps no scores (cudnn, splash): the input of
every block that a gradient goes back through, and the largest of what is needed for a while: one block's backward
pass, a chunk of logits, or the image tokenizer. A tenth of the card is left for all else. `tests/benchmarks` holds the
formula against what XLA needs.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax.traverse_util import flatten_dict

from configs import janus_pro_1b, janus_pro_7b
from janus_jax.commands import cli
from janus_jax.config import Dtype, JanusConfig
from janus_jax.data.pipeline.packing import Budget
from janus_jax.models.janus import Janus
from janus_jax.sharding import make_mesh
from janus_jax.training.config_dicts import from_config
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.optimizers import make_optimizer
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import abstract_train_state

_WRITE = flags.DEFINE_bool("write", False, "put the table into docs/training.md")

CARDS = {"A100 40 GB": 40, "A100, H100 80 GB": 80, "H200": 141, "TPU v5e": 17, "TPU v6e": 34, "TPU v5p": 102}
"""Memory in 10^9 bytes."""
DEVICES = (1, 8)
ROOM = 0.9
MODELS = {"Janus-Pro-1B": janus_pro_1b.get_config(), "Janus-Pro-7B": janus_pro_7b.get_config()}
DOCUMENT = Path(__file__).parents[1] / "docs" / "training.md"
BEGIN, END = "<!-- python -m benchmarks.memory --write -->", "<!-- end -->"
_FLOAT32 = 4
_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Needs:
    """Bytes on one device.

    Attributes:
      state: of the stage, with its optimizer's.
      gradients: of what trains.
      gathered: weights of a mesh's other devices that are here for a while, and gradients that are not yet summed.
      row: activations of one row.
    """

    state: int
    gradients: int
    gathered: int
    row: int

    def rows(self, gigabytes: float) -> int:
        """That a device has room for at a time: a power of two, or 0."""
        # With microbatches there are gradients twice: summed up, and of the part at work.
        left = ROOM * gigabytes * 1e9 - self.state - 2 * self.gradients - self.gathered
        return 2 ** int(math.log2(left / self.row)) if left >= self.row else 0


def recipe_of(name: str, stage: int) -> Recipe:
    """Of one of `MODELS`."""
    return replace(from_config(Recipe, MODELS[name]), stage=stage)


def needs(recipe: Recipe, devices: int) -> Needs:
    """What the recipe's stage needs on each of so many devices, its parameters split over all of them."""
    stage, config, chunk = recipe.current, recipe.model_config, recipe.resources.logits_chunk
    assert isinstance(config, JanusConfig)
    mesh = make_mesh(1, devices, 1, jax.devices()[:devices]) if devices > 1 else None
    state = abstract_train_state(
        TokenObjective(Janus(config, recipe.execution)),
        stage.trained,
        make_optimizer(stage.optimizer, stage.steps),
        mesh,
        frozen_dtype=stage.precision.frozen,
    )

    def held(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
        )

    trained, size = flatten_dict(state.params, sep="/"), _BYTES[stage.precision.compute]
    whole = flatten_dict(state.params, sep="/") | flatten_dict(state.frozen, sep="/")
    block = sum(leaf.size for name, leaf in whole.items() if name.startswith("llm/layers/")) // config.llm.depth
    gathered = (
        # The block at work, and the next one.
        2 * size * block,
        # The text head; and where it trains what its own rows teach it, added up and then sent.
        config.llm.vocab_size * config.llm.width * (size + (_FLOAT32 + size) * ("llm/head/weight" in trained)),
    )
    return Needs(
        state=held(state),
        gradients=held(state.params),
        gathered=max(gathered) if mesh else 0,
        row=activation_bytes(config, trained, stage.budget, chunk, stage.precision.compute),
    )


def activation_bytes(config: JanusConfig, trained: Collection[str], budget: Budget, chunk: int, dtype: Dtype) -> int:
    """What one row takes in a step beyond state and gradients, under remat "full".

    Args:
      trained: names of the parameters that train.
      chunk: see `step.Microbatching`.
      dtype: of the computation.
    """
    llm, und, gen, size = config.llm, config.und_encoder, config.gen_encoder, _BYTES[dtype]
    patches = budget.und_images * und.num_patches
    sees = any(name.startswith("und_encoder/") for name in trained)
    inputs = size * (llm.depth * budget.tokens * llm.width + sees * und.depth * patches * und.width)
    # Of the whole row: embeddings, the last hidden states, and the gradients of both.
    rows = 4 * size * budget.tokens * llm.width
    heads = (2 * llm.num_heads + 2 * llm.num_kv_heads) * llm.head_dim
    for_a_while = (
        # What a block computes again, and its gradients.
        2 * size * budget.tokens * (4 * llm.width + heads + 3 * llm.mlp_dim),
        (1 + sees) * size * patches * (8 * und.width + 2 * und.mlp_dim),
        # Logits, their softmax and their gradient.
        3 * _FLOAT32 * min(chunk, budget.text_targets) * llm.vocab_size,
        # A finest-level residual block: normalised in float32, before and after.
        budget.gen_images * gen.image_size**2 * gen.base_channels * (2 * _FLOAT32 + size),
    )
    return inputs + rows + max(for_a_while)


def table() -> str:
    """The table, in Markdown."""
    lines = [
        f"| model | stage | devices | state | gradients | a row | {' | '.join(CARDS)} |",
        "|---" * (6 + len(CARDS)) + "|",
    ]
    for name in MODELS:
        for stage in (1, 2, 3):
            for devices in DEVICES:
                one = needs(recipe_of(name, stage), devices)
                sizes = (f"{size / 1e9:.1f}" for size in (one.state, one.gradients, one.row))
                rows = (str(one.rows(gigabytes) or "-") for gigabytes in CARDS.values())
                lines.append(f"| {' | '.join((name, str(stage), str(devices), *sizes, *rows))} |")
    return "\n".join(lines)


def main(_: Sequence[str]) -> None:
    """Prints the table, or writes it."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    jax.config.update("jax_platforms", "cpu")
    text = table()
    if not _WRITE.value:
        print(text)
        return
    before, _begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _old, _end, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
