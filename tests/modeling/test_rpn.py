"""RPN: the order of its outputs, proposals by hand and against loops, losses by hand."""

import math

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.anchors import AnchorGenerator
from ppdet_lite.modeling.losses import sum_box_loss
from ppdet_lite.modeling.matching import Matcher, Sampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.ops import dispatch
from ppdet_lite.structures import Rois
from tests.tiny import boxes, float32, iou, random_boxes, targets

SIZES = float32([[100, 100]])
SQUARES = [[10.0 * i, 0, 10.0 * i + 8, 8] for i in range(6)]  # anchors that do not touch each other


def one_level(limit: int = 1000, **options: object) -> RPN:
    """Return an RPN on one level with equal limits, unless overridden by options."""
    limits = dict.fromkeys(("pre_nms_train", "post_nms_train", "pre_nms_test", "post_nms_test"), limit)
    return RPN(8, [16], AnchorGenerator((32,)), **{**limits, **options})


def still(logits: list[list[float]]) -> list[paddle.Tensor]:
    """Return deltas of 0 for one level."""
    return [paddle.zeros([len(logits), len(logits[0]), 4])]


def per_image(found: Rois) -> list[list[list[float]]]:
    return [part.tolist() for part in found.boxes.split(found.counts.tolist())]


class TestForward:
    def test_outputs_have_the_order_of_the_anchors(self) -> None:
        """The hidden layer copies channel 0; the heads add 100 per anchor and, for deltas, 10 per coordinate."""
        rpn = RPN(2, [4, 8], AnchorGenerator((8, 16)))
        kernel = np.zeros(rpn.conv.weight.shape, np.float32)
        kernel[0, 0, 1, 1] = 1
        rpn.conv.weight.set_value(kernel)
        for head, step in ((rpn.objectness, 100), (rpn.regress, 10)):
            head.weight.set_value(np.float32([[[[1]], [[0]]]] * head.weight.shape[0]))
            head.bias.set_value(np.arange(head.bias.shape[0], dtype=np.float32) * step)
        maps = [np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4), np.arange(2 * 2 * 1 * 2).reshape(2, 2, 1, 2)]
        logits, deltas = rpn([float32(m) for m in maps])
        for found, moved, feature in zip(logits, deltas, maps, strict=True):
            cells = feature[:, 0].reshape(2, -1)
            np.testing.assert_allclose(found.numpy(), (cells[..., None] + [0, 100, 200]).reshape(2, -1))
            expected = cells[..., None, None] + 10 * np.arange(12).reshape(3, 4)
            np.testing.assert_allclose(moved.numpy(), expected.reshape(2, -1, 4))
        anchors = rpn.make_anchors([float32(m) for m in maps])
        assert [a.shape[0] for a in anchors] == [found.shape[1] for found in logits]

    def test_initial_weights(self) -> None:
        paddle.seed(0)
        rpn = RPN(64, [16], AnchorGenerator((32,)))
        for layer in (rpn.conv, rpn.objectness, rpn.regress):
            assert layer.weight.numpy().std() == pytest.approx(0.01, rel=0.15)
            assert not layer.bias.numpy().any()


class TestProposals:
    def test_best_first_and_limited(self) -> None:
        logits = [[1.0, 5, 3, 0, 4, 2]]
        rpn = one_level(post_nms_train=3, post_nms_test=2)
        anchors, sizes = [boxes(*SQUARES)], SIZES
        assert per_image(rpn.propose(anchors, [float32(logits)], still(logits), sizes)) == [
            [SQUARES[i] for i in (1, 4, 2)]
        ]
        rpn.eval()
        assert per_image(rpn.propose(anchors, [float32(logits)], still(logits), sizes)) == [
            [SQUARES[i] for i in (1, 4)]
        ]

    def test_candidates_are_limited_before_nms(self) -> None:
        """The two best boxes overlap: of two candidates NMS keeps one, though a third box would not be suppressed."""
        rows, logits = [SQUARES[0], [0, 0, 8, 7], SQUARES[3]], [[3.0, 2, 1]]
        rpn = one_level(pre_nms_train=2, pre_nms_test=3)
        assert per_image(rpn.propose([boxes(*rows)], [float32(logits)], still(logits), SIZES)) == [[rows[0]]]
        rpn.eval()
        assert per_image(rpn.propose([boxes(*rows)], [float32(logits)], still(logits), SIZES)) == [[rows[0], rows[2]]]

    def test_nms_is_per_image_and_level(self) -> None:
        row = SQUARES[0]
        rpn = RPN(8, [4, 8], AnchorGenerator((8, 16)), nms_iou=0.7)
        logits = [float32([[2.0, 1], [4, 3]]), float32([[1.5], [5]])]
        deltas = [paddle.zeros([2, 2, 4]), paddle.zeros([2, 1, 4])]
        found = rpn.propose([boxes(row, row), boxes(row)], logits, deltas, float32([[50, 50], [50, 50]]))
        assert found.counts.tolist() == [2, 2]  # one of each level and image

    def test_boxes_are_decoded_and_clipped_to_their_image(self) -> None:
        """Both images are padded to 60 x 80; the first is 60 x 40 (h, w), the second 30 x 80."""
        anchors, deltas = boxes([20, 20, 40, 40]), paddle.zeros([2, 1, 4])
        deltas[:, :, 0] = 0.75  # 15 px to the right
        deltas[:, :, 3] = math.log(2)  # twice as high
        found = one_level().propose([anchors], [paddle.zeros([2, 1])], [deltas], float32([[60, 40], [30, 80]]))
        np.testing.assert_allclose(found.boxes.numpy(), [[35, 10, 40, 50], [35, 10, 55, 30]], rtol=1e-6)

    def test_delta_weights(self) -> None:
        deltas = float32([[[5.0, 0, 0, 5 * math.log(2)]]])
        found = one_level(delta_weights=(10, 10, 5, 5)).propose(
            [boxes([20, 20, 40, 40])], [paddle.zeros([1, 1])], [deltas], SIZES
        )
        np.testing.assert_allclose(found.boxes.numpy(), [[30, 10, 50, 50]], rtol=1e-6)

    def test_proposals_are_constants(self) -> None:
        """The losses of the box head train the RPN only through the shared features."""
        deltas, logits = still([[0.0]])[0], paddle.zeros([1, 1])
        deltas.stop_gradient = logits.stop_gradient = False
        assert one_level().propose([boxes([20, 20, 40, 40])], [logits], [deltas], SIZES).boxes.stop_gradient

    def test_small_boxes_are_dropped(self) -> None:
        rows = [[0, 0, 5, 50], [10, 0, 60, 5], [0, 60, 6, 66], [95, 0, 120, 50]]  # the last is 5 wide once clipped
        logits = [[4.0, 3, 2, 1]]
        found = one_level(min_size=5).propose([boxes(*rows)], [float32(logits)], still(logits), SIZES)
        assert per_image(found) == [[rows[2]]]

    def test_an_image_without_valid_boxes_gets_one_proposal(self) -> None:
        rows = [[200.0, 0, 210, 10], [0, 200, 10, 210], [300, 300, 310, 310]]  # all beyond the image
        logits = [[1.0, 3, 2], [1, 3, 2]]
        found = one_level().propose([boxes(*rows)], [float32(logits)], still(logits), float32([[60, 100], [400, 400]]))
        assert found.counts.tolist() == [1, 3]
        assert found.boxes[0].tolist() == [0, 0, 100, 60]  # the whole image
        assert found.counts.dtype == paddle.int32

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("on_cpu", [True, False])
    def test_against_a_loop(self, seed: int, training: bool, on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a GPU, one call of NMS has all levels of an image."""
        monkeypatch.setattr(dispatch, "on_cpu", lambda _: on_cpu)
        rng = np.random.default_rng(seed)
        anchors = [random_boxes(rng, count, size=120, least=5) for count in (60, 20, 3)]
        logits = [rng.permutation(2 * len(a)).reshape(2, -1) / 10 for a in anchors]
        deltas = [rng.normal(0, 0.3, (2, len(a), 4)) for a in anchors]
        sizes = [(100, 70), (90, 120)]
        rpn = RPN(8, [4, 8, 16], AnchorGenerator((8, 16, 32)), pre_nms_train=40, post_nms_train=25, pre_nms_test=15)
        rpn.min_size = 3.0
        rpn.train() if training else rpn.eval()
        found = rpn.propose(
            *([float32(part) for part in level] for level in (anchors, logits, deltas)), float32(np.array(sizes))
        )
        for image, rows in enumerate(per_image(found)):
            levels = [(a, s[image], d[image]) for a, s, d in zip(anchors, logits, deltas, strict=True)]
            pre, post = (40, 25) if training else (15, 1000)
            np.testing.assert_allclose(rows, propose_loop(levels, sizes[image], pre, post, 3.0), atol=1e-4)


def propose_loop(levels: list[tuple], size: tuple[int, int], pre: int, post: int, min_size: float) -> list[list[float]]:
    """Compute the proposals of one image, box by box, with NMS at 0.7."""
    height, width = size
    alive = []
    for anchors, scores, deltas in levels:
        kept: list[list[float]] = []
        for i in np.argsort(-scores)[:pre]:
            x1, y1, x2, y2 = (float(v) for v in anchors[i])
            dx, dy, dw, dh = deltas[i]
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            w, h = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
            box = [max(x - w / 2, 0), max(y - h / 2, 0), min(x + w / 2, width), min(y + h / 2, height)]
            large = min(box[2] - box[0], box[3] - box[1]) > min_size
            if large and all(iou(box, other) <= 0.7 for other in kept):
                kept.append(box)
                alive.append((scores[i], box))
    return [box for _, box in sorted(alive, key=lambda item: -item[0])[:post]]


class TestLimitOverTheBatch:
    LOGITS = ((5.0, 1, 4, 0, 3, 2), (2.5, -1, -2, -3, 1.5, -4))

    @pytest.mark.parametrize(
        ("limit", "over_image", "over_batch"),
        [
            (4, ([0, 2, 4, 5], [0, 4, 1, 2]), ([0, 2, 4], [0])),
            (5, ([0, 2, 4, 5, 1], [0, 4, 1, 2, 3]), ([0, 2, 4, 5], [0])),
            (2, ([0, 2], [0, 4]), ([0, 2], [0])),  # the second image keeps its best though it is not among the two
            (6, ([0, 2, 4, 5, 1, 3], [0, 4, 1, 2, 3, 5]), ([0, 2, 4, 5], [0, 4])),
        ],
    )
    def test_by_hand(self, limit: int, over_image: tuple, over_batch: tuple) -> None:
        arguments = [boxes(*SQUARES)], [float32(self.LOGITS)], still(self.LOGITS), float32([[100, 100]] * 2)
        for over, expected in (("image", over_image), ("batch", over_batch)):
            found = per_image(one_level(limit, train_limit_over=over).propose(*arguments))
            assert found == [[SQUARES[i] for i in image] for image in expected]

    def test_evaluation_limits_each_image(self) -> None:
        rpn = one_level(2, train_limit_over="batch")
        rpn.eval()
        found = rpn.propose([boxes(*SQUARES)], [float32(self.LOGITS)], still(self.LOGITS), float32([[100, 100]] * 2))
        assert found.counts.tolist() == [2, 2]

    def test_removed_boxes_do_not_count(self) -> None:
        """In the second image only the first anchor is valid; the limit is above the number of boxes."""
        arguments = [boxes(*SQUARES)], [float32(self.LOGITS)], still(self.LOGITS), float32([[100, 100], [100, 5]])
        found = one_level(100, train_limit_over="batch").propose(*arguments)
        assert found.counts.tolist() == [6, 1]


ANCHORS = [[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 2], [50, 50, 60, 60]]  # IoU with the first: 1, 0.6, 0.2, 0


def losses(rpn: RPN, logits: list[paddle.Tensor], deltas: list[paddle.Tensor], truth: list) -> tuple[float, float]:
    found = rpn.losses([boxes(*ANCHORS)], logits, deltas, truth)
    assert list(found) == ["loss_rpn_objectness", "loss_rpn_box"]
    return tuple(value.item() for value in found.values())


class TestLosses:
    def test_are_divided_by_images_times_sample_count(self) -> None:
        """Anchor 0 is foreground, 1 is ignored, 2 and 3 are background; the second image has only background."""
        logits = float32([[2.0, 9, -1, 0.5], [0, 0, 0, 1]])
        deltas = np.full((2, 4, 4), 7, np.float32)
        deltas[0, 0] = [0.3, -0.2, 0, 0.5]
        rpn = one_level(sampler=Sampler(100, 0.5))
        objectness, box = losses(rpn, [logits], [float32(deltas)], [targets([ANCHORS[0]]), targets()])
        cross_entropy = [math.log(1 + math.exp(x)) for x in (-2.0, -1, 0.5, 0, 0, 0, 1)]
        assert objectness == pytest.approx(sum(cross_entropy) / 200, rel=1e-6)
        assert box == pytest.approx((0.3 + 0.2 + 0.5) / 200, rel=1e-6)

    def test_each_anchor_learns_its_own_object_of_its_own_image(self) -> None:
        """Anchors 0 and 3 of the first image, whose objects are in the other order, and anchor 3 of the second."""
        deltas = np.full((2, 4, 4), 7, np.float32)
        deltas[0, 0], deltas[0, 3], deltas[1, 3] = [0.1, 0, 0, 0], [0, 0.2, 0, 0], [0, 0, 0.4, 0]
        truth = [targets([ANCHORS[3], ANCHORS[0]]), targets([ANCHORS[3]])]
        rpn = one_level(sampler=Sampler(100, 0.5))
        box = losses(rpn, [paddle.zeros([2, 4])], [float32(deltas)], truth)[1]
        assert box == pytest.approx((0.1 + 0.2 + 0.4) / 200, rel=1e-6)

    def test_smooth_l1(self) -> None:
        deltas = np.zeros((1, 4, 4), np.float32)
        deltas[0, 0] = [0.1, -0.2, 0.5, -1.0]
        rpn = one_level(sampler=Sampler(10, 0.5), box_loss="smooth_l1", beta=0.2)
        box = losses(rpn, [paddle.zeros([1, 4])], [float32(deltas)], [targets([ANCHORS[0]])])[1]
        assert box == pytest.approx((0.01 / 0.4 + 0.1 + 0.4 + 0.9) / 10, rel=1e-6)

    def test_targets_are_the_weighted_deltas_to_the_object(self) -> None:
        truth = [2, 1, 12, 11]  # from anchor 0: dx 0.2, dy 0.1; IoU 72 / 128
        rpn = one_level(sampler=Sampler(10, 0.5), matcher=Matcher(0.5, 0.3), delta_weights=(10, 20, 5, 5))
        box = losses(rpn, [paddle.zeros([1, 4])], [paddle.zeros([1, 4, 4])], [targets([truth])])[1]
        assert box == pytest.approx((10 * 0.2 + 20 * 0.1) / 10, rel=1e-5)

    def test_a_crowd_is_no_target(self) -> None:
        """It precedes the object, so that using it would give the anchor the crowd's box."""
        truth = targets([[50, 50, 90, 90], ANCHORS[0]], crowd=[True, False])
        deltas = np.full((1, 4, 4), 0.25, np.float32)
        rpn = one_level(sampler=Sampler(10, 0.5))
        assert losses(rpn, [paddle.zeros([1, 4])], [float32(deltas)], [truth])[1] == pytest.approx(1 / 10, rel=1e-6)

    def test_without_objects_there_is_no_box_loss_and_no_gradient_of_it(self) -> None:
        logits, deltas = paddle.full([1, 4], math.log(3)), paddle.ones([1, 4, 4])
        logits.stop_gradient = deltas.stop_gradient = False
        found = one_level(sampler=Sampler(8, 0.5)).losses([boxes(*ANCHORS)], [logits], [deltas], [targets()])
        sum(found.values()).backward()
        assert found["loss_rpn_box"].item() == 0
        assert deltas.grad is None or not deltas.grad.numpy().any()
        np.testing.assert_allclose(logits.grad.numpy(), [[0.75 / 8] * 4], rtol=1e-6)

    def test_a_crowd_gives_no_gradient(self) -> None:
        """Anchors 0 to 2 lie in the crowd: only the fourth, outside, is background."""
        logits = paddle.full([1, 4], math.log(3))
        logits.stop_gradient = False
        truth = targets([[0, 0, 20, 20]], crowd=[True])
        found = one_level(sampler=Sampler(8, 0.5)).losses(
            [boxes(*ANCHORS)], [logits], [paddle.ones([1, 4, 4])], [truth]
        )
        sum(found.values()).backward()
        np.testing.assert_allclose(logits.grad.numpy(), [[0, 0, 0, 0.75 / 8]], rtol=1e-6)

    def test_without_crowd_coverage_anchors_in_a_crowd_are_background(self) -> None:
        logits = paddle.full([1, 4], math.log(3))
        logits.stop_gradient = False
        rpn = one_level(sampler=Sampler(8, 0.5), matcher=Matcher(0.7, 0.3, keep_best=True, crowd_coverage=None))
        truth = targets([[0, 0, 20, 20]], crowd=[True])
        found = rpn.losses([boxes(*ANCHORS)], [logits], [paddle.ones([1, 4, 4])], [truth])
        sum(found.values()).backward()
        assert found["loss_rpn_objectness"].item() == pytest.approx(4 / 8 * math.log(4), rel=1e-6)
        np.testing.assert_allclose(logits.grad.numpy(), [[0.75 / 8] * 4], rtol=1e-6)

    def test_gradient_at_a_logit_of_zero(self) -> None:
        """It is sigmoid(0) - label: -1/2 for the foreground (anchor 0; 1 is ignored), 1/2 for the background."""
        logits = paddle.zeros([1, 4])
        logits.stop_gradient = False
        rpn = one_level(sampler=Sampler(10, 0.5))
        sum(
            rpn.losses([boxes(*ANCHORS)], [logits], [paddle.zeros([1, 4, 4])], [targets([ANCHORS[0]])]).values()
        ).backward()
        np.testing.assert_allclose(logits.grad.numpy(), [[-0.05, 0, 0.05, 0.05]], rtol=1e-6)

    def test_gradient_by_finite_differences(self) -> None:
        """Every anchor is sampled, so the losses depend on logits and deltas only."""
        rng = np.random.default_rng(8)
        start = {"logits": rng.normal(0, 1, (2, 4)), "deltas": rng.normal(0, 0.5, (2, 4, 4))}
        truth = [targets([ANCHORS[0], [48, 50, 60, 60]]), targets([[0, 0, 9, 6]])]
        rpn = one_level(sampler=Sampler(4, 1.0), box_loss="smooth_l1", beta=0.3)

        def total(values: dict[str, np.ndarray]) -> paddle.Tensor:
            inputs.update({key: float32(value) for key, value in values.items()})
            for tensor in inputs.values():
                tensor.stop_gradient = False
            return sum(rpn.losses([boxes(*ANCHORS)], [inputs["logits"]], [inputs["deltas"]], truth).values())

        inputs: dict[str, paddle.Tensor] = {}
        total(start).backward()
        gradients = {key: tensor.grad.numpy() for key, tensor in inputs.items()}
        step = 1e-2
        for key, value in start.items():
            for place in list(np.ndindex(value.shape))[::3]:
                nudge = np.zeros_like(value)
                nudge[place] = step
                rise = total({**start, key: value + nudge}) - total({**start, key: value - nudge})
                assert rise.item() / (2 * step) == pytest.approx(gradients[key][place], abs=2e-4), (key, place)


class TestBoxLoss:
    @pytest.mark.parametrize(
        ("kind", "beta", "expected"),
        [
            ("l1", 1 / 9, 0.05 + 0.3 + 1 + 2),
            ("smooth_l1", 1.0, 0.05**2 / 2 + 0.3**2 / 2 + 0.5 + 1.5),
            ("smooth_l1", 0.1, 0.05**2 / 0.2 + 0.25 + 0.95 + 1.95),
        ],
    )
    def test_by_hand(self, kind: str, beta: float, expected: float) -> None:
        found = sum_box_loss(float32([[1.05, -0.3, 1, 0]]), float32([[1, 0, 0, 2]]), kind, beta)
        assert found.shape == []
        assert found.item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("kind", ["l1", "smooth_l1"])
    def test_nothing_to_learn(self, kind: str) -> None:
        deltas = boxes()
        deltas.stop_gradient = False
        found = sum_box_loss(deltas, boxes(), kind, 0.1)
        found.backward()
        assert found.item() == 0

    @pytest.mark.parametrize(("kind", "beta"), [("l1", 1.0), ("smooth_l1", 0.11), ("smooth_l1", 1.0)])
    def test_gradient_by_finite_differences(self, kind: str, beta: float) -> None:
        """In float64, at distances away from the kinks at 0 and beta."""
        distance = np.array([[-2.0, -0.5, -0.05, 0.03], [0.2, 0.9, 1.1, 3]])
        wanted = np.array([[0.4, -1.2, 0, 2], [1, 0.3, -0.7, 0]])
        deltas = paddle.to_tensor(wanted + distance, stop_gradient=False)
        sum_box_loss(deltas, paddle.to_tensor(wanted), kind, beta).backward()
        step = 1e-4
        for place in np.ndindex(distance.shape):
            nudge = np.zeros_like(distance)
            nudge[place] = step
            up, down = (
                sum_box_loss(
                    paddle.to_tensor(wanted + distance + sign * nudge), paddle.to_tensor(wanted), kind, beta
                ).item()
                for sign in (1, -1)
            )
            assert (up - down) / (2 * step) == pytest.approx(deltas.grad[place].item(), abs=1e-6)
