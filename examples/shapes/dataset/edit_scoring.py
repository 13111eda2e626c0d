"""Scores edited images: whether the request is met, and whether everything else is kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from jaxtyping import Bool, UInt8

from examples.shapes.dataset.detector import UNKNOWN, Detection, detect
from examples.shapes.dataset.edits import EditKind, EditRequest, Limits, SceneEdit, cell_of, edit_scene, sample_edit
from examples.shapes.dataset.render import render
from examples.shapes.dataset.scene import GRID, SIZES, TEXTURES, TINTS, Background, Relation, Scene, SceneObject
from examples.shapes.dataset.scoring import Scores, check_count, mean_scores, relations
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, MAX_OBJECTS, Vocabulary

MAX_DIFFERENCE = 32
"""Largest difference, of 255, of a channel of an unchanged pixel. The image tokenizer alone changes pixels by less."""

_MARGIN = 0.09  # around an object, as a fraction of the image side: its shadow and the pixels that its token shares
_MAX_TRIES = 1_000


@dataclass(frozen=True)
class Goal:
    """An object that an edited image must show, and that the source did not show there.

    Attributes:
      cells: Cells in which the object may be. None for any.
      color: None for any.
      relation: Position relative to `reference`, an object that is kept.
    """

    shape: str
    color: str | None = None
    cells: frozenset[int] | None = None
    relation: Relation | None = None
    reference: SceneObject | None = None


@dataclass(frozen=True)
class Expectation:
    """What an edited image must show.

    Attributes:
      kept: Objects of the source that must not change.
      goals: Objects that must be new.
      background: Background of the result.
    """

    kept: tuple[SceneObject, ...]
    goals: tuple[Goal, ...]
    background: Background


@dataclass(frozen=True)
class EditVerdict:
    """Result for one edited image.

    Attributes:
      met: Whether the request is met.
      kept: Share of the other objects that have the same shape, color and cell as before; 1 without other objects.
      has_others: Whether the source has other objects.
      unchanged: Share of the other pixels that differ from the source by at most `MAX_DIFFERENCE`.
      surplus: Number of objects that are neither requested nor in the source.
      reason: Describes what is wrong; empty if the edit is correct.
      found: Detected objects.
    """

    met: bool
    kept: float
    has_others: bool
    unchanged: float
    surplus: int
    reason: str
    found: tuple[Detection, ...]

    @property
    def correct(self) -> bool:
        """Whether the request is met, all other objects are kept, and no others are added."""
        return self.met and self.kept == 1 and not self.surplus


@dataclass(frozen=True)
class EditScores:
    """Scores of edits.

    Attributes:
      correct: Fraction of correct edits, by kind.
      met: Fraction of edits whose request is met, by kind.
      kept: Mean share of the other objects that are kept, over the edits of images with other objects.
      unchanged: Mean share of the other pixels that are unchanged.
    """

    correct: Scores
    met: Scores
    kept: float
    unchanged: float


def sample_edits(edits_per_kind: int, limits: Limits, seed: int = 0) -> list[SceneEdit]:
    """Returns random edits for an evaluation, the same number of each kind."""
    return [
        sample_edit(np.random.default_rng((seed, number, index)), limits, kind)
        for number, kind in enumerate(EditKind)
        for index in range(edits_per_kind)
    ]


def expectation(request: EditRequest, scene: Scene) -> Expectation | None:
    """Returns the requirements on an edit of a scene, or None if the scene does not have the objects that it names."""
    named = request.subject.matching(scene)
    background, goals = scene.background, list[Goal]()
    changed: list[SceneObject] = []
    one = named[0] if len(named) == 1 else None
    match request.kind:
        case EditKind.BACKGROUND:
            background = replace(background, texture=request.texture)
        case EditKind.NUMBER:
            if not named:
                return None
            # New objects have the color of the others, and those that stay keep their cells.
            first, more = named[0], request.count - len(named)
            if more < 0:
                changed, cells = named, frozenset(cell_of(obj.x, obj.y) for obj in named)
                goals = [Goal(first.shape, first.color, cells)] * request.count
            else:
                goals = [Goal(first.shape, first.color)] * more
        case EditKind.ADD:
            if request.relation and one is None:
                return None
            at = None if request.cell is None else frozenset({request.cell})
            goals = [Goal(request.shape, request.color, at, request.relation, one if request.relation else None)]
        case EditKind.SWAP:
            others = request.other.matching(scene)
            if one is None or len(others) != 1:
                return None
            changed = [one, others[0]]
            goals = [_goal(one, at=others[0]), _goal(others[0], at=one)]
        case _:
            if one is None:
                return None
            changed = [one]
            match request.kind:
                case EditKind.RECOLOR:
                    goals = [_goal(replace(one, color=request.color or one.color))]
                case EditKind.SHAPE:
                    goals = [_goal(replace(one, shape=request.shape))]
                case EditKind.MOVE:
                    assert request.cell is not None, "a move has a cell"
                    goals = [Goal(one.shape, one.color, frozenset({request.cell}))]
    return Expectation(tuple(obj for obj in scene.objects if obj not in changed), tuple(goals), background)


def check_edit(
    edit: EditRequest, source: Scene, before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "H W 3"]
) -> EditVerdict:
    """Returns the verdict on an edited image.

    Args:
      edit: The request.
      source: Scene of the source image.
      before: Source image.
      after: Edited image, of the same size.

    Raises:
      ValueError: The source does not have the objects that the request names.
    """
    expected = expectation(edit, source)
    if expected is None:
        raise ValueError(f"{edit.text!r} names objects that the image does not show.")
    left = sorted(detect(after), key=lambda detection: -detection.score)
    found = tuple(left)
    kept: dict[int, Detection] = {}
    for index, obj in enumerate(expected.kept):
        goal = _goal(obj)
        if match := next((one for one in left if _meets(goal, one, None)), None):
            kept[index] = match
            left.remove(match)
    reason, new = "", list[Detection]()
    for goal in expected.goals:
        reference = kept.get(expected.kept.index(goal.reference)) if goal.reference else None
        if match := next((one for one in left if _meets(goal, one, reference)), None):
            new.append(match)
            left.remove(match)
        else:
            reason = reason or f"no {' '.join(filter(None, (goal.color, goal.shape)))} as asked for"
    gone = [obj for obj in source.objects if obj not in expected.kept]
    if not reason and any(_meets(_goal(obj), one, None) for obj in gone for one in left):
        reason = "the old object is still there"
    if not reason and edit.kind is EditKind.BACKGROUND and (seen := find_background(after)) != expected.background:
        reason = f"background {seen.texture} {seen.tint} instead of {expected.background.texture}"
    met = not reason
    lost = len(expected.kept) - len(kept)
    surplus = max(len(left) - lost, 0)
    if lost:
        reason = reason or f"{lost} of {len(expected.kept)} other objects changed"
    elif surplus:
        reason = reason or f"{surplus} more than asked for"
    share = len(kept) / len(expected.kept) if expected.kept else 1.0
    mask = _other_pixels(edit, source, expected, new, len(after))
    same = np.abs(after.astype(np.int16) - before).max(-1) <= MAX_DIFFERENCE
    unchanged = float(same[mask].mean()) if mask.any() else 1.0
    return EditVerdict(met, share, bool(expected.kept), unchanged, surplus, reason, found)


def score_edits(edits: Sequence[SceneEdit], images: Iterable[UInt8[np.ndarray, "H W 3"]]) -> EditScores:
    """Returns the scores of edited images, one per edit.

    Raises:
      JanusError: The numbers of images and edits differ, or are 0.
    """
    images = list(images)
    check_count("images", len(images), "edits", len(edits))
    verdicts = [
        check_edit(edit.request, edit.source, render(edit.source, len(image)), image)
        for edit, image in zip(edits, images, strict=True)
    ]
    return score_edit_verdicts([edit.request for edit in edits], verdicts)


def score_edit_verdicts(requests: Sequence[EditRequest], verdicts: Sequence[EditVerdict]) -> EditScores:
    """Returns the scores for verdicts on edited images, one per request."""
    return EditScores(
        _by_kind(requests, [verdict.correct for verdict in verdicts]),
        _by_kind(requests, [verdict.met for verdict in verdicts]),
        fmean([verdict.kept for verdict in verdicts if verdict.has_others] or [1.0]),
        fmean(verdict.unchanged for verdict in verdicts),
    )


def chance_of_edits(
    edits: Sequence[SceneEdit], vocabulary: Vocabulary = DEFAULT_VOCABULARY, seed: int = 0, size: int = 48
) -> EditScores:
    """Returns the scores of random edits: of the same image and kind, but with other objects, colors and positions."""
    rng = np.random.default_rng(seed)
    limits = Limits(vocabulary, None)

    def random_target(edit: SceneEdit) -> Scene:
        tries = (edit_scene(rng, edit.source, edit.request.kind, limits) for _ in range(_MAX_TRIES))
        return next((one.target for one in tries if one), edit.source)

    return score_edits(edits, (render(random_target(edit), size) for edit in edits))


def scene_in(image: UInt8[np.ndarray, "H W 3"]) -> Scene | None:
    """Returns the scene that an image shows, at the centers of the grid, or None if it is no scene of the dataset."""
    found = detect(image)
    cells = [cell_of(*one.center) for one in found]
    if any(one.shape == UNKNOWN for one in found) or len(set(cells)) != len(cells) or not 0 < len(found) <= MAX_OBJECTS:
        return None
    objects = [
        SceneObject(one.shape, one.color, _size_of(one), *GRID[cell]) for one, cell in zip(found, cells, strict=True)
    ]
    return Scene(tuple(sorted(objects, key=lambda obj: (obj.y, obj.x))), find_background(image))


def find_background(image: UInt8[np.ndarray, "H W 3"]) -> Background:
    """Returns the background of an image: the one with the smallest squared difference outside of objects."""
    mask = ~_boxes(detect(image), len(image))
    candidates = [Background(texture, tint) for texture in TEXTURES for tint in TINTS]
    pixels = image[mask].astype(np.float32)
    errors = [
        float(np.square(render(Scene((), one), len(image))[mask] - pixels).mean()) if mask.any() else 0.0
        for one in candidates
    ]
    return candidates[int(np.argmin(errors))]


def _size_of(found: Detection) -> str:
    left, top, right, bottom = found.box
    extent = max(right - left, bottom - top)
    return min(SIZES, key=lambda size: abs(SIZES[size] - extent))


def _goal(obj: SceneObject, at: SceneObject | None = None) -> Goal:
    place = at or obj
    return Goal(obj.shape, obj.color, frozenset({cell_of(place.x, place.y)}))


def _meets(goal: Goal, found: Detection, reference: Detection | None) -> bool:
    if found.shape != goal.shape or goal.color not in (None, found.color):
        return False
    if goal.cells is not None and cell_of(*found.center) not in goal.cells:
        return False
    return goal.relation is None or (reference is not None and goal.relation in relations(found, reference))


def _boxes(found: Iterable[Detection], size: int) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of the pixels near objects."""
    mask = np.zeros((size, size), bool)
    for one in found:
        left, top, right, bottom = (
            round(edge * size) for edge in np.clip(np.add(one.box, (-_MARGIN, -_MARGIN, _MARGIN, _MARGIN)), 0, 1)
        )
        mask[top:bottom, left:right] = True
    return mask


def _other_pixels(
    edit: EditRequest, source: Scene, expected: Expectation, new: Sequence[Detection], size: int
) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of the pixels that the edit must not change."""
    kept = Scene(expected.kept, source.background)
    if edit.kind is EditKind.BACKGROUND:
        # Inside of objects the pixels are equal on every background.
        return (render(kept, size) == render(replace(kept, background=expected.background), size)).all(-1)
    mask: Bool[np.ndarray, "H W"] = (render(kept, size) == render(source, size)).all(-1) & ~_boxes(new, size)
    return mask


def _by_kind(requests: Sequence[EditRequest], values: Sequence[float]) -> Scores:
    return mean_scores([request.kind.value for request in requests], values)
