"""The R-CNN teacher: the sampled RoIs, their patches, and the losses."""

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.mimic import Omega, RCNNTeacher, network_sources
from ppdet_lite.structures import Originals, Rois, SampledRois
from tests import tiny

K = tiny.NUM_CLASSES
# Two images, as the RoI sampler leaves them: foreground first, ground truth among it. Rows 0-6 and 7-10.
CLASSES = [0, 2, 1, 0, K, K, K, 1, 1, K, K]
IS_PROPOSAL = [True, True, False, True, True, True, True, False, True, True, True]
COUNTS = [7, 4]
ROWS = {  # by (rois, include_ground_truth)
    ("foreground", False): [0, 1, 3, 8],
    ("foreground", True): [0, 1, 2, 3, 7, 8],
    ("background", False): [4, 5, 6, 9, 10],
    ("background", True): [4, 5, 6, 9, 10],
    ("both", False): [0, 1, 3, 4, 5, 6, 8, 9, 10],
    ("both", True): list(range(11)),
}


def sampled(classes=CLASSES, is_proposal=IS_PROPOSAL, counts=COUNTS) -> SampledRois:
    boxes = paddle.to_tensor(tiny.random_boxes(np.random.default_rng(0), len(classes)))
    return SampledRois(
        Rois(boxes, tiny.int32(counts)),
        tiny.int64(classes),
        boxes,
        paddle.to_tensor(np.array(is_proposal, bool)),
        tiny.int64([row for row, label in enumerate(classes) if label < K]),
    )


def teacher(**options) -> RCNNTeacher:
    paddle.seed(0)
    return RCNNTeacher(8, K, **options)


def features(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)


def losses(student: np.ndarray, taught: np.ndarray, **options) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Return the losses for class 1 and the gradients of `loss_mimic` in both features."""
    sides = [paddle.to_tensor(side, stop_gradient=False) for side in (student, taught)]
    mimic = teacher(**{"loss_weight": 1.0, "cls_loss_weight": 1.0, **options})
    found = mimic.losses(*sides, mimic.classify(sides[1]), paddle.ones([len(student)], dtype="int64"))
    found["loss_mimic"].backward()
    gradients = [np.zeros_like(student) if side.grad is None else side.grad.numpy() for side in sides]
    return {name: value.item() for name, value in found.items()}, *gradients


@pytest.mark.parametrize(("kind", "include_ground_truth"), ROWS)
def test_candidates_of_sampling(kind: str, include_ground_truth: bool) -> None:
    rois = sampled()
    rows = ROWS[kind, include_ground_truth]
    omega = teacher(rois=kind, include_ground_truth=include_ground_truth).sample(rois)
    assert omega.rows.tolist() == rows
    assert omega.classes.tolist() == [CLASSES[row] for row in rows]
    assert omega.rois.boxes.tolist() == [rois.rois.boxes[row].tolist() for row in rows]
    assert omega.rois.counts.tolist() == [sum(row < 7 for row in rows), sum(row >= 7 for row in rows)]


def test_samples_at_most_rois_per_image_at_random() -> None:
    seen = []
    for seed in range(40):
        paddle.seed(seed)
        omega = RCNNTeacher(8, K, rois_per_image=2, rois="background").sample(sampled())
        rows = omega.rows.tolist()
        assert omega.rois.counts.tolist() == [2, 2] and rows == sorted(set(rows)) and rows[2:] == [9, 10]
        seen += rows[:2]
    assert set(seen) == {4, 5, 6}
    assert min(seen.count(row) for row in (4, 5, 6)) > 15  # 80 draws


def test_sampling_depends_on_the_seed() -> None:
    mimic = teacher(rois_per_image=2, rois="both")
    drawn = []
    for seed in (3, 3, 4):
        paddle.seed(seed)
        drawn.append(mimic.sample(sampled()).rows.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "rois",
    [sampled([K, K, K], [True] * 3, [1, 2]), sampled([1, 0], [False] * 2, [1, 1]), sampled([], [], [0, 0])],
    ids=["background only", "ground truth only", "none"],
)
def test_no_roi_to_sample(rois: SampledRois) -> None:
    omega = teacher().sample(rois)
    assert omega.rows.shape == [0] and omega.rois.boxes.shape == [0, 4] and omega.rois.counts.tolist() == [0, 0]


@pytest.mark.parametrize(("factor", "loss"), [(1, 0), (3, 0), (-1, 2), (-0.2, 2)])
def test_loss_of_equal_and_opposite_directions(factor: float, loss: float) -> None:
    found, *gradients = losses(features(1), factor * features(1))
    assert found["loss_mimic"] == pytest.approx(loss, abs=1e-6)
    assert np.abs(gradients).max() < 1e-6


def test_loss_of_orthogonal_features_and_mean() -> None:
    first, second = np.eye(8, dtype=np.float32)[:2], np.eye(8, dtype=np.float32)[[1, 1]]
    assert losses(first, second)[0]["loss_mimic"] == pytest.approx((1 + 0) / 2)


def test_weights_multiply_the_losses() -> None:
    whole, _, gradient = losses(features(1), features(2))
    part, _, part_gradient = losses(features(1), features(2), loss_weight=0.1, cls_loss_weight=0.3)
    assert part == pytest.approx(
        {"loss_mimic": 0.1 * whole["loss_mimic"], "loss_mimic_cls": 0.3 * whole["loss_mimic_cls"]}
    )
    np.testing.assert_allclose(part_gradient, 0.1 * gradient, rtol=1e-5)


def test_loss_and_gradients_equal_the_formula_and_finite_differences() -> None:
    student, taught = features(1), features(2)

    def formula(student: np.ndarray, taught: np.ndarray) -> float:
        lengths = np.linalg.norm(student, axis=1) * np.linalg.norm(taught, axis=1)
        return float(np.mean(1 - (student * taught).sum(axis=1) / lengths))

    found, *gradients = losses(student, taught)
    assert found["loss_mimic"] == pytest.approx(formula(student, taught), rel=1e-6)
    sides = [student.astype(np.float64), taught.astype(np.float64)]
    for side, gradient in enumerate(gradients):
        for place in np.ndindex(student.shape):
            step = np.zeros_like(sides[side])
            step[place] = 1e-6
            up, down = ([s + sign * step * (i == side) for i, s in enumerate(sides)] for sign in (1, -1))
            assert gradient[place] == pytest.approx((formula(*up) - formula(*down)) / 2e-6, abs=1e-6)


def test_features_of_zero_have_finite_gradients() -> None:
    found, *gradients = losses(np.zeros((2, 8), np.float32), features(2, 2))
    assert found["loss_mimic"] == 1 and np.isfinite(gradients).all()


def test_metrics_by_hand() -> None:
    """Cosines 1, -1, 0 and 1; two of four classes are right; three patches of one image and one of another."""
    side = np.eye(8, dtype=np.float32)
    student, taught = side[[0, 1, 2, 3]], np.stack([2 * side[0], -side[1], side[5], side[3]])
    logits = side[[0, 2, 1, 1], : K + 1]
    omega = Omega(tiny.int64(range(4)), tiny.rois([[0, 0, 1, 1]] * 3, [[0, 0, 1, 1]]), tiny.int64([0, 2, K, 0]))
    found = teacher().metrics(*(paddle.to_tensor(value) for value in (student, taught, logits)), omega)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"mimic_rois": 2.0, "mimic_cosine": 0.25, "mimic_accuracy": 0.5}
    )


def test_defaults_are_those_of_the_paper() -> None:
    """32 foreground proposals per image, patches of 224, both losses weighted 0.1, an untrained classifier."""
    paddle.seed(0)
    mimic = RCNNTeacher(1024, 80)
    assert (mimic.rois_per_image, mimic.kind, mimic.include_ground_truth) == (32, "foreground", False)
    assert (mimic.crop_size, mimic.loss_weight, mimic.cls_loss_weight) == (224, 0.1, 0.1)
    assert (mimic.backbone, mimic.stopped_side, mimic.start_iteration) == (None, "none", 0)
    assert mimic.classify.weight.shape == [1024, 81]
    assert mimic.classify.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not mimic.classify.bias.numpy().any()


def test_the_classifier_has_a_separate_loss() -> None:
    mimic, taught = teacher(cls_loss_weight=1.0), paddle.to_tensor(features(2))
    logits = mimic.classify(taught)
    classes = tiny.int64([0, K, 1, 2])
    found = mimic.losses(taught, taught, logits, classes)["loss_mimic_cls"].item()
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    assert logits.shape == [4, K + 1]
    assert found == pytest.approx(-np.log(shares[range(4), classes.numpy()]).mean(), rel=1e-5)


@pytest.mark.parametrize("stopped", ["none", "teacher", "student"])
def test_a_stopped_side_gets_no_mimicking_gradient(stopped: str) -> None:
    whole, *gradients = losses(features(1), features(2))
    found, student, taught = losses(features(1), features(2), stop_gradient=stopped)
    assert found == whole
    np.testing.assert_array_equal(student, gradients[0] * (stopped != "student"))
    np.testing.assert_array_equal(taught, gradients[1] * (stopped != "teacher"))


def test_a_stopped_teacher_still_learns_to_classify() -> None:
    taught = paddle.to_tensor(features(2), stop_gradient=False)
    mimic = teacher(stop_gradient="teacher")
    mimic.losses(taught.detach(), taught, mimic.classify(taught), tiny.int64([0, 1, 2, 3]))["loss_mimic_cls"].backward()
    assert np.abs(taught.grad.numpy()).max() > 0


def test_losses_are_float32_for_any_feature_dtype() -> None:
    """In mixed precision the features are bfloat16."""
    mimic = teacher()
    low = [paddle.to_tensor(features(seed)).astype("bfloat16") for seed in (1, 2)]
    found = mimic.losses(*low, mimic.classify(low[1].astype("float32")).astype("bfloat16"), tiny.int64([0, 1, 2, 3]))
    assert {value.dtype for value in found.values()} == {paddle.float32}
    expected = losses(*[side.astype("float32").numpy() for side in low])[0]["loss_mimic"]
    assert found["loss_mimic"].item() == pytest.approx(0.1 * expected, rel=1e-5)


SIZES, SCALES = [(24, 36), (40, 30)], [(0.5, 0.5), (2.0, 1.25)]
BOXES = [  # in network pixels; at and over the edges too
    [[3.2, 4.1, 20.7, 11.3], [0, 0, 36, 24], [-4, 5, 39.5, 26], [35, 23, 36, 24]],
    [[1.5, 2.5, 29.9, 12.25], [0, 30, 8, 40]],
]


def original_sources(flipped: list[bool]) -> Originals:
    rng = np.random.default_rng(0)
    shapes = [(round(h / sy), round(w / sx)) for (h, w), (sy, sx) in zip(SIZES, SCALES, strict=True)]
    images = [paddle.to_tensor(rng.standard_normal((3, *shape)).astype(np.float32)) for shape in shapes]
    return Originals(images, flipped)


@pytest.mark.parametrize("flipped", [[False, False], [True, False], [True, True]])
def test_crops_of_the_originals_equal_a_slow_loop(flipped: list[bool]) -> None:
    sources = original_sources(flipped)
    found = teacher(crop_size=10).crop(tiny.rois(*BOXES), sources, tiny.float32(SIZES), tiny.float32(SCALES))
    expected = []
    for i, (image, boxes) in enumerate(zip(sources.images, BOXES, strict=True)):
        for x1, y1, x2, y2 in np.float32(boxes).astype(np.float64):
            if flipped[i]:  # unmirror the box, cut, mirror the patch
                x1, x2 = SIZES[i][1] - x2, SIZES[i][1] - x1
            box = np.array([x1, y1, x2, y2]) / np.float32(SCALES[i]).astype(np.float64)[[1, 0, 1, 0]]
            patch = tiny.slow_crop(image.numpy(), box, 10)
            expected.append(patch[:, :, ::-1] if flipped[i] else patch)
    assert found.shape == [6, 3, 10, 10]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_crops_are_exact_far_to_the_right_in_a_large_image() -> None:
    """float32 positions would be 1e-4 pixels off, which is most visible in noise."""
    rng = np.random.default_rng(2)
    image, scale = rng.standard_normal((3, 24, 4000)).astype(np.float32), np.float32(0.37)
    width, box = round(4000 * 0.37), np.float32([12.3, 1.1, 31.7, 7.9])
    sources = Originals([paddle.to_tensor(image)], [True])
    sizes, scales = tiny.float32([[round(24 * 0.37), width]]), tiny.float32([[scale, scale]])
    found = teacher(crop_size=10).crop(tiny.rois([box.tolist()]), sources, sizes, scales)
    x1, y1, x2, y2 = box.astype(np.float64)
    place = np.array([width - x2, y1, width - x1, y2]) / np.float64(scale)
    np.testing.assert_allclose(found.numpy()[0], tiny.slow_crop(image, place, 10)[:, :, ::-1], atol=3e-6)


def test_crops_of_the_network_input_exclude_the_padding() -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 40, 48)).astype(np.float32)
    sources = network_sources(paddle.to_tensor(images), tiny.float32(SIZES))
    found = teacher(crop_size=10).crop(tiny.rois(*BOXES), sources, tiny.float32(SIZES), paddle.ones([2, 2]))
    expected = [
        tiny.slow_crop(image[:, :h, :w], np.float32(box), 10)
        for image, (h, w), boxes in zip(images, SIZES, BOXES, strict=True)
        for box in boxes
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_an_image_without_a_roi_among_others() -> None:
    sources = original_sources([False, True])
    sizes, scales = tiny.float32(SIZES), tiny.float32(SCALES)
    mimic = teacher(crop_size=10)
    both = mimic.crop(tiny.rois(*BOXES), sources, sizes, scales).numpy()
    np.testing.assert_array_equal(mimic.crop(tiny.rois([], BOXES[1]), sources, sizes, scales).numpy(), both[4:])
    np.testing.assert_array_equal(mimic.crop(tiny.rois(BOXES[0], []), sources, sizes, scales).numpy(), both[:4])
