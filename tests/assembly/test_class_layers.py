"""Transfer of class layers by name."""

import numpy as np
import pytest

from ppdet_lite.assembly.class_layers import match_classes, with_class_count
from ppdet_lite.core.errors import UserError

THEIRS, OURS = ["cat", "dog", "cow"], ["horse", "cow", "cat"]


def layers(count: int, start: int) -> dict[str, np.ndarray]:
    """A detector's class layers of K classes and one more array; all values differ."""
    shapes = {
        "predictor.classify.weight": (2, count + 1),
        "predictor.classify.bias": (count + 1,),
        "predictor.regress.weight": (2, 4 * count),
        "predictor.regress.bias": (4 * count,),
        "box_head.fc1.weight": (3,),
    }
    arrays = {}
    for name, shape in shapes.items():
        arrays[name] = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
        start += 100
    return arrays


def test_shared_classes_and_the_background_are_carried_over() -> None:
    theirs, fresh = layers(3, 1000), layers(3, 5000)
    match = match_classes(theirs, THEIRS, OURS, fresh)
    assert (match.copied, match.new) == ({"cow": "cow", "cat": "cat"}, ["horse"])
    assert set(match.layers) == {name for name in theirs if name.startswith("predictor")}
    old, new = theirs["predictor.classify.bias"], fresh["predictor.classify.bias"]
    assert match.arrays["predictor.classify.bias"].tolist() == [new[0], old[2], old[0], old[3]]
    old, new = theirs["predictor.classify.weight"], fresh["predictor.classify.weight"]
    assert (
        match.arrays["predictor.classify.weight"].tolist()
        == np.stack([new[:, 0], old[:, 2], old[:, 0], old[:, 3]], 1).tolist()
    )
    old, new = theirs["predictor.regress.bias"], fresh["predictor.regress.bias"]
    assert match.arrays["predictor.regress.bias"].tolist() == [*new[:4], *old[8:12], *old[:4]]
    assert match.arrays["box_head.fc1.weight"] is theirs["box_head.fc1.weight"]


def test_another_number_of_classes() -> None:
    theirs, fresh = layers(3, 1000), layers(1, 5000)
    match = match_classes(theirs, THEIRS, ["dog"], fresh)
    old = theirs["predictor.classify.bias"]
    assert match.arrays["predictor.classify.bias"].tolist() == [old[1], old[3]]
    assert match.arrays["predictor.regress.bias"].tolist() == theirs["predictor.regress.bias"][4:8].tolist()


def test_renamed_classes() -> None:
    match = match_classes(layers(3, 0), THEIRS, ["puppy"], layers(1, 500), {"dog": "puppy"})
    assert (
        match.copied == {"puppy": "dog"}
        and match.arrays["predictor.classify.bias"][0] == layers(3, 0)["predictor.classify.bias"][1]
    )


def test_without_shared_classes_only_the_background_is_copied() -> None:
    match = match_classes(layers(3, 0), THEIRS, ["x"], layers(1, 500))
    assert (match.copied, match.new) == ({}, ["x"])
    assert match.arrays["predictor.regress.bias"].tolist() == layers(1, 500)["predictor.regress.bias"].tolist()


def test_class_agnostic_regression_is_unchanged() -> None:
    theirs, fresh = layers(3, 0), layers(1, 500)
    theirs["predictor.regress.bias"] = np.arange(4.0)
    assert match_classes(theirs, THEIRS, ["dog"], fresh).arrays["predictor.regress.bias"].tolist() == [0, 1, 2, 3]


def test_class_agnostic_regression_of_a_single_class_is_unchanged() -> None:
    """With one class, its four outputs are as many as those of a class-agnostic layer."""
    theirs, fresh = layers(1, 0), layers(3, 500)
    for suffix in ("weight", "bias"):
        fresh[f"predictor.regress.{suffix}"] = fresh[f"predictor.regress.{suffix}"][..., :4]
    match = match_classes(theirs, ["cow"], OURS, fresh)
    assert match.layers == ["predictor.classify.weight", "predictor.classify.bias"]
    assert match.arrays["predictor.regress.bias"].tolist() == theirs["predictor.regress.bias"].tolist()


def test_a_single_class_and_another_with_class_agnostic_boxes() -> None:
    """Shapes do not show that the boxes belong to no class; those of a cascade never do."""
    theirs, fresh = layers(1, 0), layers(1, 500)
    theirs["earlier.0.predictor.classify.bias"], fresh["earlier.0.predictor.classify.bias"] = np.arange(2), np.zeros(2)
    match = match_classes(theirs, ["cow"], ["dog"], fresh, class_agnostic=True)
    assert match.arrays["predictor.regress.bias"].tolist() == theirs["predictor.regress.bias"].tolist()
    assert match.arrays["predictor.classify.bias"].tolist() == [500 + 100, 0 + 101]
    assert match.arrays["earlier.0.predictor.classify.bias"].tolist() == [0, 1]
    shapes = {"predictor.regress.bias": (4,), "earlier.1.predictor.classify.bias": (2,)}
    assert with_class_count(shapes, 1, 80, class_agnostic=True) == {
        "predictor.regress.bias": (4,),
        "earlier.1.predictor.classify.bias": (81,),
    }


@pytest.mark.parametrize(
    ("renames", "told"),
    [
        ({"bird": "cat"}, "bird: cat: the weights have cat, dog, cow"),
        ({"dog": "bird"}, "the data have horse, cow, cat"),
    ],
)
def test_renaming_an_unknown_class_is_refused(renames: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        match_classes(layers(3, 0), THEIRS, OURS, layers(3, 500), renames)


@pytest.mark.parametrize("renames", [{"dog": "horse", "cow": "horse"}, {"dog": "cow"}, {"dog": "cat"}])
def test_two_classes_that_become_one_are_refused(renames: dict[str, str]) -> None:
    """Also if one of them has the target's name already."""
    with pytest.raises(UserError, match=r"pretrain_class_map: .*dog.* both become (horse|cow|cat); map only one to it"):
        match_classes(layers(3, 0), THEIRS, OURS, layers(3, 500), renames)


def test_a_swap_of_classes_is_no_collision() -> None:
    match = match_classes(layers(2, 0), ["a", "b"], ["a", "b"], layers(2, 500), {"a": "b", "b": "a"})
    assert match.copied == {"a": "b", "b": "a"}
    old = layers(2, 0)["predictor.classify.bias"]
    assert match.arrays["predictor.classify.bias"].tolist() == [old[1], old[0], old[2]]


def test_shapes_for_another_number_of_classes() -> None:
    shapes = {name: array.shape for name, array in layers(3, 0).items()}
    assert with_class_count(shapes, 3, 5) == {name: array.shape for name, array in layers(5, 0).items()}
    agnostic = {"predictor.regress.bias": (4,), "predictor.classify.bias": (4,)}
    assert with_class_count(agnostic, 3, 5) == {"predictor.regress.bias": (4,), "predictor.classify.bias": (6,)}
