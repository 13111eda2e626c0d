"""Trains an image tokenizer.

    python -m launch.train_tokenizer --config examples/shapes/configs/tokenizer.py --workdir runs/shapes_tokenizer

Every number of the config can be set: --config.steps=100. Figures and reconstructions go to WORKDIR/tensorboard and
WORKDIR/metrics.jsonl, checkpoints to WORKDIR/checkpoints; the same command goes on where it was interrupted. What comes
out is WORKDIR/tokenizer, a converted folder of the image tokenizer alone, which stage I of training starts from.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from checkpoints_convert.convert import save_converted
from checkpoints_convert.readers import open_tensors
from janus_jax.commands import cli
from janus_jax.commands.recipe_flag import define_recipe_flag
from janus_jax.files import named
from janus_jax.training.config_dicts import from_config
from janus_jax.training.image_tokenizer.recipe import TokenizerRecipe, WeightFiles

if TYPE_CHECKING:
    from janus_jax.training.image_tokenizer.trainer import Judges, Trained

_CONFIG = define_recipe_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made if need be", required=True)


def main(_: Sequence[str]) -> None:
    """Trains, and writes the tokenizer."""
    recipe = from_config(TokenizerRecipe, _CONFIG.value)
    judges = read_judges(recipe.weights)

    import jax

    from janus_jax.sharding import make_mesh
    from janus_jax.training.image_tokenizer.trainer import train_tokenizer

    cli.enable_compilation_cache()
    mesh = make_mesh() if jax.device_count() > 1 else None
    trained = train_tokenizer(recipe, _WORKDIR.value, judges, mesh)
    if jax.process_index() == 0:
        write_tokenizer(Path(_WORKDIR.value) / "tokenizer", trained, recipe)


def read_judges(files: WeightFiles) -> "Judges":
    """The judging networks' parameters from their files.

    Raises:
      JanusError: a file is missing, or not what it should be.
    """
    from janus_jax.evaluation.metrics.inception import inception_params
    from janus_jax.training.image_tokenizer.lpips import lpips_params
    from janus_jax.training.image_tokenizer.trainer import Judges

    lpips = inception = None
    if files.vgg16:
        vgg, lins = open_tensors(Path(files.vgg16)), open_tensors(Path(files.lpips))
        with named(f"{files.vgg16} or {files.lpips}"):
            lpips = lpips_params(vgg, lins)
    if files.inception:
        tensors = open_tensors(Path(files.inception))
        with named(files.inception):
            inception = inception_params(tensors)
    return Judges(lpips, inception)


def write_tokenizer(folder: Path, trained: "Trained", recipe: TokenizerRecipe) -> None:
    """Writes a converted folder of the tokenizer alone, in the place of what an earlier run left there.

    Raises:
      JanusError: it cannot be written.
    """
    if folder.exists():
        shutil.rmtree(folder)
    save_converted(folder, {"gen_encoder": trained.params}, recipe.model)
    print(f"The tokenizer is in {folder}.")


def run() -> None:
    """Runs `janus-train-tokenizer`."""
    cli.run(main, name="janus-train-tokenizer")
