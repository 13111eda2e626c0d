"""Edits of scenes and their scores."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from examples.shapes.dataset import (
    DEFAULT_VOCABULARY,
    EditKind,
    EditRequest,
    Limits,
    Scene,
    SceneObject,
    ShapesDataset,
    Split,
    chance_of_edits,
    check_edit,
    detect,
    render,
    sample_edit,
    sample_edits,
    score_edits,
)
from examples.shapes.dataset.edit_scoring import expectation, find_background, scene_in
from examples.shapes.dataset.edits import Reference, cell_of
from examples.shapes.dataset.scene import GRID, TEXTURES, TINTS, Background, Relation, held_out
from janus_jax.processing import Task

PLAIN = Background("plain", "paper")


def scene_of(*objects, background=PLAIN):
    """Returns a scene from (shape, color, cell)."""
    found = [SceneObject(shape, color, "small", *GRID[cell]) for shape, color, cell in objects]
    return Scene(tuple(sorted(found, key=lambda obj: (obj.y, obj.x))), background)


def kinds(scene):
    return [(obj.shape, obj.color) for obj in scene.objects]


def check(request, source, result):
    return check_edit(request, source, render(source), render(result))


SOURCE = scene_of(("circle", "red", 0), ("star", "blue", 5), ("star", "green", 7))
RECOLOR = EditRequest(EditKind.RECOLOR, subject=Reference("circle"), color="blue")


@pytest.mark.parametrize("kind", EditKind)
def test_a_sampled_result_is_correct_and_the_source_is_not(kind):
    for index in range(12):
        edit = sample_edit(np.random.default_rng(index), Limits(), kind)
        assert edit.request.kind is kind
        verdict = check(edit.request, edit.source, edit.target)
        assert verdict.correct, (edit.request.text, verdict.reason)
        assert verdict.unchanged == 1
        same = check(edit.request, edit.source, edit.source)
        assert not same.met
        assert same.kept == same.unchanged == 1


@pytest.mark.parametrize("kind", EditKind)
def test_held_out_combinations_are_results_of_test_only(kind):
    for index in range(20):
        train = sample_edit(np.random.default_rng(index), Limits(), kind)
        assert not held_out(kinds(train.source))
        assert not held_out(kinds(train.target))
        assert held_out(kinds(sample_edit(np.random.default_rng(index), Limits(split=Split.TEST), kind).target))


def test_records_of_edits_have_a_source_a_target_and_a_request():
    for record in ShapesDataset().records(Task.EDITING, 60):
        assert len(record.images) == 2
        assert record.text
        for file in record.images:
            seen = detect(np.asarray(Image.open(io.BytesIO(file))))
            assert not held_out([(obj.shape, obj.color) for obj in seen])


def test_records_of_edits_can_be_restricted():
    dataset = ShapesDataset(edits=(EditKind.BACKGROUND,))
    assert all("background" in record.text for record in dataset.records(Task.EDITING, 10))
    about = frozenset({"heart"})
    new = ShapesDataset(vocabulary=DEFAULT_VOCABULARY.with_extras(*about), about=about)
    for record in new.records(Task.EDITING, 10):
        seen = [obj for file in record.images for obj in detect(np.asarray(Image.open(io.BytesIO(file))))]
        assert "heart" in {obj.shape for obj in seen}


def test_requests_vary_in_phrasing():
    texts = [record.text for record in ShapesDataset(edits=(EditKind.RECOLOR,)).records(Task.EDITING, 80)]
    assert {text.split()[0].lower() for text in texts} == {"make", "color", "change"}
    assert any(text[0].islower() and not text.endswith(".") for text in texts)
    assert any(" it " in text for text in texts)


def test_a_wrong_color_is_not_met_and_a_changed_object_is_not_kept():
    wrong = check(RECOLOR, SOURCE, scene_of(("circle", "green", 0), ("star", "blue", 5), ("star", "green", 7)))
    assert (wrong.met, wrong.kept) == (False, 1)
    assert "no blue circle" in wrong.reason
    lost = check(RECOLOR, SOURCE, scene_of(("circle", "blue", 0), ("star", "blue", 5), ("star", "red", 7)))
    assert (lost.met, lost.kept, lost.correct) == (True, 0.5, False)
    assert lost.unchanged < 1
    moved = check(RECOLOR, SOURCE, scene_of(("circle", "blue", 0), ("star", "blue", 4), ("star", "green", 7)))
    assert (moved.met, moved.kept) == (True, 0.5)


def test_additional_objects_are_not_correct():
    more = scene_of(("circle", "blue", 0), ("star", "blue", 5), ("star", "green", 7), ("cross", "red", 2))
    verdict = check(RECOLOR, SOURCE, more)
    assert (verdict.met, verdict.kept, verdict.surplus, verdict.correct) == (True, 1, 1, False)


def test_the_old_object_must_be_gone():
    source = scene_of(("circle", "red", 0))
    request = EditRequest(EditKind.MOVE, subject=Reference("circle"), cell=8)
    both = check(request, source, scene_of(("circle", "red", 0), ("circle", "red", 8)))
    assert not both.met
    assert "still there" in both.reason
    assert check(request, source, scene_of(("circle", "red", 8))).correct


def test_new_objects_need_the_requested_position():
    source = scene_of(("circle", "red", 4))
    request = EditRequest(
        EditKind.ADD, shape="star", color="blue", subject=Reference(is_pronoun=True), relation=Relation.LEFT
    )
    assert check(request, source, scene_of(("circle", "red", 4), ("star", "blue", 3))).correct
    assert not check(request, source, scene_of(("circle", "red", 4), ("star", "blue", 5))).met
    anywhere = dataclasses.replace(request, relation=None)
    assert check(anywhere, source, scene_of(("circle", "red", 4), ("star", "blue", 8))).correct


def test_numbers_keep_the_objects_that_stay():
    source = scene_of(("star", "blue", 0), ("star", "blue", 2), ("star", "blue", 7))
    request = EditRequest(EditKind.NUMBER, subject=Reference("star"), count=2)
    assert check(request, source, scene_of(("star", "blue", 2), ("star", "blue", 7))).correct
    assert not check(request, source, scene_of(("star", "blue", 2), ("star", "blue", 4))).met
    more = dataclasses.replace(request, count=4)
    grown = scene_of(("star", "blue", 0), ("star", "blue", 2), ("star", "blue", 7), ("star", "blue", 5))
    assert check(more, source, grown).correct


def test_a_request_needs_the_objects_that_it_names():
    assert expectation(EditRequest(EditKind.REMOVE, subject=Reference("cross")), SOURCE) is None
    assert expectation(EditRequest(EditKind.REMOVE, subject=Reference("star")), SOURCE) is None
    with pytest.raises(ValueError, match="does not show"):
        check(EditRequest(EditKind.REMOVE, subject=Reference("cross")), SOURCE, SOURCE)


def test_noise_within_the_tolerance_is_unchanged():
    image = render(SOURCE).astype(int)
    result = render(scene_of(("circle", "blue", 0), ("star", "blue", 5), ("star", "green", 7)))
    noisy = np.clip(result + np.random.default_rng(0).integers(-12, 13, result.shape), 0, 255).astype(np.uint8)
    assert check_edit(RECOLOR, SOURCE, image.astype(np.uint8), noisy).unchanged == 1
    darker = (result * 0.7).astype(np.uint8)
    assert check_edit(RECOLOR, SOURCE, image.astype(np.uint8), darker).unchanged < 0.5


def test_scenes_are_found_in_images():
    for texture in TEXTURES:
        for tint in TINTS:
            assert find_background(render(dataclasses.replace(SOURCE, background=Background(texture, tint)))) == (
                Background(texture, tint)
            )
    assert scene_in(render(SOURCE)) == SOURCE
    assert scene_in(render(Scene((), PLAIN))) is None


def test_cells_are_numbered_in_reading_order():
    assert [cell_of(*center) for center in GRID] == list(range(9))


def test_scores_have_a_chance_level():
    edits = sample_edits(6, Limits(split=Split.TEST))
    assert [edit.request.kind for edit in edits] == [kind for kind in EditKind for _ in range(6)]
    scores = score_edits(edits, [render(edit.target) for edit in edits])
    assert scores.correct.overall == scores.met.overall == scores.kept == scores.unchanged == 1
    chance = chance_of_edits(edits)
    assert 0 < chance.correct.overall < 0.6
    assert chance.kept < 1
