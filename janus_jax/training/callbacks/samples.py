"""What the model says and draws at a step: the recipe's questions answered and its prompts drawn, where it is trained.

WORKDIR/stage_N/samples/step_N/answers.txt   questions and answers
WORKDIR/stage_N/samples/step_N/K.png         the image of prompt K, counted from 1; its text chunk `prompt` has it

TensorBoard has the same: `samples/answers`, `samples/prompts`, and `samples/images`, one sheet of all images.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Message, Processor, TokenSequence
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.storage import writing
from janus_jax.training.metric_writer import MetricWriter
from janus_jax.training.recipe import Recipe

_GAP = 4  # pixels between two pictures of a sheet


class Sampler:
    """Answers the recipe's questions and draws its prompts, and tells of it.

    The parameters are read where and as the step keeps them, stacked and spread over the mesh: no second copy is made,
    and what is compiled does not grow with depth. A step of the decoding is slower for it than after `load`.

    Args:
      recipe: its `samples` are made.
      processor: of its model.
      folder: the stage's, `WORKDIR/stage_N`.

    Raises:
      JanusError: an image cannot be read, or the model cannot read as much as a sample is long. No device is asked for.
    """

    def __init__(self, recipe: Recipe, processor: Processor, folder: Path) -> None:
        self._samples, self._processor, self._folder = recipe.samples, processor, folder / "samples"
        self._config, self._limit = recipe.model_config, recipe.model_config.llm.max_positions
        # Kernels for long training rows would not take prompts of any length.
        execution = Execution(recipe.current.precision.compute, layers="scanned")
        self._model = make_model(self._config, execution)
        self._rows = [self._question_row(number, *pair) for number, pair in enumerate(self._samples.questions, 1)]
        for number, prompt in enumerate(self._samples.prompts, 1):
            row = processor.generation_prompt(prompt)
            self._check_length(f"prompts, number {number},", row, self._config.gen_tokens)

    def tell(self, step: int, params: Params, mesh: Mesh | None, reports: MetricWriter) -> None:
        """Makes the samples; every process takes part. Parameters that give no numbers give a message.

        Args:
          params: the whole tree, in the form of training.
          mesh: that they lie on.

        Raises:
          StorageFull: the disk is full.
        """
        model = Pretrained(self._config, params, self._processor, self._model, mesh)
        try:
            answers = model.answer(self._rows, self._samples.max_new_tokens)
            pictures = self._draw(model)
        except JanusError as error:
            reports.message(f"step {step}: there are no samples: {error}")
            return
        if jax.process_index() == 0 and (answers or pictures):
            self._write(self._folder / f"step_{step}", answers, pictures)
        if answers:
            reports.texts(step, {"samples/answers": "\n\n".join(map("**{}**\n\n{}".format, self._asked, answers))})
        if pictures:
            numbered = "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(self._samples.prompts, 1))
            reports.texts(step, {"samples/prompts": numbered})
            reports.images(step, {"samples/images": [contact_sheet([np.asarray(picture) for picture in pictures])]})

    @property
    def _asked(self) -> list[str]:
        return [f"{Path(image).name}: {question}" if image else question for image, question in self._samples.questions]

    def _question_row(self, number: int, image: str, question: str) -> TokenSequence:
        about_none = not image or IMAGE_PLACEHOLDER in question
        content = question if about_none else f"{IMAGE_PLACEHOLDER}\n{question}"
        messages: list[Message] = [{"role": "user", "content": content}, {"role": "assistant", "content": ""}]
        try:
            row = self._processor.understanding_sequence(messages, [image] if image else [])
        except JanusError as error:
            raise JanusError(f"config.samples.questions, number {number}, cannot be asked: {error}") from error
        self._check_length(f"questions, number {number},", row, self._samples.max_new_tokens)
        return row

    def _check_length(self, name: str, row: TokenSequence, following: int) -> None:
        if len(row) + following > self._limit:
            raise JanusError(
                f"config.samples.{name} takes {len(row)} places and {following} follow it, but the model reads "
                f"{self._limit}; make it shorter, or lower config.samples.max_new_tokens."
            )

    def _draw(self, model: Pretrained) -> list[Image.Image]:
        s = self._samples
        known = model.sampler_settings
        settings = {name: getattr(s, name) for name in ("guidance_scale", "temperature", "steps") if name in known}
        drawn = model.generate(s.prompts, 1, s.seed, **settings)
        return [picture for (picture,) in drawn]

    def _write(self, folder: Path, answers: Sequence[str], pictures: Sequence[Image.Image]) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if answers:
                lines = (f"{asked}\n{answer}\n" for asked, answer in zip(self._asked, answers, strict=True))
                (folder / "answers.txt").write_text("\n".join(lines), encoding="utf-8")
            for number, (prompt, picture) in enumerate(zip(self._samples.prompts, pictures, strict=True), 1):
                info = PngInfo()
                info.add_itxt("prompt", prompt)
                picture.save(folder / f"{number}.png", pnginfo=info)


def contact_sheet(pictures: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "H2 W2 3"]:
    """All pictures, of one size, in one that is about square: row by row, in order."""
    height, width, _ = pictures[0].shape
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet
