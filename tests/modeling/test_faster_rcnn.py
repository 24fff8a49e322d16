"""The whole detector on tiny images: properties that hold for any weights."""

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.matching import Sampler
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.optimization.optimizer import SGD
from ppdet_lite.structures import PackedDetections
from ppdet_lite.training.step import train_step
from tests import tiny

LOSSES = ["loss_rpn_objectness", "loss_rpn_box", "loss_cls", "loss_box"]
METRICS = ["accuracy", "foreground_accuracy", "foreground_rois"]
CROWD = tiny.targets([[-500, -500, 600, 600]], crowd=[True])  # every anchor and proposal lies in it
CASES = {
    "objects": [tiny.targets([[5, 5, 40, 40]], [2]), tiny.targets([[2, 2, 20, 20], [30, 30, 60, 48]], [0, 1])],
    "no objects": [tiny.targets(), tiny.targets()],
    "one image without": [tiny.targets(), tiny.targets([[2, 2, 20, 20]])],
    "a crowd and objects": [CROWD, tiny.targets([[0, 0, 50, 50], [2, 2, 20, 20]], [0, 1], [True, False])],
    "nothing but crowd": [CROWD, CROWD],
}


def unsure_of_nothing(seed: int) -> FasterRCNN:
    """Return a detector with clearly different class probabilities."""
    model = tiny.detector(seed=seed)
    model.predictor.classify.weight.set_value(model.predictor.classify.weight * 50)
    return model


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    """One detector for all tests that do not change it."""
    return unsure_of_nothing(seed=0)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """The samplers give the same result whatever ran before."""
    paddle.seed(0)


def inputs(seed: int = 0) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    return training_arguments(tiny.batch(seed))[:3]


def detect(model: FasterRCNN, *arguments: paddle.Tensor) -> PackedDetections:
    model.eval()
    with paddle.no_grad():
        return model(*arguments)


def state(model: FasterRCNN) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_a_batch_gives_the_results_of_its_images(model: FasterRCNN) -> None:
    images, sizes, scales = inputs()
    together = detect(model, images, sizes, scales)
    alone = [detect(model, images[i : i + 1], sizes[i : i + 1], scales[i : i + 1]) for i in range(2)]
    assert together.counts.tolist() == [part.counts.item() for part in alone]
    assert min(together.counts.tolist()) > 5
    assert together.classes.tolist() == alone[0].classes.tolist() + alone[1].classes.tolist()
    for field, tolerance in (("scores", 1e-5), ("boxes", 1e-3)):
        expected = np.concatenate([getattr(part, field).numpy() for part in alone])
        np.testing.assert_allclose(getattr(together, field).numpy(), expected, atol=tolerance)


def test_detections_are_inside_the_original_images(model: FasterRCNN) -> None:
    """Without padding, 64 x 96 at scale (0.5, 0.5) is 128 x 192 in the original, and 50 x 70 at (2, 1) is 25 x 70."""
    found = detect(model, *inputs())
    first = found.counts[0].item()
    assert found.boxes.min().item() >= 0
    for rows, (height, width) in ((found.boxes[:first], (128, 192)), (found.boxes[first:], (25, 70))):
        assert rows[:, 2].max().item() <= width
        assert rows[:, 3].max().item() <= height
        assert rows.max().item() > 0.9 * width  # and they do use the space
    assert set(found.classes.tolist()) <= {0, 1, 2}


def test_detections_use_the_predictors_delta_weights(model: FasterRCNN) -> None:
    """Doubling both deltas and weights gives the same boxes."""
    predictor, before = model.predictor, state(model)
    predictor.regress.weight.set_value(predictor.regress.weight * 100)  # or the boxes are the proposals
    expected = detect(model, *inputs())
    predictor.regress.weight.set_value(predictor.regress.weight * 2)
    weights, predictor.delta_weights = predictor.delta_weights, tuple(2 * w for w in predictor.delta_weights)
    found = detect(model, *inputs())
    predictor.delta_weights = weights
    doubled = detect(model, *inputs())
    model.set_state_dict(before)
    np.testing.assert_allclose(found.boxes.numpy(), expected.boxes.numpy(), atol=1e-3)
    assert doubled.boxes.shape != expected.boxes.shape or (doubled.boxes - expected.boxes).abs().max().item() > 1


def test_scores_descend_and_detections_are_limited(model: FasterRCNN) -> None:
    found = detect(model, *inputs())
    assert found.scores.min().item() > model.postprocess.score_threshold
    for part in found.scores.split(found.counts.tolist()):
        assert part.tolist() == sorted(part.tolist(), reverse=True)
        assert part.shape[0] <= model.postprocess.max_detections


@pytest.mark.parametrize("case", CASES)
def test_losses_of_every_kind_of_ground_truth(case: str, model: FasterRCNN) -> None:
    model.train()
    model.clear_gradients()
    output = model(*inputs(), CASES[case])
    assert list(output.losses) == LOSSES
    assert list(output.metrics) == METRICS
    sum(output.losses.values()).backward()
    values = {name: value.item() for name, value in (output.losses | output.metrics).items()}
    assert np.isfinite(list(values.values())).all()
    has_objects = any(part.boxes.shape[0] for part in CASES[case])
    assert (values["loss_box"] > 0) == (values["loss_rpn_box"] > 0) == (values["foreground_rois"] > 0) == has_objects
    assert (values["loss_cls"] > 0) == (values["loss_rpn_objectness"] > 0) == (case != "nothing but crowd")
    gradients = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (case != "nothing but crowd")


def test_an_image_without_valid_proposals(model: FasterRCNN) -> None:
    """All boxes are outside the image and empty after clipping, so the whole image is the proposal."""
    before = state(model)
    bias = np.zeros(12, np.float32)
    bias[::4] = 1000
    model.rpn.regress.bias.set_value(bias)
    model.train()
    losses = model(*inputs(), CASES["objects"]).losses
    found = detect(model, *inputs())
    model.set_state_dict(before)
    assert np.isfinite([value.item() for value in losses.values()]).all()
    assert np.isfinite(found.boxes.numpy()).all() and np.isfinite(found.scores.numpy()).all()
    assert found.counts.max().item() <= tiny.NUM_CLASSES  # of one RoI in each image


def test_every_parameter_gets_a_gradient(model: FasterRCNN) -> None:
    model.train()
    model.clear_gradients()
    sum(model(*inputs(), CASES["objects"]).losses.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.numpy().any()]
    assert idle == []


def test_losses_and_detections_do_not_change_the_model(model: FasterRCNN) -> None:
    before = state(model)
    model.train()
    sum(model(*inputs(), CASES["objects"]).losses.values()).backward()
    detect(model, *inputs())
    after = state(model)
    assert all((after[name] == value).all() for name, value in before.items())


def test_targets_give_losses_in_evaluation_mode_too(model: FasterRCNN) -> None:
    model.eval()
    with paddle.no_grad():
        assert list(model(*inputs(), CASES["objects"]).losses) == LOSSES


def test_sampling_follows_paddles_seed(model: FasterRCNN) -> None:
    model.train()
    values = []
    for seed in (1, 1, 2):
        paddle.seed(seed)
        with paddle.no_grad():
            values.append([v.item() for v in model(*inputs(), CASES["objects"]).losses.values()])
    assert values[0] == values[1] != values[2]


def test_a_seed_determines_the_initial_weights() -> None:
    first, second, other = (state(tiny.detector(seed=seed)) for seed in (4, 4, 5))
    assert list(first) == list(second)
    assert all((first[name] == second[name]).all() for name in first)
    assert (first["rpn.conv.weight"] != other["rpn.conv.weight"]).any()
    assert (first["backbone.stem.conv.weight"] != other["backbone.stem.conv.weight"]).any()


def test_a_step_updates_trained_parameters_only() -> None:
    """BN with stem and stage 2 frozen: their weights and statistics do not change, even with weight decay."""
    model = tiny.detector("bn", frozen_stages=2)
    model.train()
    before = state(model)
    optimizer = SGD(weight_decay=0.1).build(model)
    optimizer.set_lr(0.01)
    step = train_step(model, optimizer, tiny.batch())
    assert (list(step.losses), list(step.metrics)) == (LOSSES, [*METRICS, "gradient_norm"])
    moved = {name for name, value in state(model).items() if (value != before[name]).any()}
    frozen = {name for name in before if name.startswith(("backbone.stem.", "backbone.res2."))}
    assert frozen
    assert set(before) - moved == frozen
    before = state(model)
    detect(model, *inputs())  # nor do the statistics of the others in evaluation
    assert all((value == before[name]).all() for name, value in state(model).items())


def test_class_agnostic_boxes() -> None:
    model = tiny.detector(class_agnostic=True)
    output = model(*inputs(), CASES["objects"])
    sum(output.losses.values()).backward()
    assert model.predictor.regress.weight.shape[1] == 4
    assert model.predictor.regress.weight.grad.numpy().any()
    found = detect(model, *inputs())
    assert len(set(found.classes.tolist())) == 3
    corners = {tuple(box) for box in found.boxes.tolist()}
    assert len(corners) < found.boxes.shape[0]  # classes share their boxes


def test_targets_are_used_for_their_image_only() -> None:
    """RPN losses of a batch are the mean over its images; no loss depends on the order of the images."""
    model = unsure_of_nothing(seed=1)
    images, sizes, scales = inputs()
    truth, order = CASES["objects"], paddle.to_tensor([1, 0])
    model.roi_sampler, model.rpn.sampler = RoISampler(sampler=Sampler(1000, 0.9)), Sampler(10_000, 0.5)  # everything
    for layer in (model.rpn.objectness, model.rpn.regress):  # so that the RPN looks at its image
        layer.weight.set_value(layer.weight * 300)
    model.train()
    cases = {
        "batch": (images, sizes, scales, truth),
        "swapped": (images[order], sizes[order], scales[order], truth[::-1]),
        "crossed": (images, sizes, scales, truth[::-1]),
        "first": (images[:1], sizes[:1], scales[:1], truth[:1]),
        "second": (images[1:], sizes[1:], scales[1:], truth[1:]),
    }
    with paddle.no_grad():
        found = {case: np.array([v.item() for v in model(*cases[case]).losses.values()]) for case in cases}
    np.testing.assert_allclose(found["batch"][:2], (found["first"] + found["second"])[:2] / 2, rtol=5e-6)
    np.testing.assert_allclose(found["batch"], found["swapped"], rtol=5e-6)
    assert (np.abs(found["crossed"] / found["batch"] - 1) > 5e-4).all()


@pytest.mark.parametrize(
    "name",
    [
        "predictor.regress.weight",
        "rpn.objectness.weight",
        "rpn.regress.weight",
        "backbone.stem.conv.weight",
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_weights_stop_the_run(name: str, value: float, model: FasterRCNN) -> None:
    before = state(model)
    parameter = dict(model.named_parameters())[name]
    parameter.set_value(parameter * value)
    optimizer = SGD().build(model)
    optimizer.set_lr(0.01)
    model.train()
    try:
        with pytest.raises(RunFailed, match=r"image ids \[11, 12\]"):
            train_step(model, optimizer, tiny.batch())
    finally:
        model.set_state_dict(before)
