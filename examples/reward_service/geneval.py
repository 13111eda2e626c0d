"""GenEval's rule (arXiv 2310.11513, section 3): whether the detected objects are those of a prompt.

The metadata of a prompt is a line of GenEval's evaluation_metadata.jsonl:

    {"include": [{"class": "bench", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
     "exclude": [{"class": "cat", "count": 2}]}
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from janus_jax.errors import JanusError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""

_OVERLAP = 0.1  # Share of the sizes of both objects by which their offset is reduced.
_MIN_COMPONENT = 0.5  # Smallest component of a relation in the direction from one object to the other.


class Detection(NamedTuple):
    """A detected object."""

    label: str
    score: float
    box: Box


def fulfilled(
    metadata: Mapping[str, Any], detections: Sequence[Detection], color_of: Callable[[Detection], str]
) -> list[bool]:
    """Returns for each entry of `include` and `exclude` whether the image fulfills it.

    An entry of `include` needs `count` objects of its class. The most certain ones need its `color`, and its `position`
    relative to the objects of an earlier entry. An entry of `exclude` needs fewer than `count` objects.

    Args:
      color_of: Returns the color of an object.

    Raises:
      JanusError: The metadata has no `include`, or an entry is malformed.
    """
    if not metadata.get("include"):
        raise JanusError("The metadata of a prompt has no include; give the objects as in GenEval's files.")
    ranked = sorted(detections, key=lambda detection: -detection.score)
    results, selected = [], []
    try:
        for entry in metadata["include"]:
            objects = [detection for detection in ranked if detection.label == entry["class"]][: entry["count"]]
            selected.append(objects)
            has_color = all(color_of(one) == entry["color"] for one in objects) if "color" in entry else True
            has_position = True
            if "position" in entry:
                relation, target = entry["position"]
                others = selected[target]
                pairs = [(one.box, other.box) for one in objects for other in others]
                has_position = bool(others) and all(relation in relations(*pair) for pair in pairs)
            results.append(len(objects) == entry["count"] and has_color and has_position)
        for entry in metadata.get("exclude", ()):
            results.append(sum(detection.label == entry["class"] for detection in ranked) < entry["count"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise JanusError(f"The metadata {dict(metadata)!r:.200} is malformed ({error!r}).") from error
    return results


def relations(one: Box, other: Box) -> set[str]:
    """Returns the positions of one object relative to another one: none, one or two of them."""
    offsets = []
    for low in range(2):
        offset = (one[low] + one[low + 2] - other[low] - other[low + 2]) / 2
        extents = one[low + 2] - one[low] + other[low + 2] - other[low]
        offsets.append(math.copysign(max(abs(offset) - _OVERLAP * extents, 0), offset))
    distance = math.hypot(*offsets)
    if not distance:
        return set()
    right, below = (offset / distance for offset in offsets)
    components = {"left of": -right, "right of": right, "above": -below, "below": below}
    return {name for name, component in components.items() if component > _MIN_COMPONENT}
