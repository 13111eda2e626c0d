"""Answers and generated images at intervals during training.

    WORKDIR/stage_N/samples/step_N/answers.txt   questions and answers
    WORKDIR/stage_N/samples/step_N/K.png         image of prompt K, counted from 1; its PNG text `prompt` is the prompt

Trackers show the same as `samples/answers` and `samples/images`.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from janus_jax.buckets import staged_folder
from janus_jax.config import Execution
from janus_jax.errors import JanusError
from janus_jax.generation.text import answer_limits
from janus_jax.models.factory import make_model
from janus_jax.pretrained import Pretrained
from janus_jax.processing import Message, Processor, TokenSequence
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.storage import writing
from janus_jax.training.callbacks.base import Callback, TrainingRun
from janus_jax.training.param_paths import merge
from janus_jax.training.recipe import Recipe


class GenerateSamples(Callback):
    """Answers the questions and generates the images of `recipe.samples`.

    The model reads the parameters in their training layout (stacked blocks, sharded over the mesh). This avoids a
    second copy and a compilation that grows with depth. Decoding is slower than in a model that `load` returns.

    Args:
      recipe: Provides `samples`, their interval and the model.
      processor: Processor of the model.
      folder: Folder of the stage, `WORKDIR/stage_N`.

    Raises:
      JanusError: An image cannot be read, or a prompt is longer than the model's context. No device is used.
    """

    def __init__(self, recipe: Recipe, processor: Processor, folder: Path) -> None:
        self._samples, self._processor, self._folder = recipe.samples, processor, folder / "samples"
        self._interval = recipe.intervals.sample
        self._recipe, self._config, self._limit = recipe, recipe.model_config, recipe.model_config.llm.max_positions
        questions = enumerate(self._samples.questions, 1)
        self._questions = [self._question(number, image, text) for number, (image, text) in questions]
        for number, prompt in enumerate(self._samples.prompts, 1):
            length, num_new = len(processor.generation_prompt(prompt)), self._config.num_gen_tokens
            if length + num_new > self._limit:
                raise JanusError(
                    f"config.samples.prompts, number {number}, has {length} tokens and {num_new} follow, but the "
                    f"model's context is {self._limit} tokens; shorten it."
                )

    def after_step(self, run: TrainingRun) -> None:
        """Writes samples at each interval and after the last step. If logits are not finite, prints a message instead.

        Raises:
          StorageFull: The disk is full.
        """
        if not run.is_due(self._interval):
            return
        params = merge(run.state.params, run.state.frozen)
        dtype = self._recipe.on_platform(jax.default_backend()).execution.dtype
        network = make_model(self._config, Execution(dtype, layers="scanned"))
        model = Pretrained(self._config, params, self._processor, network, run.mesh)
        try:
            answers = model.answer(self._questions, self._samples.max_new_tokens)
            images = self._generate(model)
        except JanusError as error:
            run.writer.message(f"step {run.step}: no samples: {error}")
            return
        if jax.process_index() == 0 and (answers or images):
            self._write(self._folder / f"step_{run.step}", answers, images)
        if answers:
            run.writer.answers(run.step, "samples/answers", list(zip(self._titles, answers, strict=True)))
        if images:
            run.writer.images(run.step, "samples/images", list(map(np.asarray, images)), self._samples.prompts)

    @property
    def _titles(self) -> list[str]:
        return [f"{Path(image).name}: {question}" if image else question for image, question in self._samples.questions]

    def _question(self, number: int, image: str, question: str) -> TokenSequence:
        needs_placeholder = image and IMAGE_PLACEHOLDER not in question
        content = f"{IMAGE_PLACEHOLDER}\n{question}" if needs_placeholder else question
        messages: list[Message] = [{"role": "user", "content": content}, {"role": "assistant", "content": ""}]
        try:
            tokens = self._processor.understanding_sequence(messages, [image] if image else [])
            answer_limits([len(tokens)], self._samples.max_new_tokens, self._limit)
        except JanusError as error:
            raise JanusError(f"config.samples.questions, number {number}, cannot be used: {error}") from error
        return tokens

    def _generate(self, model: Pretrained) -> list[Image.Image]:
        s = self._samples
        known = model.sampler_settings
        settings = {name: getattr(s, name) for name in ("guidance_scale", "temperature", "steps") if name in known}
        return [image for (image,) in model.generate(s.prompts, 1, s.seed, **settings)]

    def _write(self, folder: Path, answers: Sequence[str], images: Sequence[Image.Image]) -> None:
        with writing(folder), staged_folder(folder) as staged:
            if answers:
                entries = (f"{title}\n{answer}\n" for title, answer in zip(self._titles, answers, strict=True))
                (staged / "answers.txt").write_text("\n".join(entries), encoding="utf-8")
            for number, (prompt, image) in enumerate(zip(self._samples.prompts, images, strict=True), 1):
                info = PngInfo()
                info.add_itxt("prompt", prompt)
                image.save(staged / f"{number}.png", pnginfo=info)
