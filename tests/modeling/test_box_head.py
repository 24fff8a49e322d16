"""Box heads and the predictor: layers in numpy, losses and metrics by hand."""

import math

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.box_head import BoxPredictor, ConvFCHead, TwoFCHead
from ppdet_lite.structures import BoxHeadOutput, Rois, SampledRois
from tests.tiny import boxes, float32, int32, int64

K = 2
RNG = np.random.default_rng(0)


def sampled(rows: list, classes: list[int], wanted: list, counts: list[int] | None = None) -> SampledRois:
    packed = Rois(boxes(*rows), int32([len(rows)] if counts is None else counts))
    foreground = int64([row for row, label in enumerate(classes) if label < K])
    return SampledRois(packed, int64(classes), boxes(*wanted), paddle.ones([len(rows)], dtype="bool"), foreground)


def output(logits: np.ndarray, deltas: np.ndarray) -> BoxHeadOutput:
    return BoxHeadOutput(paddle.zeros([len(logits), 1]), float32(logits), float32(deltas))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


class TestHeads:
    def test_two_fully_connected_layers(self) -> None:
        head, x = TwoFCHead(3, 2, width=5), RNG.standard_normal((4, 3, 2, 2)).astype(np.float32)
        head.fc1.bias.set_value(RNG.standard_normal(5).astype(np.float32))
        head.fc2.bias.set_value(RNG.standard_normal(5).astype(np.float32))
        hidden = relu(x.reshape(4, 12) @ head.fc1.weight.numpy() + head.fc1.bias.numpy())
        expected = relu(hidden @ head.fc2.weight.numpy() + head.fc2.bias.numpy())
        np.testing.assert_allclose(head(float32(x)).numpy(), expected, atol=1e-5)
        assert head.out_features == 5

    def test_convolutions_then_one_fully_connected_layer(self) -> None:
        head, x = (
            ConvFCHead(3, 4, convs=2, conv_channels=6, width=5),
            RNG.standard_normal((2, 3, 4, 4)).astype(np.float32),
        )
        expected = x
        for block in head.convs:
            expected = relu(convolved(expected, block.conv.weight.numpy()))  # biases start at 0
        expected = relu(expected.reshape(2, 96) @ head.fc.weight.numpy())
        np.testing.assert_allclose(head(float32(x)).numpy(), expected, atol=1e-4)

    def test_norm_after_each_convolution(self) -> None:
        head = ConvFCHead(3, 2, convs=4, conv_channels=32, width=5, norm="gn")
        assert [type(block.norm).__name__ for block in head.convs] == ["GroupNorm"] * 4
        assert head(paddle.randn([2, 3, 2, 2])).shape == [2, 5]

    def test_without_convolutions_one_layer_is_left(self) -> None:
        head, x = ConvFCHead(3, 2, convs=0, width=5), RNG.standard_normal((2, 3, 2, 2)).astype(np.float32)
        np.testing.assert_allclose(head(float32(x)).numpy(), relu(x.reshape(2, 12) @ head.fc.weight.numpy()), atol=1e-5)

    def test_initial_weights(self) -> None:
        paddle.seed(0)
        fc, conv = TwoFCHead(16, 4, width=128), ConvFCHead(16, 4, conv_channels=32, width=64)
        assert fc.fc1.weight.numpy().var() == pytest.approx(1 / 256, rel=0.05)
        assert fc.fc2.weight.numpy().var() == pytest.approx(1 / 128, rel=0.05)
        assert conv.fc.weight.numpy().var() == pytest.approx(1 / 512, rel=0.05)
        assert conv.convs[0].conv.weight.numpy().var() == pytest.approx(2 / (32 * 9), rel=0.1)

    @pytest.mark.parametrize("norm", [None, "none", "gn", "ln", "in", "bn", "frozen_bn"])
    def test_no_rois(self, norm: str | None) -> None:
        head = TwoFCHead(3, 2, width=5) if norm is None else ConvFCHead(3, 2, conv_channels=32, width=5, norm=norm)
        pooled = paddle.zeros([0, 3, 2, 2])
        pooled.stop_gradient = False
        found = head(pooled)
        found.sum().backward()
        assert found.shape == [0, 5]
        for name, parameter in head.named_parameters():
            assert np.isfinite(parameter.numpy()).all(), name
            assert parameter.grad is None or not parameter.grad.numpy().any(), name


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A 3x3 convolution with padding 1, offset by offset."""
    padded, (height, width) = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), x.shape[2:]
    parts = (
        np.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], kernel[:, :, i, j])
        for i, j in np.ndindex(3, 3)
    )
    return sum(parts)


class TestPredictor:
    @pytest.mark.parametrize(("class_agnostic", "columns"), [(False, 12), (True, 4)])
    def test_outputs(self, class_agnostic: bool, columns: int) -> None:
        predictor, x = BoxPredictor(6, 3, class_agnostic), RNG.standard_normal((5, 6)).astype(np.float32)
        found = predictor(float32(x))
        np.testing.assert_array_equal(found.embedding.numpy(), x)
        np.testing.assert_allclose(found.logits.numpy(), x @ predictor.classify.weight.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.deltas.numpy(), x @ predictor.regress.weight.numpy(), atol=1e-5)
        assert (found.logits.shape, found.deltas.shape) == ([5, 4], [5, columns])

    def test_initial_weights(self) -> None:
        paddle.seed(0)
        predictor = BoxPredictor(256, 20)
        assert predictor.classify.weight.numpy().std() == pytest.approx(0.01, rel=0.05)
        assert predictor.regress.weight.numpy().std() == pytest.approx(0.001, rel=0.05)
        assert not predictor.classify.bias.numpy().any()
        assert not predictor.regress.bias.numpy().any()


ROWS = [[0, 0, 10, 20], [0, 0, 10, 10], [5, 5, 9, 9], [0, 0, 8, 8]]
CLASSES = [1, 0, K, K]
WANTED = [[5, 5, 25, 25], [1, 0, 11, 10], [0, 0, 1, 1], [0, 0, 0, 0]]  # those of background are arbitrary
TARGETS = [[10, 2.5, 5 * math.log(2), 0], [1, 0, 0, 0]]  # of the two foreground RoIs, with weights 10, 10, 5, 5


class TestLosses:
    def test_classification_is_the_mean_over_all_rois(self) -> None:
        logits = RNG.standard_normal((4, K + 1))
        predictor = BoxPredictor(1, K)
        found = predictor.losses(output(logits, np.zeros((4, 4 * K))), sampled(ROWS, CLASSES, WANTED))
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected = -np.log(shares[np.arange(4), CLASSES]).mean()
        assert found["loss_cls"].item() == pytest.approx(expected, rel=1e-5)

    def test_box_loss_uses_the_deltas_of_the_true_class(self) -> None:
        """Foreground deltas are off by known amounts; all others are far off and must not count."""
        deltas = np.full((4, K, 4), 99.0)
        deltas[0, 1] = np.add(TARGETS[0], [0.5, 0, -0.25, 0])
        deltas[1, 0] = np.add(TARGETS[1], [0, 1, 0, 0])
        found = BoxPredictor(1, K).losses(
            output(np.zeros((4, 3)), deltas.reshape(4, -1)), sampled(ROWS, CLASSES, WANTED)
        )
        assert found["loss_box"].item() == pytest.approx(1.75 / 4, rel=1e-5)

    def test_class_agnostic_boxes(self) -> None:
        deltas = np.array([np.add(TARGETS[0], [0.5, 0, -0.25, 0]), np.add(TARGETS[1], [0, 1, 0, 0]), [9] * 4, [9] * 4])
        predictor = BoxPredictor(1, K, class_agnostic=True)
        found = predictor.losses(output(np.zeros((4, 3)), deltas), sampled(ROWS, CLASSES, WANTED))
        assert found["loss_box"].item() == pytest.approx(1.75 / 4, rel=1e-5)

    def test_smooth_l1(self) -> None:
        deltas = np.zeros((4, K, 4))
        deltas[0, 1] = np.add(TARGETS[0], [0.5, 0, -0.05, 0])
        deltas[1, 0] = np.add(TARGETS[1], [0, 1, 0, 0])
        predictor = BoxPredictor(1, K, box_loss="smooth_l1", beta=0.1)
        found = predictor.losses(output(np.zeros((4, 3)), deltas.reshape(4, -1)), sampled(ROWS, CLASSES, WANTED))
        assert found["loss_box"].item() == pytest.approx((0.45 + 0.0125 + 0.95) / 4, rel=1e-4)

    def test_delta_weights(self) -> None:
        predictor = BoxPredictor(1, K, delta_weights=(1, 2, 3, 4))
        found = predictor.losses(output(np.zeros((4, 3)), np.zeros((4, 8))), sampled(ROWS, CLASSES, WANTED))
        assert found["loss_box"].item() == pytest.approx((1 + 2 * 0.25 + 3 * math.log(2) + 0.1) / 4, rel=1e-5)

    def test_gradients(self) -> None:
        """Softmax minus one-hot, and the sign of the difference in the true class's columns, over the 4 RoIs."""
        logits, deltas = RNG.standard_normal((4, K + 1)), RNG.standard_normal((4, 4 * K))
        answer = output(logits, deltas)
        answer.logits.stop_gradient = answer.deltas.stop_gradient = False
        sum(BoxPredictor(1, K).losses(answer, sampled(ROWS, CLASSES, WANTED)).values()).backward()
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(answer.logits.grad.numpy(), (shares - np.eye(3)[CLASSES]) / 4, atol=1e-6)
        expected = np.zeros((4, K, 4))
        expected[0, 1] = np.sign(deltas.reshape(4, K, 4)[0, 1] - TARGETS[0]) / 4
        expected[1, 0] = np.sign(deltas.reshape(4, K, 4)[1, 0] - TARGETS[1]) / 4
        np.testing.assert_allclose(answer.deltas.grad.numpy(), expected.reshape(4, -1), atol=1e-6)

    @pytest.mark.parametrize("class_agnostic", [False, True])
    def test_background_has_no_box_loss(self, class_agnostic: bool) -> None:
        answer = output(np.zeros((2, 3)), np.ones((2, 4 if class_agnostic else 8)))
        answer.deltas.stop_gradient = False
        predictor = BoxPredictor(1, K, class_agnostic)
        found = predictor.losses(answer, sampled(ROWS[2:], [K, K], WANTED[2:]))
        sum(found.values()).backward()
        assert found["loss_cls"].item() == pytest.approx(math.log(3), rel=1e-6)
        assert found["loss_box"].item() == 0
        assert answer.deltas.grad is None or not answer.deltas.grad.numpy().any()

    def test_no_rois(self) -> None:
        predictor, embedding = BoxPredictor(6, K), paddle.zeros([0, 6])
        embedding.stop_gradient = False
        found = predictor.losses(predictor(embedding), sampled([], [], [], counts=[0]))
        sum(found.values()).backward()
        assert {key: value.item() for key, value in found.items()} == {"loss_cls": 0, "loss_box": 0}
        assert predictor.classify.weight.grad is None or not predictor.classify.weight.grad.numpy().any()


class TestMetrics:
    LOGITS = np.eye(3)[[1, 2, K, 0]]  # right, wrong, right, wrong

    def test_by_hand(self) -> None:
        rois = sampled(ROWS, CLASSES, WANTED, counts=[3, 1])
        found = BoxPredictor(1, K).metrics(output(self.LOGITS, np.zeros((4, 8))), rois)
        assert {key: value.item() for key, value in found.items()} == {
            "accuracy": 0.5,
            "foreground_accuracy": 0.5,
            "foreground_rois": 1.0,
        }

    def test_without_foreground_or_without_rois(self) -> None:
        predictor = BoxPredictor(1, K)
        found = predictor.metrics(output(self.LOGITS[2:], np.zeros((2, 8))), sampled(ROWS[2:], [K, K], WANTED[2:]))
        assert [value.item() for value in found.values()] == [0.5, 0, 0]
        found = predictor.metrics(output(np.zeros((0, 3)), np.zeros((0, 8))), sampled([], [], [], counts=[0, 0]))
        assert [value.item() for value in found.values()] == [0, 0, 0]
