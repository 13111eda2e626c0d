"""Draws images of prompts.

    janus-generate --model DIR --prompt TEXT --num_images N --seed S --out DIR

Image i of prompt p becomes OUT/p_i.png (00000_0.png ...), with prompt, seed and settings in its metadata. It is drawn
the same again by the same model, prompts in the same order, seed and settings; --batch_size changes no more than
rounding does.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tqdm
from absl import flags

from janus_jax.commands import cli
from janus_jax.commands import model_flags as models
from janus_jax.errors import JanusError
from janus_jax.image_files import save_png
from janus_jax.storage import output_folder

_PROMPT = flags.DEFINE_multi_string("prompt", [], "what to draw; may be given several times")
_PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "a text file with further prompts, one a line")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "images of each prompt", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "folder for the pictures; made if need be", required=True)
_GUIDANCE_SCALE = models.define_amount(
    "guidance_scale", None, "weight of the prompt; 1 leaves guidance out (default: Janus 5, JanusFlow 2)"
)
_TEMPERATURE = models.define_amount(
    "temperature", None, "0 takes the likeliest id at every step (default: 1; JanusFlow draws no ids)"
)
_STEPS = flags.DEFINE_integer("steps", None, "JanusFlow: from noise to image (default: 30)", lower_bound=1)
_SAMPLER = flags.DEFINE_string(
    "sampler", None, "JanusFlow: euler (default), or midpoint or heun, more exact at twice the time"
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "images drawn at a time", lower_bound=1)
flags.adopt_module_key_flags(models)


def main(_: Sequence[str]) -> None:
    """Draws, and prints the path of every picture."""
    prompts = [models.some_text(prompt, "--prompt") for prompt in _PROMPT.value] + read_prompts(_PROMPTS_FILE.value)
    if not prompts:
        raise JanusError("There is nothing to draw; give --prompt or --prompts_file.")
    # Which of them there are depends on the model: what is not given is its own.
    holders: tuple[flags.FlagHolder[Any], ...] = (
        _GUIDANCE_SCALE,
        _TEMPERATURE,
        models.TOP_K,
        models.TOP_P,
        _STEPS,
        _SAMPLER,
    )
    given = {holder.name: holder.value for holder in holders if holder.present}
    from janus_jax.generation.image_sampler import make_image_sampler

    with output_folder(Path(_OUT.value)) as out:
        # Before the model is loaded: a setting that it does not have, or a VAE that is missing.
        drawing = make_image_sampler(models.model_config(), **given)
        settings = dict(vars(drawing))
        model = models.load_model()
        common = {
            "seed": models.SEED.value,
            "model": f"{model.config.name} ({models.MODEL.value})",
            "settings": json.dumps(settings | {"dtype": models.resolve_dtype(models.DTYPE.value)}),
            "Software": "janus_jax",
        }
        total = drawing.num_steps(model.config) * len(prompts) * _NUM_IMAGES.value
        with tqdm.tqdm(total=total, unit=drawing.unit, desc="generating", smoothing=0.1) as bar:
            # Saved batch by batch: what a killed run has drawn is not lost.
            for drawn in model.generate_stream(
                prompts,
                _NUM_IMAGES.value,
                seed=models.SEED.value,
                batch_size=_BATCH_SIZE.value,
                report=bar.update,
                **settings,
            ):
                path = out / f"{drawn.prompt:05}_{drawn.number}.png"
                place = {"prompt_number": drawn.prompt, "image_number": drawn.number}
                save_png(drawn.image, path, {"prompt": prompts[drawn.prompt], **place, **common})
                tqdm.tqdm.write(str(path), file=sys.stdout)


def read_prompts(path: str | None) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
      JanusError: it cannot be read, or has none.
    """
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise JanusError(f"{path} cannot be read as a text file ({error}); give one with a prompt a line.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise JanusError(f"{path} holds no prompt; write one a line.")
    return prompts


def run() -> None:
    """Runs `janus-generate`."""
    cli.run(main, name="janus-generate")
