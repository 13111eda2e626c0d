"""Edits of scenes: requests to change an image, and the scenes before and after."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from examples.shapes.dataset.captions import T, count_phrase, plural
from examples.shapes.dataset.scene import (
    COLUMNS,
    GRID,
    ROWS,
    SIZES,
    TEXTURES,
    Background,
    Category,
    Relation,
    Scene,
    SceneObject,
    are_separate,
    held_out,
    relation,
    sample_scene,
)
from examples.shapes.dataset.vocabulary import DEFAULT_VOCABULARY, MAX_OBJECTS, Split, Vocabulary
from janus_jax.errors import JanusError

_MAX_TRIES = 20_000
_COLOR_PROBABILITY = 0.7  # of a new object in requests
_CASUAL_PROBABILITY = 0.25  # of a request in lower case without a period


class EditKind(enum.StrEnum):
    """What an edit changes."""

    RECOLOR = "recolor"
    ADD = "add"
    REMOVE = "remove"
    MOVE = "move"
    SWAP = "swap"
    SHAPE = "shape"
    NUMBER = "number"
    BACKGROUND = "background"


@dataclass(frozen=True)
class Reference:
    """Words that name one or several objects of an image.

    Attributes:
      shape: Shape of the objects. None allows any.
      color: Color of the objects. None allows any.
      is_pronoun: Whether the request says `it`, for the only object.
    """

    shape: str | None = None
    color: str | None = None
    is_pronoun: bool = False

    def matching(self, scene: Scene) -> list[SceneObject]:
        """Returns the objects of a scene that the words name."""
        return [obj for obj in scene.objects if self.shape in (None, obj.shape) and self.color in (None, obj.color)]

    def __str__(self) -> str:
        return "it" if self.is_pronoun else " ".join(("the", *filter(None, (self.color,)), self.shape or "object"))


@dataclass(frozen=True)
class EditRequest:
    """A request to change an image. It can be applied to any scene that has the objects it names.

    Attributes:
      kind: What it changes.
      text: The request in words.
      subject: The objects that change. ADD: the object next to which the new one appears, if `relation` is set.
      other: SWAP: the second object.
      shape: SHAPE, ADD: shape of the new object.
      color: RECOLOR, ADD: color of the new object. None for any color.
      cell: MOVE, ADD: index in `GRID` of the new position. None for any position.
      relation: ADD: position relative to the subject.
      count: NUMBER: number of objects in the result.
      texture: BACKGROUND: texture of the result.
    """

    kind: EditKind
    text: str = ""
    subject: Reference = Reference()
    other: Reference = Reference()
    shape: str = ""
    color: str | None = None
    cell: int | None = None
    relation: Relation | None = None
    count: int = 0
    texture: str = ""


@dataclass(frozen=True)
class SceneEdit:
    """A request with a scene and one correct result."""

    request: EditRequest
    source: Scene
    target: Scene


@dataclass(frozen=True)
class Limits:
    """Restrictions on sampled edits.

    Attributes:
      vocabulary: Shapes and colors that may occur.
      split: TRAIN allows no result with a held-out combination. In TEST every result is one. None allows all.
      named: Facts that requests may use to name objects, apart from shapes: whether colors are allowed.
    """

    vocabulary: Vocabulary = DEFAULT_VOCABULARY
    split: Split | None = Split.TRAIN
    names_colors: bool = True

    def allows(self, scene: Scene) -> bool:
        """Returns whether a scene may be the result of an edit."""
        if self.split is None:
            return True
        return bool(held_out([(obj.shape, obj.color) for obj in scene.objects])) == (self.split is Split.TEST)


def cell_of(x: float, y: float) -> int:
    """Returns the index in `GRID` of the cell that contains a point."""
    column, row = (min(max(int(at * 3), 0), 2) for at in (x, y))
    return row * len(COLUMNS) + column


def sample_edit(
    rng: np.random.Generator,
    limits: Limits = Limits(),
    kind: EditKind | None = None,
    about: frozenset[str] = frozenset(),
) -> SceneEdit:
    """Returns a random scene with a random edit.

    Args:
      rng: Random generator.
      limits: Restrictions on the edit. In TRAIN the scene is not held out either.
      kind: Kind of the edit. None for a random one.
      about: If not empty, the scene or the result shows at least one of these shapes and colors.

    Raises:
      JanusError: No such edit was found.
    """
    kind = kind or tuple(EditKind)[rng.integers(len(EditKind))]
    split = limits.split if limits.split is Split.TRAIN else None
    for _ in range(_MAX_TRIES):
        counts = kind is EditKind.NUMBER and rng.random() < 0.5
        scene = sample_scene(rng, limits.vocabulary, split, Category.COUNTING if counts else None)
        edit = edit_scene(rng, scene, kind, limits)
        if edit and (not about or about & (scene.shapes | scene.colors | edit.target.shapes | edit.target.colors)):
            return edit
    raise JanusError(
        f"No edit of the kind {kind} exists with {', '.join(limits.vocabulary.shapes)} in "
        f"{', '.join(limits.vocabulary.colors)}; give the vocabulary more shapes and colors."
    )


def edit_scene(rng: np.random.Generator, scene: Scene, kind: EditKind, limits: Limits) -> SceneEdit | None:
    """Returns a random edit of a scene, or None if a random choice of the objects allows none within the limits."""
    made = _SAMPLERS[kind](rng, scene, limits)
    if made is None:
        return None
    request, target = made
    target = replace(target, objects=tuple(sorted(target.objects, key=lambda obj: (obj.y, obj.x))))
    if target == scene or not limits.allows(target):
        return None
    return SceneEdit(replace(request, text=casual(request.text, rng)), scene, target)


_Made = tuple[EditRequest, Scene] | None
_Sampler = Callable[[np.random.Generator, Scene, Limits], _Made]


def _choose(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def casual(text: str, rng: np.random.Generator) -> str:
    """Returns a request unchanged or, sometimes, in lower case and without its period."""
    return text[0].lower() + text[1:].removesuffix(".") if rng.random() < _CASUAL_PROBABILITY else text


def _references(scene: Scene, obj: SceneObject, limits: Limits) -> list[Reference]:
    """Returns all ways to name one object."""
    found = []
    if len(scene.objects) == 1:
        found.append(Reference(is_pronoun=True))
    if scene.count(obj.shape) == 1:
        found.append(Reference(obj.shape))
    if limits.names_colors:
        if scene.count(obj.shape, obj.color) == 1:
            found.append(Reference(obj.shape, obj.color))
        if scene.count(color=obj.color) == 1:
            found.append(Reference(color=obj.color))
    return found


def _pick(rng: np.random.Generator, scene: Scene, limits: Limits) -> tuple[SceneObject, Reference] | None:
    """Returns a random object and a way to name it, or None if the object cannot be named."""
    obj = _choose(rng, scene.objects)
    names = _references(scene, obj, limits)
    return (obj, _choose(rng, names)) if names else None


def _exchange(scene: Scene, *changes: tuple[SceneObject, SceneObject | None]) -> Scene | None:
    """Returns a scene in which objects are replaced or, with None, removed; None if objects would touch."""
    table = {id(old): new for old, new in changes}
    objects = tuple(new for obj in scene.objects if (new := table.get(id(obj), obj)) is not None)
    return _checked(replace(scene, objects=objects))


def _checked(scene: Scene) -> Scene | None:
    centers, sizes = tuple((obj.x, obj.y) for obj in scene.objects), tuple(obj.size for obj in scene.objects)
    is_valid = 0 < len(centers) <= MAX_OBJECTS and len(set(centers)) == len(centers) and are_separate(centers, sizes)
    return scene if is_valid else None


def _with_object(scene: Scene, obj: SceneObject) -> Scene | None:
    return _checked(replace(scene, objects=(*scene.objects, obj)))


def _recolor(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    if not (picked := _pick(rng, scene, limits)):
        return None
    obj, name = picked
    color = _choose(rng, [color for color in limits.vocabulary.colors if color != obj.color])
    texts = (f"Make {name} {color}.", f"Color {name} {color}.", f"Change the color of {name} to {color}.")
    target = _exchange(scene, (obj, replace(obj, color=color)))
    return (EditRequest(EditKind.RECOLOR, _choose(rng, texts), name, color=color), target) if target else None


def _change_shape(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    if not (picked := _pick(rng, scene, limits)):
        return None
    obj, name = picked
    shape = _choose(rng, [shape for shape in limits.vocabulary.shapes if shape != obj.shape])
    new = count_phrase(1, shape)
    texts = (f"Turn {name} into {new}.", f"Replace {name} with {new}.", f"Make {name} {new}.")
    target = _exchange(scene, (obj, replace(obj, shape=shape)))
    return (EditRequest(EditKind.SHAPE, _choose(rng, texts), name, shape=shape), target) if target else None


def _remove(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    if len(scene.objects) < 2 or not (picked := _pick(rng, scene, limits)):
        return None
    obj, name = picked
    texts = (f"Remove {name}.", f"Delete {name}.", f"Take {name} away.")
    target = _exchange(scene, (obj, None))
    return (EditRequest(EditKind.REMOVE, _choose(rng, texts), name), target) if target else None


def _move(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    if not (picked := _pick(rng, scene, limits)):
        return None
    obj, name = picked
    cell = int(rng.integers(len(GRID)))
    x, y = GRID[cell]
    texts = (f"Move {name} to {_cell_phrase(cell)}.", f"Put {name} in {_cell_phrase(cell)}.")
    target = _exchange(scene, (obj, replace(obj, x=x, y=y)))
    return (EditRequest(EditKind.MOVE, _choose(rng, texts), name, cell=cell), target) if target else None


def _swap(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    picked = [_pick(rng, scene, limits) for _ in range(2)]
    if not picked[0] or not picked[1]:
        return None
    (one, name), (other, second) = picked[0], picked[1]
    if (one.shape, one.color) == (other.shape, other.color):
        return None
    texts = (f"Swap {name} and {second}.", f"Exchange {name} and {second}.", f"Let {name} and {second} swap places.")
    target = _exchange(scene, (one, replace(one, x=other.x, y=other.y)), (other, replace(other, x=one.x, y=one.y)))
    return (EditRequest(EditKind.SWAP, _choose(rng, texts), name, second), target) if target else None


def _add(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    if len(scene.objects) == MAX_OBJECTS:
        return None
    shape, color = _choose(rng, limits.vocabulary.shapes), _choose(rng, limits.vocabulary.colors)
    cell = int(rng.integers(len(GRID)))
    obj = SceneObject(shape, color, _choose(rng, tuple(SIZES)), *GRID[cell])
    target = _with_object(scene, obj)
    if target is None:
        return None
    names_color = rng.random() < _COLOR_PROBABILITY
    request = EditRequest(EditKind.ADD, shape=shape, color=color if names_color else None)
    where = ""
    match int(rng.integers(3)):
        case 1:
            request, where = replace(request, cell=cell), f" in {_cell_phrase(cell)}"
        case 2:
            if not (picked := _pick(rng, scene, limits)):
                return None
            other, name = picked
            # Aligned objects only, so that the relation is clear.
            if (obj.x != other.x and obj.y != other.y) or not (side := relation(obj, other)):
                return None
            request, where = replace(request, relation=side, subject=name), f" {side.phrase} {name}"
    new = count_phrase(1, f"{color} {shape}" if names_color else shape)
    texts = (f"Add {new}{where}.", f"Put {new}{where}." if where else f"Add {new}.", f"Also show {new}{where}.")
    return replace(request, text=_choose(rng, texts)), target


def _change_number(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    obj = _choose(rng, scene.objects)
    same = [one for one in scene.objects if (one.shape, one.color) == (obj.shape, obj.color)]
    is_unique = scene.count(obj.shape) == len(same)
    if not is_unique and not limits.names_colors:
        return None
    name = Reference(obj.shape, None if (is_unique and rng.random() < 0.5) or not limits.names_colors else obj.color)
    most = MAX_OBJECTS - (len(scene.objects) - len(same))
    counts = [count for count in range(1, most + 1) if count != len(same)]
    if not counts:
        return None
    count = _choose(rng, counts)
    target: Scene | None = replace(scene, objects=tuple(one for one in scene.objects if one not in same[count:]))
    for cell in rng.permutation(len(GRID)).tolist():
        if target and len(same) < count and len(target.objects) < len(scene.objects) + count - len(same):
            target = _with_object(target, replace(obj, x=GRID[cell][0], y=GRID[cell][1])) or target
    if not target or len(target.objects) != len(scene.objects) + count - len(same):
        return None
    words = " ".join(filter(None, (name.color, name.shape)))
    number = count_phrase(count, words) if count > 1 else f"one {words}"
    texts = (
        f"Show {number}.",
        f"Change the number of {plural(words)} to {number.partition(' ')[0]}.",
        f"Make it {number}.",
    )
    return EditRequest(EditKind.NUMBER, _choose(rng, texts), name, count=count), target


def _change_background(rng: np.random.Generator, scene: Scene, limits: Limits) -> _Made:
    texture = _choose(rng, [texture for texture in TEXTURES if texture != scene.background.texture])
    texts = (
        f"Make the background {texture}.",
        f"Change the background to {texture}.",
        f"Give it {count_phrase(1, texture)} background.",
    )
    target = replace(scene, background=Background(texture, scene.background.tint))
    return EditRequest(EditKind.BACKGROUND, _choose(rng, texts), texture=texture), target


def _cell_phrase(cell: int) -> str:
    row, column = ROWS[cell // len(COLUMNS)], COLUMNS[cell % len(COLUMNS)]
    return f"the {row} {column}" if row != column else f"the {row}"


_SAMPLERS: dict[EditKind, _Sampler] = {
    EditKind.RECOLOR: _recolor,
    EditKind.ADD: _add,
    EditKind.REMOVE: _remove,
    EditKind.MOVE: _move,
    EditKind.SWAP: _swap,
    EditKind.SHAPE: _change_shape,
    EditKind.NUMBER: _change_number,
    EditKind.BACKGROUND: _change_background,
}
"""Functions that return a random request about a scene and a result, or None if their random choice is not possible."""
