"""Deformable convolution against a loop over samples, Paddle's operator, finite differences, and its exported graph."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import inference
from paddle.static import InputSpec

from ppdet_lite.ops import deform_conv2d


class Case(NamedTuple):
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (3, 3)
    deformable_groups: int = 1
    groups: int = 1
    masked: bool = True


CASES = [
    Case(),
    Case(masked=False),
    Case(stride=(2, 1), padding=(0, 2), dilation=(1, 2), deformable_groups=2),
    Case(groups=3, deformable_groups=2, stride=(2, 2)),
    Case(kernel=(1, 2), padding=(0, 1), groups=2, deformable_groups=3, masked=False),
    Case(kernel=(3, 1), dilation=(3, 1), padding=(2, 0), groups=6, deformable_groups=6),
]
SIZE = (2, 6, 7, 9)  # N, C, H, W
OUTPUTS = 12


def make(case: Case, seed: int, places: str = "mixed") -> dict[str, np.ndarray]:
    """Return inputs and a gradient of the output; places: sampling positions."""
    rng = np.random.default_rng(seed)
    n, c, h, w = SIZE
    size = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip((h, w), case.padding, case.dilation, case.kernel, case.stride, strict=True)
    ]
    taps = case.kernel[0] * case.kernel[1]
    shape = (n, case.deformable_groups, taps, 2, *size)
    offset = rng.normal(0, 2, shape)
    if places == "mixed":
        start, step, _ = geometry(case, size)
        undeformed = np.stack(np.broadcast_arrays(*(start[a] + step[a] for a in (0, 1))), axis=1)
        kind = rng.integers(0, 4, shape)
        offset = np.where(kind == 0, rng.normal(0, 100, shape), offset)  # far out
        border = rng.choice([-1, -0.5, 0], shape)
        far_border = np.array([h, w]).reshape(2, 1, 1) - rng.choice([1, 0.5, 0], shape)
        offset = np.where(kind == 1, np.where(rng.random(shape) < 0.5, border, far_border) - undeformed, offset)
    arrays = {
        "x": rng.normal(size=SIZE),
        "offset": offset.reshape(n, -1, *size),
        "weight": rng.normal(size=(OUTPUTS, c // case.groups, *case.kernel)) / taps,
        "bias": rng.normal(size=OUTPUTS),
        "upstream": rng.normal(size=(n, OUTPUTS, *size)),
    }
    if case.masked:
        arrays["mask"] = rng.random((n, case.deformable_groups * taps, *size))
    return arrays


def geometry(case: Case, size: list[int]) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Return the positions y and x of a plain convolution, [1, OH, 1] + [K, 1, 1] and [1, 1, OW] + [K, 1, 1], and K."""
    taps = case.kernel[0] * case.kernel[1]
    shapes = [(1, -1, 1), (1, 1, -1)]
    start = [(np.arange(size[a]) * case.stride[a] - case.padding[a]).reshape(shapes[a]) for a in (0, 1)]
    step = [(np.indices(case.kernel)[a].reshape(taps, 1, 1) * case.dilation[a]) for a in (0, 1)]
    return start, step, taps


def loop(case: Case, a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the output and all gradients, sample by sample, in float64."""
    n, c, h, w = SIZE
    size = list(a["upstream"].shape[2:])
    start, step, taps = geometry(case, size)
    offset = a["offset"].reshape(n, case.deformable_groups, taps, 2, *size)
    mask = a.get("mask", np.ones((n, case.deformable_groups * taps, *size))).reshape(
        n, case.deformable_groups, taps, *size
    )
    weight = a["weight"].reshape(case.groups, OUTPUTS // case.groups, c // case.groups, taps)
    upstream = a["upstream"].reshape(n, case.groups, OUTPUTS // case.groups, *size)
    out = np.zeros_like(upstream)
    grad = {
        name: np.zeros_like(v) for name, v in (("x", a["x"]), ("offset", offset), ("weight", weight), ("mask", mask))
    }
    per_group = c // case.deformable_groups
    for i, k, oy, ox in np.ndindex(n, taps, *size):
        values, slopes, corners = np.zeros(c), np.zeros((2, c)), []
        for d in range(case.deformable_groups):
            mine = slice(d * per_group, (d + 1) * per_group)
            y = start[0][0, oy, 0] + step[0][k, 0, 0] + offset[i, d, k, 0, oy, ox]
            x = start[1][0, 0, ox] + step[1][k, 0, 0] + offset[i, d, k, 1, oy, ox]
            if not (-1 < y < h and -1 < x < w):
                continue
            top, left = int(np.floor(y)), int(np.floor(x))
            dy, dx = y - top, x - left
            for row, wy, sy in ((top, 1 - dy, -1), (top + 1, dy, 1)):
                for column, wx, sx in ((left, 1 - dx, -1), (left + 1, dx, 1)):
                    if 0 <= row < h and 0 <= column < w:
                        pixel = a["x"][i, mine, row, column]
                        values[mine] += wy * wx * pixel
                        slopes[:, mine] += [sy * wx * pixel, wy * sx * pixel]
                        corners.append((mine, row, column, wy * wx))
        modulation = np.repeat(mask[i, :, k, oy, ox], per_group)
        columns = (values * modulation).reshape(case.groups, -1)
        out[i, :, :, oy, ox] += np.einsum("goc,gc->go", weight[..., k], columns)
        g = upstream[i, :, :, oy, ox]
        grad["weight"][..., k] += np.einsum("go,gc->goc", g, columns)
        back = np.einsum("goc,go->gc", weight[..., k], g).reshape(-1)
        grad["mask"][i, :, k, oy, ox] = (back * values).reshape(case.deformable_groups, -1).sum(1)
        back = back * modulation
        grad["offset"][i, :, k, :, oy, ox] = (back * slopes).reshape(2, case.deformable_groups, -1).sum(2).T
        for mine, row, column, share in corners:
            grad["x"][i, mine, row, column] += share * back[mine]
    answer = {name: v.reshape(a[name].shape) for name, v in grad.items() if name in a}
    answer["bias"] = a["upstream"].sum((0, 2, 3))
    return answer | {"out": out.reshape(a["upstream"].shape) + a["bias"].reshape(-1, 1, 1)}


def options(case: Case) -> dict[str, object]:
    names = ("stride", "padding", "dilation", "deformable_groups", "groups")
    return {name: getattr(case, name) for name in names}


def compute(case: Case, a: dict[str, np.ndarray], implementation: str, dtype: str) -> dict[str, np.ndarray]:
    leaves = {k: paddle.to_tensor(v, dtype=dtype, stop_gradient=False) for k, v in a.items() if k != "upstream"}
    out = deform_conv2d(**leaves, **options(case), implementation=implementation)
    out.backward(paddle.to_tensor(a["upstream"], dtype=dtype))
    return {name: leaf.grad.numpy() for name, leaf in leaves.items()} | {"out": out.numpy()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{CASES.index(case)}")
def test_both_implementations_equal_a_loop(case: Case) -> None:
    arrays = make(case, seed=CASES.index(case))
    arrays = {name: a.astype(np.float32).astype(np.float64) for name, a in arrays.items()}  # floor sees the same places
    expected = loop(case, arrays)
    for implementation in ("gather", "native"):
        found = compute(case, arrays, implementation, "float32")
        assert found.keys() == expected.keys()
        for name, values in found.items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(values / scale, expected[name] / scale, atol=1e-5, err_msg=implementation + name)


@pytest.mark.parametrize("case", CASES[2:4], ids=["groups of offsets", "groups of channels"])
def test_finite_differences(case: Case) -> None:
    arrays = make(case, seed=7, places="near")
    gradients = compute(case, arrays, "gather", "float64")
    rng, step = np.random.default_rng(8), 1e-6
    for name in ("x", "offset", "weight", "mask", "bias"):
        direction = rng.normal(size=arrays[name].shape)
        ends = []
        for sign in (1, -1):
            moved = {k: paddle.to_tensor(v + (sign * step * direction if k == name else 0)) for k, v in arrays.items()}
            upstream = moved.pop("upstream")
            ends.append((deform_conv2d(**moved, **options(case), implementation="gather") * upstream).sum().item())
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx((gradients[name] * direction).sum(), rel=1e-6)


def test_without_offsets_it_is_a_convolution() -> None:
    case = Case(stride=(2, 1), dilation=(2, 1), groups=2)
    arrays = {k: paddle.to_tensor(v, dtype="float32") for k, v in make(case, 0).items()}
    x, weight, bias = arrays["x"], arrays["weight"], arrays["bias"]
    zero = paddle.zeros_like(arrays["offset"])
    expected = F.conv2d(x, weight, bias, case.stride, case.padding, case.dilation, case.groups)
    found = deform_conv2d(x, zero, weight, None, bias, **options(case))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


def test_mask_without_gradient_is_safe_natively() -> None:
    arrays = {k: paddle.to_tensor(v, dtype="float32", stop_gradient=False) for k, v in make(Case(), 0).items()}
    upstream, mask = arrays.pop("upstream"), arrays.pop("mask").detach()
    deform_conv2d(**arrays, mask=mask, padding=1, implementation="native").backward(upstream)
    assert mask.stop_gradient and mask.grad is None
    found = {name: leaf.grad.numpy() for name, leaf in arrays.items()}
    for name, grad in compute(Case(), make(Case(), 0), "native", "float32").items():
        if name in found:
            np.testing.assert_array_equal(found[name], grad)


def test_half_precision_is_computed_in_float32() -> None:
    arrays = make(Case(), 0)
    arrays.pop("upstream")
    half = {k: paddle.to_tensor(v.astype(np.float16)) for k, v in arrays.items()}
    full = {k: v.astype("float32") for k, v in half.items()}
    with paddle.amp.auto_cast(level="O1"):
        found = deform_conv2d(**half, padding=1)
    assert found.dtype == paddle.float32
    np.testing.assert_array_equal(found.numpy(), deform_conv2d(**full, padding=1).numpy())


class Net(paddle.nn.Layer):
    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.implementation = implementation
        self.offset = paddle.nn.Conv2D(6, 54, 3, padding=1)
        self.conv = paddle.nn.Conv2D(6, 12, 3, groups=2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = F.relu(x)
        answer = self.offset(y)
        offset, mask = answer[:, :36] * 3, F.sigmoid(answer[:, 36:])
        weight, bias = self.conv.weight, self.conv.bias
        out = deform_conv2d(
            y, offset, weight, mask, bias, padding=1, deformable_groups=2, groups=2, implementation=self.implementation
        )
        return F.relu(out)


@pytest.mark.parametrize("implementation", ["auto", "gather"])
def test_export(tmp_path: Path, implementation: str) -> None:
    net = Net(implementation)
    net.eval()
    paddle.jit.save(net, str(tmp_path / "net"), input_spec=[InputSpec([None, 6, None, None], "float32", "x")])
    assert ("deformable_conv" in (tmp_path / "net.json").read_text()) == (implementation == "auto")
    for onednn in (False, True):
        config = inference.Config(str(tmp_path / "net.json"), str(tmp_path / "net.pdiparams"))
        config.disable_glog_info()
        (config.enable_mkldnn if onednn else config.disable_mkldnn)()
        predictor = inference.create_predictor(config)
        for shape in ((1, 6, 8, 11), (2, 6, 9, 7)):
            x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            handle = predictor.get_input_handle("x")
            handle.reshape(shape)
            handle.copy_from_cpu(x)
            predictor.run()
            found = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
            np.testing.assert_allclose(found, net(paddle.to_tensor(x)).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": (2, 36, 7, 9)}, r"offset has shape \[2, 36, 7, 9\], expected \[2, 18, 7, 9\]"),
        ({"offset": (2, 18, 7, 8)}, r"offset has shape \[2, 18, 7, 8\], expected \[2, 18, 7, 9\]"),
        ({"mask": (2, 18, 7, 9)}, r"mask has shape \[2, 18, 7, 9\], expected \[2, 9, 7, 9\]"),
        ({"bias": (6,)}, r"bias has shape \[6\], expected \[12\]"),
        ({"x": (6, 7, 9)}, r"x \[6, 7, 9\] and weight \[12, 6, 3, 3\] must be 4-D"),
        ({"groups": 2}, r"weight \[12, 6, 3, 3\] must be \[O, C/groups, kh, kw\] for x \[2, 6, 7, 9\] and groups=2"),
        ({"deformable_groups": 4}, "the 6 channels .* cannot be divided into deformable_groups=4"),
        ({"padding": 0, "dilation": 4}, r"x \[2, 6, 7, 9\] is smaller than the kernel \[12, 6, 3, 3\]"),
        ({"stride": 0}, r"stride must be an int >= 1 or a pair \(y, x\) of them, not 0"),
        ({"padding": (1, 1, 1)}, "padding must be an int >= 0 or a pair"),
        (
            {
                "implementation": "native",
                "weight": (2, 6, 3, 3),
                "bias": (2,),
                "offset": (2, 54, 7, 9),
                "mask": (2, 27, 7, 9),
            }
            | {"deformable_groups": 3},
            "native needs deformable_groups to divide the 2 output channels",
        ),
        ({"implementation": "cuda"}, "implementation must be one of auto, native, gather, not 'cuda'"),
    ],
)
def test_inconsistent_arguments_are_rejected(change: dict[str, object], message: str) -> None:
    arguments = {k: paddle.to_tensor(v) for k, v in make(Case(), 0).items() if k != "upstream"} | {"padding": 1}
    change = {
        k: paddle.zeros(v) if k in arguments and isinstance(v, tuple) and k != "padding" else v
        for k, v in change.items()
    }
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**(arguments | change))
