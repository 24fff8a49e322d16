"""Products in bfloat16 by oneDNN. Processors that cannot multiply in it compute the same calls in float32."""

import ctypes
from typing import Any

import numpy as np
import paddle
import pytest

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu import onednn, onednn_library
from ppdet_lite.ops.layers import conv2d, linear

needs_onednn = pytest.mark.skipif(onednn_library.load_library() is None, reason="Paddle without oneDNN 3")
# bfloat16 has 8 significant bits; each test has sums of at most 144 products
TOLERANCE = 0.02 if onednn_library.multiplies_bfloat16() else 1e-5


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the processor multiplies in bfloat16, so that oneDNN is asked to."""
    monkeypatch.setattr(dispatch, "multiplies_bfloat16", lambda: True)


def leaf(rng: np.random.Generator, *shape: int) -> paddle.Tensor:
    return paddle.to_tensor(rng.normal(size=shape).astype(np.float32), stop_gradient=False)


def assert_close(found: paddle.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE * np.abs(expected).max())


@needs_onednn
@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(has_bias: bool, strided: bool) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = leaf(rng, 7, 33), leaf(rng, 33, 12), leaf(rng, 12) if has_bias else None
    given = x.transpose([1, 0]).contiguous().transpose([1, 0]) if strided else x
    upstream = rng.normal(size=(7, 12)).astype(np.float32)
    out = linear(given, weight, bias, bfloat16=True)
    out.backward(paddle.to_tensor(upstream))
    assert_close(out, x.numpy() @ weight.numpy() + (bias.numpy() if has_bias else 0))
    assert_close(x.grad, upstream @ weight.numpy().T)
    assert_close(weight.grad, x.numpy().T @ upstream)
    if has_bias:
        np.testing.assert_allclose(bias.grad.numpy(), upstream.sum(0), atol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("needs", ["x", "weight"])
def test_only_the_gradient_that_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch, needs: str) -> None:
    rng, products = np.random.default_rng(1), []
    tensors = {"x": leaf(rng, 4, 5), "weight": leaf(rng, 5, 6)}
    for name, tensor in tensors.items():
        tensor.stop_gradient = name != needs
    create = onednn.matrix_product
    monkeypatch.setattr(onednn, "matrix_product", lambda product: products.append(product) or create(product))
    linear(**tensors, bfloat16=True).sum().backward()
    assert [product.transposed for product in products] == [(False, False), (needs == "weight", needs == "x")]
    assert all(product.bfloat16 for product in products)
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [needs]


@needs_onednn
@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution(monkeypatch: pytest.MonkeyPatch, kernel: int) -> None:
    """Also a 1x1 convolution without bias, which Paddle computes in float32."""
    rng, primitives = np.random.default_rng(2), []
    for name in ("forward", "input_gradient", "weight_gradient"):
        create = getattr(onednn, name)
        monkeypatch.setattr(onednn, name, lambda c, create=create: primitives.append(c.bfloat16) or create(c))
    results = []
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 16, 9, 11), (8, 16, kernel, kernel))]
    for bfloat16 in (True, False):
        x, weight = (paddle.to_tensor(array, stop_gradient=False) for array in arrays)
        out = conv2d(x, weight, padding=kernel // 2, bfloat16=bfloat16)
        (out * out.detach()).sum().backward()
        results.append([out, x.grad, weight.grad])
    assert primitives[:3] == [True] * 3 and not any(primitives[3:])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected.numpy())


@needs_onednn
@pytest.mark.parametrize("bfloat16", [False, True])
def test_onednn_is_asked_for_bfloat16_only_if_wanted(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of every primitive's attributes: 0 is float32, 1 allows bfloat16. Reorders stay exact."""
    modes, create = [], onednn.Object.__init__
    library = ctypes.CDLL(onednn_library.load_library()._name)  # whose functions get no declared arguments

    def watched(self: onednn_library.Object, kind: str, name: str, *arguments: Any) -> None:
        create(self, kind, name, *arguments)
        if kind == "primitive_desc":
            attributes, mode = ctypes.c_void_p(), ctypes.c_int(-1)
            assert not library.dnnl_primitive_desc_get_attr(self.handle, ctypes.byref(attributes))
            assert not library.dnnl_primitive_attr_get_fpmath_mode(attributes, ctypes.byref(mode))
            modes.append((name, mode.value))

    monkeypatch.setattr(onednn.Object, "__init__", watched)
    convolution = onednn.Convolution((1, 16, 9, 13), (32, 16, 3, 3), 1, 1, 1, 1, has_bias=True, bfloat16=bfloat16)
    primitives = (onednn.forward, onednn.input_gradient, onednn.weight_gradient)
    for primitive in primitives:
        primitive.__wrapped__(convolution)
    onednn.matrix_product.__wrapped__(onednn.MatrixProduct(3, 4, 5, bfloat16=bfloat16))
    kinds = dict(modes)
    assert kinds.pop("reorder", 0) == 0
    expected = {"convolution_forward", "convolution_backward_data", "convolution_backward_weights", "matmul"}
    assert kinds == dict.fromkeys(expected, int(bfloat16))


@pytest.mark.usefixtures("units")
def test_if_onednn_fails_paddle_multiplies(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: onednn.MatrixProduct) -> None:
        raise onednn_library.OneDnnError("oneDNN: matmul returned status 5")

    monkeypatch.setattr(onednn, "matrix_product", fail)
    monkeypatch.setattr(onednn_library, "_failures", [])
    rng = np.random.default_rng(3)
    x, weight = leaf(rng, 4, 5), leaf(rng, 5, 6)
    out = linear(x, weight, bfloat16=True)
    out.sum().backward()
    np.testing.assert_allclose(out.numpy(), x.numpy() @ weight.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weight.grad.numpy(), x.numpy().T @ np.ones((4, 6)), rtol=1e-5, atol=1e-5)
    assert len(caplog.records) == 1 and "matmul returned status 5" in caplog.text


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [(0x7, False), (0x67, False), (0xE7, False), (0x1EF, False), (0xFEF, True), (0x1FEF, True)],
    ids=["AVX2", "AVX512-VNNI", "AVX512-BF16", "AVX512-FP16", "AMX", "AMX-FP16"],
)
def test_which_processors_multiply_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, instructions: int, expected: bool
) -> None:
    class Library:
        def dnnl_get_effective_cpu_isa(self) -> int:
            return instructions

    monkeypatch.setattr(onednn_library, "load_library", Library)
    assert dispatch.multiplies_bfloat16() == expected
    assert dispatch.describe_libraries()[0].endswith(", which can multiply in bfloat16 (AMX)") == expected


def test_without_onednn_nothing_multiplies_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_library, "load_library", lambda: None)
    assert not dispatch.multiplies_bfloat16()
