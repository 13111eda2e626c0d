"""The reward `geneval`: an object detector in PyTorch, and GenEval's rule.

janus-rewards --reward examples.reward_service.detector:geneval --reward_option detector=facebook/detr-resnet-50
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from examples.reward_service.geneval import Detection, fulfilled
from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.rewards import register_reward

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

Detect = Callable[[Sequence[Image.Image]], Sequence[Sequence[Detection]]]
"""Returns the objects in each image."""

Classify = Callable[[Image.Image, str], str]
"""Returns the color of the object of a class that fills the image."""


@register_reward("geneval")
@dataclass
class GenEvalReward:
    """GenEval's rule. The metadata of each prompt lists its objects (`geneval.fulfilled`).

    Attributes:
      detector: Folder or hub id of an object detector in transformers' layout.
      classifier: Folder or hub id of a CLIP model that names the colors of objects. "": prompts with colors are
        refused.
      threshold: Smallest score of a detected object.
      partial: Whether the reward is the share of fulfilled entries. False: 1 if all are fulfilled, otherwise 0.
      device: PyTorch's device, such as `cuda:0`.

    Raises:
      JanusError: transformers is not installed, or a model cannot be loaded.
    """

    detector: str
    classifier: str = ""
    threshold: float = 0.5
    partial: bool = False
    device: str = "cpu"
    _detect: Detect = field(init=False, repr=False)
    _classify: Classify = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._detect, self._classify = load_detector(self), load_classifier(self)

    def __call__(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " B"]:
        """See `janus_jax.rewards.Reward`."""
        pictures = [Image.fromarray(image) for image in images]
        values = []
        for picture, found, wanted in zip(pictures, self._detect(pictures), metadata, strict=True):

            def color_of(detection: Detection, picture: Image.Image = picture) -> str:
                return self._classify(picture.crop(detection.box), detection.label)

            met = fulfilled(wanted, found, color_of)
            values.append(np.mean(met) if self.partial else float(all(met)))
        return np.array(values, np.float32)


def load_detector(options: GenEvalReward) -> Detect:
    """Returns the detector, a pipeline of transformers."""
    require("The reward geneval", "transformers")
    import transformers

    pipeline = _load(transformers.pipeline, "object-detection", options.detector, options.device)

    def detect(images: Sequence[Image.Image]) -> list[list[Detection]]:
        return [[_detection(one) for one in found] for found in pipeline(list(images), threshold=options.threshold)]

    return detect


def _detection(found: Mapping[str, Any]) -> Detection:
    box = found["box"]
    return Detection(found["label"], found["score"], (box["xmin"], box["ymin"], box["xmax"], box["ymax"]))


def load_classifier(options: GenEvalReward) -> Classify:
    """Returns the classifier of colors, a pipeline of transformers with CLIP."""
    if not options.classifier:

        def refuse(image: Image.Image, label: str) -> str:
            raise JanusError(f"A prompt asks for the color of a {label}; give the reward geneval a classifier.")

        return refuse
    import transformers

    pipeline = _load(transformers.pipeline, "zero-shot-image-classification", options.classifier, options.device)

    def classify(image: Image.Image, label: str) -> str:
        names = {f"a photo of a {color} {label}": color for color in COLORS}
        best: dict[str, Any] = max(pipeline(image, candidate_labels=list(names)), key=lambda one: one["score"])
        return names[best["label"]]

    return classify


def _load(pipeline: Callable[..., Any], task: str, model: str, device: str) -> Any:
    try:
        return pipeline(task, model=model, device=device)
    except (OSError, ValueError) as error:
        raise JanusError(f"The reward geneval cannot load {model} ({str(error).splitlines()[0]}).") from error
