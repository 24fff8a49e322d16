import numpy as np
import paddle
import pytest
from paddle.vision.ops import roi_align

from ppdet_lite.ops.cpu import roi_windows
from ppdet_lite.ops.cpu.roi_windows import window_roi_align
from ppdet_lite.ops.nms import count_groups
from ppdet_lite.ops.roi_levels import image_of_roi, pool_by_level
from ppdet_lite.structures import Rois

SCALES = (0.25, 0.125)


@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (0, False), (2, True), (2, False)])
@pytest.mark.parametrize("largest", [10000, 120, 0])
@pytest.mark.parametrize("count", [1, 5, 90])
def test_equals_paddles_operator(ratio, aligned, largest, count, monkeypatch) -> None:
    monkeypatch.setattr(roi_windows, "MAX_CELLS", largest)
    rng = np.random.default_rng(count)
    features = [paddle.to_tensor(rng.normal(size=(3, 4, *size)).astype("float32")) for size in ((40, 56), (20, 28))]
    corners = rng.uniform(-20, (244, 180), (count, 2, 2))  # the map is 224 x 160: some lie beyond its border
    boxes = paddle.to_tensor(np.concatenate([corners.min(1), corners.max(1) + 0.5], axis=1).astype("float32"))
    counts = paddle.to_tensor([count // 3, 0, count - count // 3], dtype="int32")
    level = paddle.to_tensor(rng.integers(0, 2, count))
    image, asked = image_of_roi(counts, count), []

    def operator(rows: paddle.Tensor) -> paddle.Tensor:
        asked.append(len(rows) - 1)
        rois = Rois(boxes[rows], count_groups(image[rows], 3))

        def pool(i, feature, part) -> paddle.Tensor:
            return roi_align(feature, part.boxes, part.counts, 3, SCALES[i], ratio or -1, aligned)

        return pool_by_level(features, rois, level[rows], pool)

    ours = window_roi_align(features, SCALES, boxes, image, level, 3, ratio, aligned, operator)
    theirs = operator(paddle.arange(count))
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-5)
    assert asked[0] == {10000: 0, 0: count}.get(largest, asked[0])


def test_a_box_without_extent_is_zero() -> None:
    features = [paddle.ones([1, 2, 8, 8])]
    boxes = paddle.to_tensor([[5.0, 5, 5, 9], [4, 4, 12, 12]])
    level = image = paddle.zeros([2], dtype="int64")
    pooled = window_roi_align(features, [1.0], boxes, image, level, 2, 0, True, lambda rows: paddle.zeros([1, 2, 2, 2]))
    assert pooled.shape == [2, 2, 2, 2]
    assert pooled[0].abs().max() == 0
