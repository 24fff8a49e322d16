"""Cascade R-CNN: training and inference against loops over boxes, and what it shares with Faster R-CNN."""

from collections.abc import Sequence

import numpy as np
import paddle
import pytest
from paddle import Tensor

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.cascade import STAGES, CascadeRCNN, CascadeStage
from ppdet_lite.modeling.matching import Matcher, Sampler
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.optimization.optimizer import SGD
from ppdet_lite.structures import BoxHeadOutput
from ppdet_lite.training.step import train_step
from tests import tiny
from tests.modeling.test_faster_rcnn import CASES, LOSSES, METRICS, detect, inputs

NUMBERS = (1, 2, 3)
UNEQUAL = [CascadeStage(stage.foreground_iou, stage.delta_weights, w) for stage, w in zip(STAGES, (1.0, 0.5, 0.25))]


def cascade(**arguments: object) -> CascadeRCNN:
    """Return a detector whose stages move boxes and whose class probabilities differ."""
    model = tiny.detector(cascade=arguments)
    for predictor in predictors(model):
        predictor.classify.weight.set_value(predictor.classify.weight * 50)
        predictor.regress.weight.set_value(paddle.randn(predictor.regress.weight.shape) * 0.1)
    return model


def predictors(model: CascadeRCNN) -> list[paddle.nn.Layer]:
    return [*(stage.predictor for stage in model.earlier), model.predictor]


@pytest.fixture(scope="module")
def model() -> CascadeRCNN:
    """One detector for all tests that do not change it."""
    return cascade(stages=UNEQUAL)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    paddle.seed(0)


def heads(model: CascadeRCNN, features: Sequence[Tensor]) -> list:
    """Per stage: a function that computes logits and deltas of boxes [R, 4] of one image, in NumPy."""

    def run(layers: object, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pooled = layers.roi_pool(features, tiny.rois(boxes.tolist()))
        output = layers.predictor(layers.box_head(pooled))
        return output.logits.numpy().astype(np.float64), output.deltas.numpy().astype(np.float64)

    return [lambda boxes, layers=layers: run(layers, boxes) for layers in [*model.earlier, model]]


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def moved(box: np.ndarray, deltas: np.ndarray, weights: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Apply deltas to a box and clip it to an image of this (h, w)."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = np.array(deltas) / np.array(weights)
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    w, h = width * np.exp(min(dw, np.log(62.5))), height * np.exp(min(dh, np.log(62.5)))
    return np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [size[1], size[0], size[1], size[0]])


PROPOSALS = [[4, 4, 42, 38], [20, 10, 60, 60], [48, 12, 88, 62], [60, 20, 90, 50], [0, 0, 30, 60], [5, 8, 39, 44]]
TRUTH = ([[5, 5, 40, 40], [50, 10, 90, 60]], [0, 2])
SIZE = (64, 96)


def slow_losses(model: CascadeRCNN, features: Sequence[Tensor], stage_rois: str) -> dict[str, float]:
    """The losses of one image, box by box, without sampling."""
    truth, classes = np.array(TRUTH[0], np.float64), TRUTH[1]
    rois, is_truth = np.array([*PROPOSALS, *TRUTH[0]], np.float64), [False] * 8
    if stage_rois == "resampled":
        is_truth[6:] = True, True
    losses = {}
    for number, (stage, head) in enumerate(zip(model.stages, heads(model, features)), 1):
        logits, deltas = head(rois)
        cls, box = 0.0, 0.0
        for i, roi in enumerate(rois):
            overlaps = [tiny.iou(roi, t) for t in truth]
            best = int(np.argmax(overlaps))
            is_object = overlaps[best] >= stage.foreground_iou
            cls -= np.log(softmax(logits[i])[classes[best] if is_object else 3])
            if is_object:
                t, (w, h) = truth[best], (roi[2] - roi[0], roi[3] - roi[1])
                wanted = [(t[0] + t[2] - roi[0] - roi[2]) / 2 / w, (t[1] + t[3] - roi[1] - roi[3]) / 2 / h]
                wanted += [np.log((t[2] - t[0]) / w), np.log((t[3] - t[1]) / h)]
                box += np.abs(np.array(wanted) * stage.delta_weights - deltas[i]).sum()
        losses |= {f"loss_cls_{number}": stage.loss_weight * cls / len(rois)}
        losses |= {f"loss_box_{number}": stage.loss_weight * box / len(rois)}
        refined = [moved(roi, d, stage.delta_weights, SIZE) for roi, d in zip(rois, deltas)]
        kept = [box for box, appended in zip(refined, is_truth) if (box[2:] > box[:2]).all() and not appended]
        rois = np.array([*kept, *(truth if stage_rois == "resampled" else [])])
        is_truth = [i >= len(kept) for i in range(len(rois))]
    return losses


def features_of(model: CascadeRCNN) -> list[Tensor]:
    images, *_ = inputs()
    return [level.detach() for level in model.neck(model.backbone(images[:1]))]


@pytest.mark.parametrize("stage_rois", ["all", "resampled"])
def test_losses_of_a_step_by_hand(stage_rois: str) -> None:
    """A step on one image without sampling, against loops in float64: matching, targets, losses, refined boxes."""
    model = cascade(stages=UNEQUAL, stage_rois=stage_rois)
    everything = [type(s)(s.matcher, Sampler(1000, 1.0), s.append_ground_truth) for s in model.samplers]
    model.samplers = everything
    features = features_of(model)
    trained = model._train(features, tiny.rois(PROPOSALS), [tiny.targets(*TRUTH)], tiny.float32([SIZE]))
    expected = slow_losses(model, features, stage_rois)
    assert trained.losses.keys() == expected.keys()
    for name, value in expected.items():
        assert trained.losses[name].item() == pytest.approx(value, rel=1e-5), name
        assert value > 0.01
    assert 0 < trained.metrics["foreground_rois_3"].item() < trained.sampled.rois.boxes.shape[0]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_inference_by_hand(average: str) -> None:
    """Boxes pass from stage to stage, clipped; the scores of all stages are averaged, each for its own boxes."""
    model = cascade(average=average)
    model.eval()
    features = features_of(model)
    with paddle.no_grad():
        output, rois = model._predict(features, tiny.rois(PROPOSALS), tiny.float32([SIZE]))
    boxes, logits = np.array(PROPOSALS, np.float64), []
    for stage, head in zip(model.stages, heads(model, features)):
        ours, (scores, deltas) = boxes, head(boxes)
        logits.append(scores)
        boxes = np.array([moved(box, d, stage.delta_weights, SIZE) for box, d in zip(boxes, deltas)])
    np.testing.assert_allclose(rois.boxes.numpy(), ours, atol=1e-3)
    assert np.abs(ours - PROPOSALS).max() > 1
    np.testing.assert_allclose(output.deltas.numpy(), deltas, atol=1e-4)
    expected = (
        softmax(np.mean(logits, axis=0)) if average == "logits" else np.mean([softmax(s) for s in logits], axis=0)
    )
    np.testing.assert_allclose(softmax(output.logits.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_losses_of_every_kind_of_ground_truth(case: str, model: CascadeRCNN) -> None:
    model.train()
    model.clear_gradients()
    output = model(*inputs(), CASES[case])
    assert list(output.losses) == LOSSES[:2] + [f"{name}_{k}" for k in NUMBERS for name in LOSSES[2:]]
    assert list(output.metrics) == [f"{name}_{k}" for k in NUMBERS for name in METRICS]
    sum(output.losses.values()).backward()
    values = {name: value.item() for name, value in (output.losses | output.metrics).items()}
    assert np.isfinite(list(values.values())).all()
    has_objects = any(part.boxes.shape[0] for part in CASES[case])
    assert (values["loss_box_1"] > 0) == (values["foreground_rois_1"] > 0) == has_objects
    assert all((values[f"loss_cls_{k}"] > 0) == (case != "nothing but crowd") for k in NUMBERS)
    gradients = {name: p.grad for name, p in model.named_parameters() if not p.stop_gradient}
    assert None not in gradients.values()  # other ranks may wait for them
    assert all(np.isfinite(gradient.numpy()).all() for gradient in gradients.values())


def test_a_batch_gives_the_results_of_its_images(model: CascadeRCNN) -> None:
    images, sizes, scales = inputs()
    together = detect(model, images, sizes, scales)
    alone = [detect(model, images[i : i + 1], sizes[i : i + 1], scales[i : i + 1]) for i in range(2)]
    assert together.counts.tolist() == [part.counts.item() for part in alone] and min(together.counts.tolist()) > 2
    for field, tolerance in (("scores", 1e-5), ("boxes", 1e-2)):
        expected = np.concatenate([getattr(part, field).numpy() for part in alone])
        np.testing.assert_allclose(getattr(together, field).numpy(), expected, atol=tolerance)


def test_a_step_trains_every_stage() -> None:
    model = tiny.detector(cascade={})
    optimizer = SGD().build(model)
    optimizer.set_lr(0.01)
    layers = [predictor.classify for predictor in predictors(model)]
    before = [layer.weight.numpy() for layer in layers]
    model.train()
    train_step(model, optimizer, tiny.batch())
    assert all((layer.weight.numpy() != old).any() for layer, old in zip(layers, before))
    assert len({layer.weight.numpy().tobytes() for layer in layers}) == 3  # own weights


def test_gradients_stay_in_their_stage(model: CascadeRCNN) -> None:
    """The losses of a stage reach the features, but not the stage whose boxes it refines."""
    model.train()
    model.clear_gradients()
    losses = model(*inputs(), CASES["objects"]).losses
    (losses["loss_cls_3"] + losses["loss_box_3"]).backward()
    assert model.box_head.fc1.weight.grad.abs().sum().item() > 0
    assert model.backbone.res5[0].conv1.conv.weight.grad.abs().sum().item() > 0
    for name, parameter in model.earlier.named_parameters():
        assert parameter.grad is None or not parameter.grad.numpy().any(), name


def test_empty_boxes_are_no_rois_in_training(model: CascadeRCNN) -> None:
    """Of three boxes that a stage predicts, one lies outside the image; an image may lose all of its boxes."""
    outside = float(-100 * STAGES[0].delta_weights[0])
    deltas = tiny.float32([[0, 0, 0, 0], [outside, 0, 0, 0], [0, 0, 0, 0], [outside, 0, 0, 0]])
    rois = tiny.rois([[1, 2, 11, 12], [3, 4, 13, 14], [5, 6, 200, 16]], [[5, 6, 15, 16]])
    truth = [tiny.targets([[1, 2, 11, 12]]), tiny.targets([[30, 30, 40, 40]])]
    sampled = model.samplers[1](rois, truth, 3)
    output = BoxHeadOutput(paddle.zeros([4, 1]), paddle.zeros([4, 4]), deltas)
    found = model._next_rois(sampled, output, tiny.float32([[50, 60], [50, 60]]), STAGES[0])
    assert found.boxes.tolist() == [[1, 2, 11, 12], [5, 6, 60, 16]] and found.counts.tolist() == [2, 0]
    again = model.samplers[2](found, truth, 3)
    assert again.rois.boxes.tolist() == found.boxes.tolist() and again.target_classes.tolist() == [0, 3]


def test_ground_truth_among_the_rois_of_later_stages() -> None:
    """`resampled`: what was appended is dropped after each stage, and appended again."""
    proposals, truth = tiny.rois(PROPOSALS), [tiny.targets(*TRUTH)]
    for stage_rois in ("all", "resampled"):
        model = cascade(stage_rois=stage_rois)
        model.samplers = [type(s)(s.matcher, Sampler(99, 1.0), s.append_ground_truth) for s in model.samplers]
        trained = model._train(features_of(model), proposals, truth, tiny.float32([SIZE]))
        appended = (~trained.sampled.is_proposal).astype("int32").sum().item()
        assert appended == (2 if stage_rois == "resampled" else 0)
        assert trained.sampled.rois.boxes.shape[0] == 8


def test_mimicking_works_on_the_last_stage() -> None:
    model = tiny.detector(mimic={"crop_size": 64, "include_ground_truth": True}, cascade={"stage_rois": "resampled"})
    model.train()
    output = model(*training_arguments(tiny.batch()))
    assert output.losses["loss_mimic"].item() > 0 and output.metrics["mimic_rois"].item() > 0
    (output.losses["loss_mimic"] + output.losses["loss_mimic_cls"]).backward()
    assert model.box_head.fc2.weight.grad.abs().sum().item() > 0
    for name, parameter in model.earlier.named_parameters():
        assert parameter.grad is None or not parameter.grad.numpy().any(), name


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("predictor.class_agnostic", {}),
        ("predictor.delta_weights", {"delta_weights": (20.0, 20.0, 10.0, 10.0)}),
        ("roi_sampler.matcher.foreground_iou", {"sampler": RoISampler(Matcher(0.6, 0.5))}),
        ("roi_sampler.matcher.background_iou", {"sampler": RoISampler(Matcher(0.5, 0.3))}),
        ("mimic.include_ground_truth", {"mimic": {"include_ground_truth": True}}),
    ],
)
def test_settings_without_effect_are_refused(key: str, arguments: dict) -> None:
    def build(detector: CascadeRCNN) -> CascadeRCNN:
        parts = (detector.backbone, detector.neck, detector.rpn, detector.roi_pool, detector.box_head)
        if key == "predictor.class_agnostic":
            detector.predictor.class_agnostic = False
        predictor = detector.predictor
        predictor.delta_weights = arguments.get("delta_weights", STAGES[0].delta_weights)
        return CascadeRCNN(*parts, predictor, arguments.get("sampler", RoISampler()), earlier=[], stages=STAGES[:1])

    with pytest.raises(IncompatibleArguments) as caught:
        if "mimic" in arguments:
            tiny.detector(mimic=arguments["mimic"], cascade={})
        else:
            build(tiny.detector(cascade={}))
    assert caught.value.key == key


def test_stages_need_layers() -> None:
    with pytest.raises(ValueError, match="describes 2 stages, but 3 have layers"):
        detector = tiny.detector(class_agnostic=True)
        other = tiny.detector(cascade={})
        parts = [getattr(detector, name) for name in ("backbone", "neck", "rpn", "roi_pool", "box_head", "predictor")]
        CascadeRCNN(*parts, earlier=list(other.earlier), stages=STAGES[:2])
