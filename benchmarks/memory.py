"""Estimates how many sequences of 4096 tokens fit on each accelerator, by stage of Janus-Pro and Janus-4o.

    python -m benchmarks.memory
    python -m benchmarks.memory --write

The benchmark prints the table of docs/training.md, or writes it there. No accelerator is needed. The size of the state
is exact: that of the arrays that `janus-train` makes, sharded over the mesh. Gradients have the size of the trained
parameters. Activations are estimated for remat "full" and attention kernels that do not store scores (cudnn, splash).
The estimate is the input of every block that a gradient passes, plus the largest of these temporaries: the backward
pass of a block, a chunk of logits, and the image tokenizer. A tenth of the memory is left free. `tests/benchmarks`
compares the estimate with XLA's memory analysis.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from absl import flags
from flax.traverse_util import flatten_dict

from benchmarks.shared import insert_table, markdown_table
from configs import janus_4o, janus_pro_1b, janus_pro_7b
from janus_jax.aot.compile import bytes_per_device
from janus_jax.commands import cli
from janus_jax.config import Dtype, JanusConfig
from janus_jax.data.pipeline.packing import Budget
from janus_jax.sharding import make_mesh
from janus_jax.training.config_dicts import from_config
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage

_WRITE = flags.DEFINE_bool("write", False, "write the table to docs/training.md instead of the terminal")

DEVICE_MEMORY = {"A100 40 GB": 40, "A100, H100 80 GB": 80, "H200": 141, "TPU v5e": 17, "TPU v6e": 34, "TPU v5p": 102}
"""Memory in 10^9 bytes."""
DEVICES = (1, 8)
USABLE_FRACTION = 0.9
MODELS = {
    "Janus-Pro-1B": janus_pro_1b.get_config(),
    "Janus-Pro-7B": janus_pro_7b.get_config(),
    "Janus-4o": janus_4o.get_config(),
}
DOCUMENT = Path(__file__).parents[1] / "docs" / "training.md"
_FLOAT32 = 4
_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryNeeds:
    """Memory that a training step needs on one device, in bytes.

    Attributes:
      state: Parameters and optimizer state.
      gradients: Gradients of the trained parameters.
      gathered: Temporary copies of the weights of other devices, and gradients before they are reduced.
      sequence: Activations of one sequence.
    """

    state: int
    gradients: int
    gathered: int
    sequence: int

    def max_sequences(self, gigabytes: float) -> int:
        """Returns the number of sequences that fit at a time: a power of two, or 0."""
        # Microbatches need two copies of the gradients: their sum, and those of the current microbatch.
        left = USABLE_FRACTION * gigabytes * 1e9 - self.state - 2 * self.gradients - self.gathered
        return 2 ** int(math.log2(left / self.sequence)) if left >= self.sequence else 0


def stage_recipe(name: str, stage: int) -> Recipe:
    """Returns the recipe of a model of `MODELS` with the stage selected."""
    return replace(from_config(Recipe, MODELS[name]), stage=stage)


def memory_needs(recipe: Recipe, devices: int) -> MemoryNeeds:
    """Returns the memory that the recipe's current stage needs with its parameters split over all devices."""
    recipe = recipe.on_platform("gpu")
    stage, config, dtype = recipe.current, recipe.model_config, recipe.execution.dtype
    assert isinstance(config, JanusConfig)
    mesh = make_mesh(1, devices, 1, jax.devices()[:devices])
    state = set_up_stage(recipe, mesh).abstract
    trained, size = flatten_dict(state.params, sep="/"), _BYTES[dtype]
    params = trained | flatten_dict(state.frozen, sep="/")
    block = sum(leaf.size for name, leaf in params.items() if name.startswith("llm/layers/")) // config.llm.depth
    gathered = (
        # Weights of the current block and of the next one.
        2 * size * block,
        # Weights of the text head; if it trains, also its gradient before and during the reduction.
        config.llm.vocab_size * config.llm.width * (size + (_FLOAT32 + size) * ("llm/head/weight" in trained)),
    )
    return MemoryNeeds(
        state=bytes_per_device(state),
        gradients=bytes_per_device(state.params),
        gathered=max(gathered) if devices > 1 else 0,
        sequence=activation_bytes(config, trained, stage.budget, chunk=recipe.resources.logits_chunk, dtype=dtype),
    )


def activation_bytes(config: JanusConfig, trained: Collection[str], budget: Budget, *, chunk: int, dtype: Dtype) -> int:
    """Returns the estimated size of one sequence's activations under remat "full".

    Args:
      trained: Paths of the trained parameters.
      chunk: Number of supervised positions whose logits are in memory at a time.
      dtype: dtype of the computation.
    """
    llm, und, gen, size = config.llm, config.und_encoder, config.gen_encoder, _BYTES[dtype]
    patches = budget.und_images * und.num_patches
    und_trains = any(name.startswith("und_encoder/") for name in trained)
    block_inputs = size * (llm.depth * budget.tokens * llm.width + und_trains * und.depth * patches * und.width)
    # Embeddings, final hidden states, and the gradients of both.
    embeddings = 4 * size * budget.tokens * llm.width
    heads = (2 * llm.num_heads + 2 * llm.num_kv_heads) * llm.head_dim
    temporaries = (
        # Recomputed activations of a block and their gradients.
        2 * size * budget.tokens * (4 * llm.width + heads + 3 * llm.mlp_dim),
        (1 + und_trains) * size * patches * (8 * und.width + 2 * und.mlp_dim),
        # Logits, their softmax and their gradient.
        3 * _FLOAT32 * min(chunk, budget.text_targets) * llm.vocab_size,
        3 * _FLOAT32 * min(chunk, budget.gen_images * gen.num_tokens) * gen.codebook_size,
        # A residual block of the image tokenizer at full resolution: input, and two normalized copies in float32.
        (budget.gen_images + budget.context_images) * gen.image_size**2 * gen.base_channels * (2 * _FLOAT32 + size),
    )
    return block_inputs + embeddings + max(temporaries)


def table() -> str:
    """Returns the table in Markdown."""
    rows = []
    cases = [(name, stage) for name, config in MODELS.items() for stage in range(1, len(config.stages) + 1)]
    for (name, stage), devices in itertools.product(cases, DEVICES):
        needs = memory_needs(stage_recipe(name, stage), devices)
        sizes = (f"{size / 1e9:.1f}" for size in (needs.state, needs.gradients, needs.sequence))
        fitting = (needs.max_sequences(gigabytes) or "-" for gigabytes in DEVICE_MEMORY.values())
        rows.append((name, stage, devices, *sizes, *fitting))
    return markdown_table(("model", "stage", "devices", "state", "gradients", "per sequence", *DEVICE_MEMORY), rows)


def main(_: Sequence[str]) -> None:
    """Prints or writes the table."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    jax.config.update("jax_platforms", "cpu")
    if _WRITE.value:
        page = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(insert_table(page, "python -m benchmarks.memory --write", table()), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    cli.run(main)
