"""oneDNN's convolution: memory of its buffers, failures of the library, threads, and the cache of primitives."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppdet_lite.core import runtime
from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu import onednn, onednn_library
from ppdet_lite.ops.layers import conv2d

needs_onednn = pytest.mark.skipif(onednn_library.load_library() is None, reason="Paddle without oneDNN 3")
RNG = np.random.default_rng(0)
NAMES = ("x", "weight", "bias", "grad")
# With one group, oneDNN reorders all tensors but the bias; with 8 groups of 2 channels, it uses a scratchpad (AVX2).
both_kinds = pytest.mark.parametrize("groups", [1, 8])
CACHES = (onednn.forward, onednn.input_gradient, onednn.weight_gradient, onednn._engine, onednn._attributes)


@pytest.fixture
def empty_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Create all primitives anew in this test and warn about its first failure."""
    monkeypatch.setattr(onednn_library, "_failures", [])
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


def arrays(groups: int) -> dict[str, np.ndarray]:
    """Return random x, weight and bias, and a random gradient of the output."""
    shapes = (2, 16, 13, 10), (24, 16 // groups, 3, 3), (24,), (2, 24, 13, 10)
    return {name: RNG.normal(size=shape) for name, shape in zip(NAMES, shapes, strict=True)}


def tensors(arrays: dict[str, np.ndarray], dtype: str = "float32") -> dict[str, paddle.Tensor]:
    return {name: paddle.to_tensor(array, dtype=dtype) for name, array in arrays.items()}


def results(operator: Callable, groups: int, x, weight, bias, grad) -> list[np.ndarray]:
    """Return the output and the gradients of x, weight and bias."""
    inputs = [x, weight, bias]
    for tensor in inputs:
        tensor.stop_gradient = False
    out = operator(*inputs, padding=1, groups=groups)
    return [out.numpy(), *(g.numpy() for g in paddle.grad(out, inputs, grad))]


def assert_correct(inputs: dict[str, paddle.Tensor], arrays: dict[str, np.ndarray], groups: int) -> None:
    """Compute the convolution and its gradients; compare them with Paddle's in double precision."""
    expected = results(F.conv2d, groups, **tensors(arrays, "float64"))
    for ours, theirs in zip(results(conv2d, groups, **inputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


def strided(array: np.ndarray) -> paddle.Tensor:
    """Return a float32 view with the array's values and every second element of a larger tensor."""
    return paddle.to_tensor(np.repeat(array, 2, axis=-1), dtype="float32")[..., ::2]


@needs_onednn
@both_kinds
@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_are_not_contiguous(name: str, groups: int) -> None:
    content = arrays(groups)
    inputs = tensors(content) | {name: strided(content[name])}
    assert not inputs[name].is_contiguous()
    assert_correct(inputs, content, groups)


@needs_onednn
@both_kinds
def test_views_that_begin_inside_a_tensor(groups: int) -> None:
    content = arrays(groups)
    inputs = {name: paddle.concat([tensor, tensor])[len(tensor) :] for name, tensor in tensors(content).items()}
    assert_correct(inputs, content, groups)


class OnGpu:
    """A tensor on a GPU whose pointer must not be used. Any other use is an AttributeError."""

    place = type("Place", (), {"is_cpu_place": lambda self: False})()
    dtype = paddle.float32

    def data_ptr(self) -> int:
        raise AssertionError("a device pointer is passed to oneDNN")


@needs_onednn
@both_kinds
@pytest.mark.usefixtures("empty_caches")
def test_buffers_are_in_cpu_memory_if_the_current_device_is_a_gpu(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """Simulated: tensors created on the current device are on a GPU."""
    created, content = [], arrays(groups)
    inputs, create, gpu = tensors(content), paddle._C_ops.empty, object()

    def create_here(shape: list[int], dtype: Any, place: Any, **options: Any) -> Any:
        created.append(place)
        return OnGpu() if place is gpu else create(shape, dtype, place, **options)

    monkeypatch.setattr(paddle._C_ops, "empty", create_here)
    monkeypatch.setattr(paddle.tensor.creation, "_current_expected_place", lambda: gpu)
    assert isinstance(paddle.empty([1]), OnGpu)
    created.clear()
    assert_correct(inputs, content, groups)
    assert len(created) > 4 and gpu not in created  # more than the output and three gradients


@needs_onednn
@pytest.mark.usefixtures("empty_caches")
@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_a_tensor_on_a_gpu_is_left_to_paddle(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = arrays(8)
    inputs = tensors(content)
    monkeypatch.setattr(dispatch, "on_cpu", lambda tensor: tensor is not inputs[name])
    monkeypatch.setattr(onednn, "forward", lambda _: pytest.fail("oneDNN is called"))
    assert_correct(inputs, content, 8)


@needs_onednn
@both_kinds
@pytest.mark.usefixtures("empty_caches")
def test_an_output_on_a_gpu_is_not_passed_to_the_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, groups: int
) -> None:
    content, empty = arrays(groups), onednn.empty
    monkeypatch.setattr(onednn, "empty", lambda shape: OnGpu() if len(shape) == 4 else empty(shape))
    assert_correct(tensors(content), content, groups)
    assert "is not contiguous in CPU memory" in caplog.text


class Failing:
    """The library with one function that returns a status, from its nth call on."""

    def __init__(self, dnnl: ctypes.CDLL, name: str, status: int | None, calls: int = 0) -> None:
        self.dnnl, self.name, self.status, self.calls = dnnl, f"dnnl_{name}", status, calls

    def __getattr__(self, name: str) -> Callable:
        if name != self.name:
            return getattr(self.dnnl, name)
        self.calls -= 1
        return getattr(self.dnnl, name) if self.calls >= 0 else lambda *_: self.status


@needs_onednn
@pytest.mark.usefixtures("empty_caches")
@pytest.mark.parametrize(
    ("function", "status", "reason", "calls"),
    [
        ("engine_create", 5, "runtime error", 0),
        ("memory_create", 1, "out of memory", 0),
        ("memory_set_data_handle", 2, "invalid arguments", 0),
        ("convolution_forward_primitive_desc_create", 3, "unimplemented", 0),
        ("convolution_forward_primitive_desc_create", 3, "unimplemented", 1),  # in the backward pass
        ("convolution_backward_data_primitive_desc_create", 3, "unimplemented", 0),
        ("convolution_backward_weights_primitive_desc_create", 99, "unknown", 0),
        ("reorder_primitive_desc_create", 3, "unimplemented", 0),
        ("reorder_primitive_desc_create", 3, "unimplemented", 5),
        ("primitive_desc_query_md", None, "has no layout", 0),
        ("primitive_create", 1, "out of memory", 0),
        ("primitive_create", 1, "out of memory", 6),
        ("primitive_execute", 1, "out of memory", 0),
        ("primitive_execute", 1, "out of memory", 3),  # the last reordering of the forward pass
        ("primitive_execute", 1, "out of memory", 6),
        ("stream_wait", 5, "runtime error", 0),
    ],
)
def test_a_failure_of_the_library_is_left_to_paddle(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    function: str,
    status: int | None,
    reason: str,
    calls: int,
) -> None:
    failing = Failing(onednn_library.load_library(), function, status, calls)
    for module in (onednn, onednn_library):
        monkeypatch.setattr(module, "load_library", lambda: failing)
    content, grad_mode = arrays(1), paddle.is_grad_enabled()
    for _ in range(2):
        assert_correct(tensors(content), content, 1)
    assert failing.calls < 0 and paddle.is_grad_enabled() == grad_mode
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and function in record.message and reason in record.message


@needs_onednn
@pytest.mark.usefixtures("empty_caches")
@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_a_failure_in_training_some_inputs_only(monkeypatch: pytest.MonkeyPatch, trained: str) -> None:
    content, failing = arrays(8), Failing(onednn_library.load_library(), "primitive_execute", 1)
    for module in (onednn, onednn_library):
        monkeypatch.setattr(module, "load_library", lambda: failing)
    expected = dict(zip(("out", "x", "weight", "bias"), results(F.conv2d, 8, **tensors(content, "float64"))))
    inputs = tensors(content)
    grad, inputs[trained].stop_gradient = inputs.pop("grad"), False
    conv2d(**inputs, padding=1, groups=8).backward(grad)
    np.testing.assert_allclose(inputs[trained].grad.numpy(), expected[trained], rtol=1e-4, atol=1e-4)
    assert all(tensor.grad is None for name, tensor in inputs.items() if name != trained)


@needs_onednn
@pytest.mark.usefixtures("empty_caches")
@pytest.mark.parametrize(
    "missing", ["version", "memory_set_data_handle", "reorder_primitive_desc_create", "stream_destroy"]
)
def test_a_library_without_a_function_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    class Incomplete(ctypes.CDLL):
        def __getattr__(self, name: str) -> Any:
            if name == f"dnnl_{missing}":
                raise AttributeError(f"undefined symbol: {name}")
            return super().__getattr__(name)

    monkeypatch.setattr(ctypes, "CDLL", Incomplete)
    monkeypatch.setattr(onednn_library, "_load", onednn_library._load.__wrapped__)
    content = arrays(1)
    assert_correct(tensors(content), content, 1)
    assert len(caplog.records) == 1 and f"undefined symbol: dnnl_{missing}" in caplog.text
    assert f"oneDNN cannot be loaded: undefined symbol: dnnl_{missing}" in onednn_library.description()


@needs_onednn
def test_all_functions_have_declared_arguments() -> None:
    """Without them, ctypes passes an int as 32 bits, which cuts pointers."""
    dnnl = onednn_library.load_library()
    used = {name: function for name, function in vars(dnnl).items() if name.startswith("dnnl_")}
    conv2d(paddle.ones([1, 4, 5, 5]), paddle.ones([4, 4, 3, 3]))
    assert len(used) > 20 and {name for name, f in used.items() if f.argtypes is None} == {"dnnl_version"}
    assert {name for name in vars(dnnl) if name.startswith("dnnl_")} == used.keys()


@needs_onednn
def test_four_threads_at_once() -> None:
    """Forward pass only: several threads in Paddle's autograd crash the process.

    Maps of 64x96x96 keep a primitive busy long enough for another thread to replace its arguments.
    """
    images = [paddle.to_tensor(RNG.normal(size=(2, 64, 96, 96)), dtype="float32") for _ in range(4)]
    weight = paddle.to_tensor(RNG.normal(size=(64, 64, 3, 3)), dtype="float32")
    expected = [conv2d(image, weight).numpy() for image in images]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(conv2d, image, weight) for image in images * 3]
    for run, alone in zip(runs, expected * 3, strict=True):
        np.testing.assert_array_equal(run.result().numpy(), alone)


@needs_onednn
def test_a_primitive_is_used_and_destroyed_by_another_thread() -> None:
    """Four groups of three channels: oneDNN would allocate a scratchpad of the thread that created the primitive."""
    weight = paddle.ones([24, 3, 3, 3])
    sizes = range(41, 46)

    def sums() -> list[float]:
        return [float(conv2d(paddle.ones([1, 12, size, 40]), weight, groups=4, padding=1).sum()) for size in sizes]

    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(sums).result()
    assert sums() == elsewhere == [24 * 3 * (3 * size - 2) * (3 * 40 - 2) for size in sizes]
    onednn.forward.cache_clear()
    assert sums() == elsewhere


@needs_onednn
def test_the_cache_of_primitives_is_limited() -> None:
    weight = paddle.ones([8, 4, 3, 3])
    for height in range(3, onednn.MAX_PRIMITIVES + 10):
        conv2d(paddle.ones([1, 4, height, 3]), weight)
    assert onednn.forward.cache_info().currsize == onednn.MAX_PRIMITIVES
    gradients = (onednn.input_gradient, onednn.weight_gradient)
    assert {cache.cache_info().maxsize for cache in gradients} == {onednn.MAX_PRIMITIVES}


def test_description_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_library, "_load", onednn_library._load.__wrapped__)
    monkeypatch.setenv(runtime.SWITCH, "threads,malloc")
    assert onednn_library.load_library() is None
    assert onednn_library.description() == "convolutions on a CPU: Paddle's own (PPDET_LITE_RUNTIME is without onednn)"


@needs_onednn
@pytest.mark.usefixtures("empty_caches")
def test_the_gradient_of_the_output_is_reordered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both primitives of the backward pass read it; one that needs another layout reorders it again."""
    convolution = onednn.Convolution((1, 16, 12, 14), (16, 16, 3, 3), 1, 1, 1, 1, has_bias=False)
    grad = next(
        a for a in onednn.input_gradient(convolution)._arguments if a.number == onednn._GRADIENT_OF + onednn._DST
    )
    if grad._reorder is None:
        pytest.skip("oneDNN reads contiguous tensors on this processor")
    runs, run = [], onednn._Execution.run
    monkeypatch.setattr(onednn._Execution, "run", lambda self: (runs.append(self), run(self)))
    x, weight, out_grad = (paddle.rand(shape) for shape in (convolution.x, convolution.weight, convolution.out))
    results = []
    for shared in (True, False):
        copies: onednn.Copies = {}
        x_grad, weight_grad = paddle.empty_like(x), paddle.empty_like(weight)
        runs.clear()
        onednn.input_gradient(convolution)(out_grad, weight, x_grad, copies=copies)
        if not shared:
            copies.clear()
        onednn.weight_gradient(convolution)(x, out_grad, weight_grad, copies=copies)
        results.append((len(runs), x_grad.numpy(), weight_grad.numpy()))
    assert results[0][0] == results[1][0] - 1
    for shared, alone in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_array_equal(shared, alone)

    copies = {grad.number: (onednn._contiguous_layout(convolution.out).handle, paddle.full([1], np.nan))}
    onednn.input_gradient(convolution)(out_grad, weight, x_grad, copies=copies)
    np.testing.assert_array_equal(x_grad.numpy(), results[0][1])
