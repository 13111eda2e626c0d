"""Generates images from prompts, or edits images.

    janus-generate --model DIR --prompt TEXT --num_images N --seed S --out DIR
    janus-generate --model DIR --image FILE --prompt TEXT --out DIR

Image i of prompt p is written to OUT/p_i.png (00000_0.png ...), with prompt, seed and settings in its metadata. The
same model, prompts (in the same order), seed and settings give the same images. --batch_size changes an image by
rounding only.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tqdm
from absl import flags

from janus_jax.buckets import as_path
from janus_jax.commands import best_of_flags, cli, model_flags
from janus_jax.errors import JanusError
from janus_jax.files import read_lines
from janus_jax.image_files import save_png
from janus_jax.progress import progress_bar
from janus_jax.storage import output_folder

_PROMPT = flags.DEFINE_multi_string("prompt", [], "description of an image; may be repeated")
_PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file", None, "text file with one prompt per line; its prompts follow those of --prompt"
)
_IMAGE = flags.DEFINE_multi_string(
    "image", [], "image to edit as the prompt says; if repeated, each prompt edits all images together"
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "number of images per prompt", lower_bound=1)
_OUT = flags.DEFINE_string(
    "out", None, "folder to which the images are written; it is created if missing", required=True
)
_GUIDANCE_SCALE = model_flags.define_scale(
    "guidance_scale", None, "guidance scale; 1 disables guidance (default: Janus 5, JanusFlow 2)"
)
_TEMPERATURE = model_flags.define_scale(
    "temperature", None, "Janus: sampling temperature; 0 takes the most likely token (default: 1)"
)
_IMAGE_GUIDANCE_SCALE = model_flags.define_scale(
    "image_guidance_scale", None, "edits: weight of the sequence without the source's image tokens (default: 5)"
)
_EDITING_STYLE = flags.DEFINE_string(
    "editing_style", "janus_4o", "edits: format that the model was trained with, janus_4o or janus_pro_r1_edit"
)
_STEPS = flags.DEFINE_integer("steps", None, "JanusFlow: steps from noise to image (default: 30)", lower_bound=1)
_SAMPLER = flags.DEFINE_string(
    "sampler", None, "JanusFlow: ODE solver; euler, or midpoint or heun, which take twice as long (default: euler)"
)
_PARALLEL_WINDOW = model_flags.define_parallel_window()
_BEST_OF = best_of_flags.define_best_of()
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "number of images generated at a time", lower_bound=1)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(best_of_flags)
cli.flag_group("Editing", _IMAGE, _EDITING_STYLE, _IMAGE_GUIDANCE_SCALE)
cli.flag_group("Sampling", _GUIDANCE_SCALE, _TEMPERATURE, _STEPS, _SAMPLER, _PARALLEL_WINDOW)


def main(_: Sequence[str]) -> None:
    """Generates the images and prints their paths."""
    prompts = [model_flags.require_text(prompt, "--prompt") for prompt in _PROMPT.value]
    prompts += _read_prompts(_PROMPTS_FILE.value)
    if not prompts:
        raise JanusError("There are no prompts; give --prompt or --prompts_file.")
    # Which settings exist, and their default values, depends on the model.
    holders: tuple[flags.FlagHolder[Any], ...] = (
        _GUIDANCE_SCALE,
        _TEMPERATURE,
        model_flags.TOP_K,
        model_flags.TOP_P,
        _STEPS,
        _SAMPLER,
    )
    given = {holder.name: holder.value for holder in holders if holder.present}
    given |= model_flags.window_setting(_PARALLEL_WINDOW)
    edits = bool(_IMAGE.value)
    for holder in (_IMAGE_GUIDANCE_SCALE, _EDITING_STYLE):
        if holder.present and not edits:
            raise JanusError(f"--{holder.name} needs --image, the image to edit.")
    if edits and _BEST_OF.setting():
        raise JanusError("--best_of selects generated images, not edits; omit it or --image.")
    if edits:
        given["style"] = _EDITING_STYLE.value
        if _IMAGE_GUIDANCE_SCALE.present:
            given[_IMAGE_GUIDANCE_SCALE.name] = _IMAGE_GUIDANCE_SCALE.value
    from janus_jax.generation.edit_sampler import make_edit_sampler
    from janus_jax.generation.image_sampler import make_image_sampler
    from janus_jax.processing import open_image

    images = [open_image(image) for image in _IMAGE.value]

    with output_folder(as_path(_OUT.value)) as out:
        opened = model_flags.open_model()
        # Made before the parameters are loaded, so that unknown settings and a missing VAE are reported at once.
        sampler = (make_edit_sampler if edits else make_image_sampler)(opened.config, **given)
        settings = dict(vars(sampler))
        load = functools.cache(lambda: model_flags.load_model(opened))
        best = _BEST_OF.make(load)
        model = load()
        common = model_flags.image_metadata(opened, settings | _BEST_OF.setting())
        total = sampler.num_steps(model.config) * len(prompts) * _NUM_IMAGES.value * _BEST_OF.best_of.value
        with progress_bar(total=total, unit=sampler.unit, desc="generating", smoothing=0.1) as bar:
            # Images are saved after each batch, so that a killed run keeps them.
            options = {"batch_size": _BATCH_SIZE.value, "report": bar.update, **settings}
            seed, count = model_flags.SEED.value, _NUM_IMAGES.value
            if edits:
                generated = model.edit_stream([(images, prompt) for prompt in prompts], count, seed, **options)
            else:
                if best is not None:
                    options |= {"best_of": best.number, "judge": best.judge}
                generated = model.generate_stream(prompts, count, seed, **options)
            for one in generated:
                path = out / f"{one.prompt:05}_{one.number}.png"
                own = {"prompt": prompts[one.prompt], "prompt_number": one.prompt, "image_number": one.number}
                save_png(one.image, path, own | ({} if one.score is None else {"score": one.score}) | common)
                tqdm.tqdm.write(str(path), file=sys.stdout)


def _read_prompts(path: str | None) -> list[str]:
    if path is None:
        return []
    prompts = read_lines(Path(path), "write one prompt per line")
    if not prompts:
        raise JanusError(f"{path} contains no prompts; write one per line.")
    return prompts


def run() -> None:
    """Entry point of `janus-generate`."""
    cli.run(main, name="janus-generate")
