"""Sampling of RoIs for the box head: small cases with a known result, and random ones."""

import numpy as np
import paddle

from ppdet_lite.modeling.matching import Matcher, Sampler
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.structures import Rois
from tests.tiny import float32, int32, iou, random_boxes, rois, targets

K = 3
EVERYTHING = RoISampler(sampler=Sampler(1000, 0.5))
DOG, FAR = [0, 0, 10, 10], [50, 50, 60, 60]
NEAR = [0, 0, 10, 9]  # IoU 0.9 with the dog


def test_three_images_by_hand() -> None:
    """An object with a proposal; no object; a crowd with a proposal inside, and an object without a proposal."""
    proposals = rois([FAR, NEAR], [FAR], [[200, 200, 210, 210], FAR])
    truth = [targets([DOG], [2]), targets(), targets([[190, 190, 300, 300], DOG], [0, 1], [True, False])]
    sampled = EVERYTHING(proposals, truth, K)
    assert sampled.rois.boxes.tolist() == [NEAR, DOG, FAR, FAR, DOG, FAR]
    assert sampled.rois.counts.tolist() == [3, 1, 2]
    assert sampled.target_classes.tolist() == [2, 2, K, K, 1, K]
    assert sampled.is_proposal.tolist() == [True, False, True, True, False, True]
    assert sampled.foreground.tolist() == [0, 1, 4]
    assert sampled.target_boxes[:2].tolist() == [DOG, DOG]
    assert sampled.target_boxes[4].tolist() == DOG
    dtypes = [t.dtype for t in (sampled.rois.counts, sampled.target_classes, sampled.is_proposal)]
    assert dtypes == [paddle.int32, paddle.int64, paddle.bool]


def test_without_appending_ground_truth() -> None:
    sampled = RoISampler(append_ground_truth=False)(rois([FAR, NEAR]), [targets([DOG], [2])], K)
    assert sampled.rois.boxes.tolist() == [NEAR, FAR]
    assert sampled.target_classes.tolist() == [2, K]
    assert sampled.is_proposal.all()


def test_the_target_is_the_object_of_highest_iou() -> None:
    truth = targets([DOG, [0, 0, 10, 6], FAR], [0, 1, 2])
    sampled = RoISampler(append_ground_truth=False)(rois([[0, 0, 10, 7], [50, 50, 60, 59], NEAR]), [truth], K)
    assert sampled.target_classes.tolist() == [1, 2, 0]
    assert sampled.target_boxes.tolist() == [[0, 0, 10, 6], FAR, DOG]


def test_an_image_without_proposals() -> None:
    sampled = EVERYTHING(rois([], [FAR], []), [targets([DOG], [1]), targets(), targets()], K)
    assert sampled.rois.counts.tolist() == [1, 1, 0]
    assert sampled.rois.boxes.tolist() == [DOG, FAR]
    assert sampled.target_classes.tolist() == [1, K]


def test_rois_in_a_crowd_are_background_without_crowd_coverage() -> None:
    sampler = RoISampler(Matcher(0.5, 0.5, crowd_coverage=None), Sampler(1000, 0.5))
    in_crowd = [200, 200, 210, 210]
    truth = [targets([[190, 190, 300, 300], DOG], [0, 1], [True, False]), targets([[0, 0, 99, 99]], crowd=[True])]
    sampled = sampler(rois([in_crowd, FAR], [FAR]), truth, K)
    assert sampled.rois.boxes.tolist() == [DOG, in_crowd, FAR, FAR]  # the crowd itself is no RoI
    assert sampled.target_classes.tolist() == [1, K, K, K]


def test_no_rois_where_a_crowd_covers_everything() -> None:
    crowd = targets([[0, 0, 100, 100]], crowd=[True])
    sampled = EVERYTHING(rois([FAR, NEAR]), [crowd], K)
    assert sampled.rois.boxes.shape == sampled.target_boxes.shape == [0, 4]
    assert sampled.rois.counts.tolist() == [0]
    assert sampled.target_classes.shape == sampled.is_proposal.shape == sampled.foreground.shape == [0]


def test_a_crowd_is_never_appended() -> None:
    truth = targets([DOG, FAR], [0, 1], [False, True])
    assert EVERYTHING(rois([NEAR]), [truth], K).rois.boxes.tolist() == [NEAR, DOG]


def test_balance_of_a_random_batch() -> None:
    """At most a quarter is foreground, which comes first; every RoI's class and box agree with the IoU."""
    rng = np.random.default_rng(31)
    truth = [random_boxes(rng, 4, size=80, least=20) for _ in range(2)]
    jittered = [t.repeat(30, axis=0) + rng.normal(0, 3, (120, 4)) for t in truth]
    rows = np.concatenate([jittered[0], random_boxes(rng, 80), jittered[1], random_boxes(rng, 80)])
    proposals = Rois(float32(rows), int32([200, 200]))
    paddle.seed(3)
    sampler = RoISampler(Matcher(0.5, 0.5), Sampler(40, 0.25))
    sampled = sampler(proposals, [targets(t.tolist(), [0, 1, 2, 1]) for t in truth], K)
    assert sampled.rois.counts.tolist() == [40, 40]
    classes = sampled.target_classes.numpy().reshape(2, 40)
    assert (classes[:, :10] < K).all()
    assert (classes[:, 10:] == K).all()
    found, wanted = sampled.rois.boxes.numpy(), sampled.target_boxes.numpy()
    for i, label in enumerate(classes.flatten()):
        objects = truth[i // 40]
        overlaps = [iou(found[i], box) for box in objects]
        assert (max(overlaps) >= 0.5) == (label < K)
        if label < K:
            assert label == [0, 1, 2, 1][int(np.argmax(overlaps))]
            np.testing.assert_array_equal(wanted[i], objects[int(np.argmax(overlaps))])


def test_no_gradient_flows_into_the_rois() -> None:
    proposals = rois([NEAR, FAR])
    proposals.boxes.stop_gradient = False
    sampled = EVERYTHING(proposals, [targets([DOG])], K)
    assert sampled.rois.boxes.stop_gradient
