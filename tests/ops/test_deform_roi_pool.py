"""Deformable RoI pooling against loops over samples, golden values, RoIAlign and finite differences."""

import math

import numpy as np
import paddle
import pytest
from paddle.vision.ops import roi_align

from ppdet_lite.ops import deform_roi_pool
from ppdet_lite.ops.cpu import mkl, row_sums

RAMP = (10 * np.arange(6).reshape(6, 1) + np.arange(6))[None, None]  # f = 10y + x
N, H, W, SCALE = 3, 11, 14, 0.125
COUNTS = [4, 0, 5]


def make_boxes(rng: np.random.Generator) -> np.ndarray:
    """Return RoIs of 88x112-pixel images: inside, across borders, outside, of whole cells, small, and empty."""
    corners = rng.uniform([0, 0], [100, 76], (9, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(9, 80, (9, 2))], axis=1)
    boxes[1] = [-30, -20, 40, 110]
    boxes[2] = [200, 10, 260, 60]
    boxes[4] = [0, 0, 112, 88]
    boxes[6] = [50, 40, 52.5, 41]
    boxes[8] = [30, 30, 30, 45]
    return boxes


def tensor(array, dtype: str = "float64", wants_grad: bool = False) -> paddle.Tensor:
    return paddle.to_tensor(np.asarray(array), dtype=dtype, stop_gradient=not wants_grad)


def counts(values: list[int]) -> paddle.Tensor:
    return paddle.to_tensor(values, dtype="int32")


def interpolate(plane: np.ndarray, y: float, x: float) -> float:
    """Interpolate [H, W] bilinearly at a position inside it."""
    top, left = int(y), int(x)
    bottom, right = min(top + 1, plane.shape[0] - 1), min(left + 1, plane.shape[1] - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    return upper * (1 - dy) + (plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx) * dy


def aligned_loop(x, boxes, of_image, size, scale, ratio, offset=None, mask=None, gamma=0.1) -> np.ndarray:
    ph, pw = size
    out = np.zeros((len(boxes), x.shape[1], ph, pw))
    for r, c, i, j in np.ndindex(out.shape):
        x1, y1, x2, y2 = (v * scale - 0.5 for v in boxes[r])
        width, height = x2 - x1, y2 - y1
        if offset is not None:
            x1, y1 = x1 + gamma * width * offset[r, 0, i, j], y1 + gamma * height * offset[r, 1, i, j]
        ny, nx = ratio or math.ceil(height / ph), ratio or math.ceil(width / pw)
        for a, b in np.ndindex(ny, nx):
            sy, sx = y1 + (i + (a + 0.5) / ny) * height / ph, x1 + (j + (b + 0.5) / nx) * width / pw
            if -1 <= sy <= x.shape[2] and -1 <= sx <= x.shape[3]:
                sy, sx = min(max(sy, 0), x.shape[2] - 1), min(max(sx, 0), x.shape[3] - 1)
                out[r, c, i, j] += interpolate(x[of_image[r], c], sy, sx) / (ny * nx)
        out[r, c, i, j] *= 1 if mask is None else mask[r, 0, i, j]
    return out


def legacy_loop(x, boxes, of_image, size, scale, samples, offset=None, gamma=0.1, part=None, group=1) -> np.ndarray:
    (ph, pw), channels = size, x.shape[1] // group**2
    part = part or size
    out = np.zeros((len(boxes), channels, ph, pw))
    classes = 1 if offset is None else offset.shape[1] // 2
    for r, c, i, j in np.ndindex(out.shape):
        edges = [math.copysign(math.floor(abs(v) + 0.5), v) for v in boxes[r]]
        x1, y1 = edges[0] * scale - 0.5, edges[1] * scale - 0.5
        width = max((edges[2] + 1) * scale - 0.5 - x1, 0.1)
        height = max((edges[3] + 1) * scale - 0.5 - y1, 0.1)
        tx = ty = 0.0
        if offset is not None:
            of_class = c // (channels // classes)
            tx, ty = offset[r, 2 * of_class : 2 * of_class + 2, i * part[0] // ph, j * part[1] // pw] * gamma
        channel = (c * group + i * group // ph) * group + j * group // pw
        found = []
        for a, b in np.ndindex(samples, samples):
            sy = y1 + (i + a / samples) * height / ph + ty * height
            sx = x1 + (j + b / samples) * width / pw + tx * width
            if -0.5 <= sy <= x.shape[2] - 0.5 and -0.5 <= sx <= x.shape[3] - 0.5:
                sy, sx = min(max(sy, 0), x.shape[2] - 1), min(max(sx, 0), x.shape[3] - 1)
                found.append(interpolate(x[of_image[r], channel], sy, sx))
        out[r, c, i, j] = sum(found) / max(len(found), 1)
    return out


def test_golden_value_aligned() -> None:
    found = deform_roi_pool(tensor(RAMP), tensor([[8, 8, 40, 40]]), counts([1]), 2, 1 / 8, sampling_ratio=2)
    assert found.tolist() == [[[[16.5, 18.5], [36.5, 38.5]]]]


@pytest.mark.parametrize(
    ("trans", "expected"),
    [
        (None, [[11, 13], [31, 33]]),
        ({}, [[11, 13], [31, 33]]),
        ({0: 1}, [[11.4, 13.4], [31.4, 33.4]]),
        ({(1, 0, 0): -3}, [[4, 13], [31, 33]]),
        ({(1, 0, 0): -4}, [[1, 13], [31, 33]]),
        ({(1, 0, 0): -8}, [[0, 13], [31, 33]]),
    ],
)
def test_golden_values_legacy(trans: dict | None, expected: list[list[float]]) -> None:
    offset = None
    if trans is not None:
        offset = np.zeros((1, 2, 2, 2))
        for place, value in trans.items():
            offset[0][place] = value
        offset = tensor(offset)
    found = deform_roi_pool(
        tensor(RAMP),
        tensor([[8, 8, 39, 39]]),
        counts([1]),
        2,
        1 / 8,
        offset=offset,
        semantics="legacy",
        sample_per_part=2,
    )
    np.testing.assert_allclose(found.numpy()[0, 0], expected, atol=1e-12)


def test_golden_values_position_sensitive() -> None:
    x = tensor(np.arange(1, 9).reshape(1, 8, 1, 1) * np.ones((6, 6)))
    boxes = tensor([[8, 8, 39, 39]])
    found = deform_roi_pool(x, boxes, counts([1]), 2, 1 / 8, semantics="legacy", sample_per_part=2, group_size=2)
    assert found.tolist() == [[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]]


@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("size", [(4, 4), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_aligned_equals_a_loop(ratio: int, size: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(ratio)
    x, boxes = rng.normal(size=(N, 2, H, W)), make_boxes(rng)
    offset, mask = rng.normal(0, 3, (9, 2, *size)), rng.random((9, 1, *size))
    of_image = np.repeat(range(N), COUNTS)
    for o, m in ((None, None), (offset, None), (None, mask), (offset, mask)):
        found = deform_roi_pool(
            tensor(x, dtype),
            tensor(boxes, dtype),
            counts(COUNTS),
            size,
            SCALE,
            ratio,
            offset=None if o is None else tensor(o, dtype),
            mask=None if m is None else tensor(m, dtype),
        )
        expected = aligned_loop(x, boxes, of_image, size, SCALE, ratio, o, m)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5 if dtype == "float32" else 1e-12)
    assert not expected[2].any() or ratio  # wholly outside, but for what the offsets reach


@pytest.mark.parametrize(
    ("part", "group", "classes"), [(None, 1, 1), ((2, 2), 1, 2), (None, 2, 1), ((5, 3), 3, 3), (None, 1, None)]
)
def test_legacy_equals_a_loop(part: tuple[int, int] | None, group: int, classes: int | None) -> None:
    rng = np.random.default_rng(group)
    x, boxes, size = rng.normal(size=(N, 6 * group**2, H, W)), make_boxes(rng), (4, 3)
    boxes[0] = [2.5, 3.5, 44.5, 40.49]  # halves are rounded away from zero
    boxes[5] = [-2.5, -0.5, 44.5, 40.5]
    offset = None if classes is None else rng.normal(0, 3, (9, 2 * classes, *(part or size)))
    found = deform_roi_pool(
        tensor(x),
        tensor(boxes),
        counts(COUNTS),
        size,
        SCALE,
        offset=None if offset is None else tensor(offset),
        semantics="legacy",
        sample_per_part=3,
        part_size=part,
        group_size=group,
    )
    expected = legacy_loop(x, boxes, np.repeat(range(N), COUNTS), size, SCALE, 3, offset, part=part, group=group)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_the_least_size_of_a_legacy_roi_is_a_tenth_of_a_cell() -> None:
    """A pixel is a sixteenth of a cell wide; two corners are exchanged."""
    boxes = np.array([[40, 40, 40, 40], [20, 70, 10, 66.0]])
    options = {"semantics": "legacy", "sample_per_part": 2}
    found = deform_roi_pool(tensor(RAMP), tensor(boxes), counts([2]), (1, 2), 1 / 16, **options)
    np.testing.assert_allclose(found.numpy(), legacy_loop(RAMP, boxes, [0, 0], (1, 2), 1 / 16, 2), atol=1e-12)


@pytest.mark.parametrize("semantics", ["aligned", "legacy"])
def test_no_gradient_reaches_the_boxes(semantics: str) -> None:
    x, offset = tensor(RAMP, wants_grad=True), tensor(np.full((1, 2, 2, 2), 0.3), wants_grad=True)
    boxes = tensor([[8, 8, 30, 33]], wants_grad=True)
    deform_roi_pool(x, boxes, counts([1]), 2, 1 / 8, offset=offset, semantics=semantics).sum().backward()
    assert boxes.grad is None and x.grad.abs().sum() > 0 and offset.grad.abs().sum() > 0


def test_a_box_that_is_not_finite_leaves_the_others_alone() -> None:
    boxes = make_boxes(np.random.default_rng(3))[[0, 1, 6]]
    alone = deform_roi_pool(tensor(RAMP), tensor(boxes), counts([3]), 2, SCALE)
    beside = np.insert(boxes, 1, [np.nan, 3, 8, 9], axis=0)
    found = deform_roi_pool(tensor(RAMP), tensor(beside), counts([4]), 2, SCALE).numpy()
    np.testing.assert_array_equal(found[[0, 2, 3]], alone.numpy())


@pytest.mark.parametrize("semantics", ["aligned", "unaligned"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_without_offsets_it_is_roi_align(ratio: int, semantics: str) -> None:
    rng = np.random.default_rng(3)
    x, boxes = rng.normal(size=(N, 5, H, W)), make_boxes(rng)
    if semantics == "aligned":
        boxes[[6, 8]] += [0, 0, 20, 20]  # RoIAlign's backward errs below one cell, its forward without extent
    leaves = [tensor(x, wants_grad=True), tensor(x, wants_grad=True)]
    outs = [
        deform_roi_pool(leaves[0], tensor(boxes), counts(COUNTS), 7, SCALE, ratio, semantics=semantics),
        roi_align(leaves[1], tensor(boxes), counts(COUNTS), 7, SCALE, ratio or -1, aligned=semantics == "aligned"),
    ]
    upstream = tensor(rng.normal(size=outs[0].shape))
    for out in outs:
        out.backward(upstream)
    np.testing.assert_allclose(outs[0].numpy(), outs[1].numpy(), atol=1e-12)
    np.testing.assert_allclose(leaves[0].grad.numpy(), leaves[1].grad.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"sampling_ratio": 0},
        {"sampling_ratio": 2, "gamma": 0.3},
        {"semantics": "legacy", "sample_per_part": 2},
        {"semantics": "legacy", "sample_per_part": 2, "part_size": 2, "group_size": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_finite_differences(options: dict) -> None:
    rng = np.random.default_rng(4)
    part, classes = options.get("part_size", 3), 2 if "part_size" in options else 1
    values = {
        "x": rng.normal(size=(N, 8, H, W)),
        "offset": rng.normal(0, 1, (9, 2 * classes, part, part)),
        "mask": rng.random((9, 1, 3, 3)),
    }
    boxes = tensor(make_boxes(rng) + rng.uniform(0, 0.3, (9, 4)))

    def pool(arrays: dict[str, paddle.Tensor]) -> paddle.Tensor:
        return deform_roi_pool(
            boxes=boxes, counts=counts(COUNTS), output_size=3, spatial_scale=SCALE, **arrays, **options
        )

    leaves = {k: tensor(v, wants_grad=True) for k, v in values.items()}
    out = pool(leaves)
    upstream = tensor(rng.normal(size=out.shape))
    out.backward(upstream)
    step = 1e-6
    for name, leaf in leaves.items():
        direction = rng.normal(size=values[name].shape)
        ends = []
        for sign in (1, -1):
            moved = {k: tensor(v + (sign * step * direction if k == name else 0)) for k, v in values.items()}
            ends.append((pool(moved) * upstream).sum().item())
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx((leaf.grad.numpy() * direction).sum(), rel=1e-5)


def test_offsets_get_a_gradient_where_samples_fall_on_pixels() -> None:
    """A 14x14 map pooled whole to 7x7: every sample is a pixel, and the offsets start at zero."""
    x = tensor((np.arange(14) ** 2).reshape(14, 1) * np.ones((1, 1, 14, 14)))
    offset = tensor(np.zeros((1, 2, 7, 7)), wants_grad=True)
    out = deform_roi_pool(x, tensor([[0, 0, 14, 14]]), counts([1]), 7, offset=offset)
    out.sum().backward()
    slopes = [(2 * y + 1 + 2 * y + 3) / 2 * 1.4 for y in range(0, 14, 2)]  # to the right of each pixel
    slopes[-1] = (2 * 12 + 1) / 2 * 1.4  # beyond the last pixel the map is flat
    np.testing.assert_allclose(offset.grad.numpy()[0, 1], np.repeat(slopes, 7).reshape(7, 7), atol=1e-9)
    assert not offset.grad.numpy()[0, 0].any()


@pytest.mark.parametrize("semantics", ["aligned", "legacy"])
def test_no_rois_at_all(semantics: str) -> None:
    x, offset = tensor(np.ones((2, 3, H, W)), wants_grad=True), tensor(np.zeros((0, 2, 7, 7)), wants_grad=True)
    none = counts([0, 0])
    out = deform_roi_pool(x, tensor(np.zeros((0, 4))), none, 7, SCALE, offset=offset, semantics=semantics)
    assert out.shape == [0, 3, 7, 7]
    out.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.numpy().any()


@pytest.mark.parametrize("chunk", [1, 5000])
def test_results_do_not_depend_on_mkl_and_the_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    def run() -> list[np.ndarray]:
        rng = np.random.default_rng(5)
        x, offset = (tensor(rng.normal(size=s), wants_grad=True) for s in ((N, 3, H, W), (9, 2, 3, 3)))
        out = deform_roi_pool(x, tensor(make_boxes(rng)), counts(COUNTS), 3, SCALE, offset=offset)
        (out**2).sum().backward()
        return [out.numpy(), x.grad.numpy(), offset.grad.numpy()]

    whole = run()
    monkeypatch.setattr(row_sums, "CHUNK_VALUES", chunk)
    monkeypatch.setattr(mkl, "functions", lambda _: None)
    for a, b in zip(whole, run(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_pyramid_in_one_call_equals_its_levels() -> None:
    rng = np.random.default_rng(6)
    maps = [rng.normal(size=(N, 4, H, W)), rng.normal(size=(N, 4, 6, 7)), rng.normal(size=(N, 4, 3, 4))]
    boxes, offset = make_boxes(rng), rng.normal(size=(9, 2, 3, 3))
    level, of_image = np.array([0, 1, 0, 2, 2, 1, 0, 2, 1]), np.repeat(range(N), COUNTS)
    scales = [SCALE, SCALE / 2, SCALE / 4]
    found = deform_roi_pool(
        [tensor(m) for m in maps],
        tensor(boxes),
        counts(COUNTS),
        3,
        scales,
        offset=tensor(offset),
        level=tensor(level, "int64"),
    ).numpy()
    for i, (m, scale) in enumerate(zip(maps, scales, strict=True)):
        mine = level == i
        expected = aligned_loop(m, boxes[mine], of_image[mine], (3, 3), scale, 0, offset[mine])
        np.testing.assert_allclose(found[mine], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": (2, 5)}, r"boxes has shape \[2, 5\], expected \[None, 4\]"),
        ({"counts": (3,)}, r"counts has shape \[3\], expected \[1\]"),
        ({"offset": (2, 2, 3, 7)}, r"offset has shape \[2, 2, 3, 7\], expected \[2, 2, 7, 7\]"),
        ({"mask": (2, 7, 7)}, r"mask has shape \[2, 7, 7\], expected \[2, 1, 7, 7\]"),
        ({"x": (4, 6, 6)}, r"x has shape \[4, 6, 6\], expected \[4, 6, None, None\]"),
        ({"semantics": "legacy", "group_size": 3}, "the 4 channels of x cannot be divided into group_size=3 squared"),
        ({"semantics": "legacy", "sampling_ratio": 2}, "semantics='legacy' has no sampling_ratio"),
        ({"semantics": "legacy", "sample_per_part": 0}, "sample_per_part must be at least 1, not 0"),
        ({"group_size": 2}, "part_size and group_size need semantics='legacy'"),
        ({"sampling_ratio": -1}, "sampling_ratio must be at least 0, not -1"),
        ({"semantics": "mmcv"}, "semantics must be one of aligned, unaligned, legacy, not 'mmcv'"),
        ({"semantics": "unaligned", "offset": (2, 2, 7, 7)}, "semantics='unaligned' takes no offset and no mask"),
        ({"output_size": 0}, "output_size must be an int >= 1"),
        (
            {"x": [paddle.ones([1, 4, 6, 6])] * 2, "spatial_scale": [1.0, 0.5]},
            r"x has several levels: pass level \[R\]",
        ),
        (
            {"x": [paddle.ones([1, 4, 6, 6])] * 2, "spatial_scale": [1.0]},
            "2 levels of x, but 1 values of spatial_scale",
        ),
    ],
)
def test_inconsistent_arguments_are_rejected(change: dict[str, object], message: str) -> None:
    arguments = {"x": paddle.ones([1, 4, 6, 6]), "boxes": paddle.ones([2, 4]), "counts": counts([2]), "output_size": 7}
    change = {k: paddle.zeros(v) if isinstance(v, tuple) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        deform_roi_pool(**(arguments | change))
