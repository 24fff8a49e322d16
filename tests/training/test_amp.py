"""Half precision: what is computed in it, that steps come near those of float32, and the loss scale of float16."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import NotFinite, UserError
from ppdet_lite.modeling import amp
from ppdet_lite.modeling.amp import LossScale, bfloat16_layers, require_amp_support
from ppdet_lite.modeling.box_head import BoxPredictor
from ppdet_lite.modeling.deform import Deformable, DeformConv2D
from ppdet_lite.modeling.layers import Conv2D, Linear
from ppdet_lite.modeling.roi_pool import DeformRoIPool, RoIAlign
from ppdet_lite.ops import dispatch
from ppdet_lite.optimization.optimizer import SGD
from ppdet_lite.storage.checkpoint import load_checkpoint
from ppdet_lite.structures import BoxHeadOutput
from ppdet_lite.training import loop
from ppdet_lite.training.loop import train
from ppdet_lite.training.step import Step, train_step
from tests import tiny
from tests.modeling.test_box_head import sampled
from tests.tiny_run import QUICKSTART, small_shapes


def bfloat16(array: np.ndarray) -> np.ndarray:
    """The nearest numbers of eight bits, ties to even."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


@pytest.mark.skipif(dispatch.multiplies_bfloat16(), reason="this processor multiplies in bfloat16")
def test_a_cpu_without_bfloat16_rounds_the_inputs_and_outputs_of_a_layer() -> None:
    """Forward and backward of a linear layer, in numpy; afterwards it is as before."""
    rng = np.random.default_rng(0)
    layer = Linear(5, 3)
    weight, x, upstream = layer.weight.numpy(), *(rng.standard_normal((4, n)).astype(np.float32) for n in (5, 3))
    leaf = paddle.to_tensor(x, stop_gradient=False)
    network = nn.Sequential(layer)
    with bfloat16_layers(network, "bfloat16"):
        found = network(leaf)
        (found * paddle.to_tensor(upstream)).sum().backward()
    np.testing.assert_allclose(found.numpy(), bfloat16(bfloat16(x) @ bfloat16(weight)), atol=1e-6)
    np.testing.assert_allclose(leaf.grad.numpy(), bfloat16(bfloat16(upstream) @ bfloat16(weight).T), atol=1e-6)
    np.testing.assert_allclose(layer.weight.grad.numpy(), bfloat16(bfloat16(x).T @ bfloat16(upstream)), atol=2e-2)
    np.testing.assert_allclose(network(leaf).numpy(), x @ weight, atol=1e-6)
    assert [name for name, _ in network.named_parameters()] == ["0.weight", "0.bias"]


def test_a_layer_that_fails_computes_in_float32_again() -> None:
    layer, x = Linear(5, 3), noise(2, 5)
    expected = layer(x).numpy()
    with pytest.raises(ValueError), bfloat16_layers(nn.Sequential(layer), "bfloat16"):
        layer(paddle.zeros([2, 4]))
    np.testing.assert_array_equal(layer(x).numpy(), expected)


def noise(*shape: int) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("kind", ["convolution", "pooling"])
def test_offsets_are_computed_in_float32(kind: str) -> None:
    """Bit for bit, beside a layer that is rounded; the same features go into both."""
    features, proposals = noise(1, 4, 16, 16), tiny.rois([[3, 4, 30, 40], [0, 0, 60, 60]])
    if kind == "convolution":
        deformable = DeformConv2D(4, 8, 3, 1, 1, Deformable())
    else:
        deformable = DeformRoIPool([4], 4, True, hidden=4, output_size=2, levels=1, canonical_stride=4)
    for layer in deformable.sublayers():
        if isinstance(layer, nn.Conv2D | nn.Linear):
            layer.weight.set_value(noise(*layer.weight.shape))
    network = nn.LayerList([deformable, Conv2D(4, 8, 3)])
    inputs = (features,) if kind == "convolution" else ([features], proposals)
    exact, plain = deformable.offsets(*inputs), network[1](features)
    with bfloat16_layers(network, "bfloat16"):
        found, rounded = deformable.offsets(*inputs), network[1](features)
    assert exact[0].abs().max() > 0.1 and (rounded != plain).any()
    for value, expected in zip(found, exact, strict=True):
        np.testing.assert_array_equal(value.numpy(), expected.numpy())


def step(amp: str | None = None, loss_scale: float = 1.0, clip: float | None = 1.0) -> tuple[Step, dict[str, Any]]:
    model = tiny.detector(pool="modulated")
    model.train()
    paddle.seed(3)
    optimizer = SGD().build(model)
    optimizer.set_lr(0.01)
    found = train_step(model, optimizer, tiny.batch(), clip, 0, (3,), amp, loss_scale)
    return found, {name: value.numpy() for name, value in model.named_parameters()}


def test_a_step_in_bfloat16_comes_near_one_in_float32() -> None:
    (exact, weights), (rough, moved) = step(), step("bfloat16")
    assert rough.losses != exact.losses
    assert rough.losses == pytest.approx(exact.losses, rel=0.05)
    assert rough.metrics["gradient_norm"] == pytest.approx(exact.metrics["gradient_norm"], rel=0.1)
    for name, value in weights.items():
        assert moved[name].dtype == np.float32
        np.testing.assert_allclose(moved[name], value, atol=5e-4, err_msg=name)


def test_the_loss_scale_is_taken_out_before_clipping_and_telling() -> None:
    """A power of two changes not a bit."""
    (plain, weights), (scaled, moved) = step(), step(loss_scale=2.0**12)
    assert plain.metrics["gradient_norm"] > 1  # it is clipped
    assert (scaled.losses, scaled.metrics) == (plain.losses, plain.metrics)
    for name, value in weights.items():
        np.testing.assert_array_equal(moved[name], value, err_msg=name)


def test_an_overflow_moves_nothing_and_is_no_failure_while_the_loss_is_scaled() -> None:
    model = tiny.detector()
    model.train()
    model.box_head.fc2.weight.register_hook(lambda gradient: gradient * float("inf"))
    optimizer = SGD().build(model)
    optimizer.set_lr(0.01)
    before = {name: value.numpy() for name, value in model.named_parameters()}
    assert train_step(model, optimizer, tiny.batch(), loss_scale=2.0).overflowed
    for name, value in model.named_parameters():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
        assert value.grad is None or not value.grad.numpy().any()
    with pytest.raises(NotFinite, match="a gradient is not finite"):
        train_step(model, optimizer, tiny.batch(), loss_scale=1.0)


def test_how_the_loss_scale_changes() -> None:
    assert LossScale(8.0, 5).after(True) == LossScale(4.0, 0)
    assert LossScale(1.0, 5).after(True) == LossScale(1.0, 0)
    assert LossScale(8.0, 5).after(False) == LossScale(8.0, 6)
    assert LossScale(8.0, 1999).after(False) == LossScale(16.0, 0)


OPERATORS = {  # by the module that calls them
    "paddle.vision.ops": "deform_conv2d",
    "ppdet_lite.ops.roi_align": "roi_align",
    "ppdet_lite.ops.deform_roi_pool": "sum_rows",
    "ppdet_lite.ops.cpu.deform_conv": "sum_rows",
}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_operators_get_float32_of_maps_in_half_precision(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps are real bfloat16 tensors, as on a GPU."""
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: on_cpu)
    dtypes: set[Any] = set()

    def watched(operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            flat = [t for part in arguments for t in (part if isinstance(part, tuple) else (part,))]
            dtypes.update(t.dtype for t in flat if isinstance(t, paddle.Tensor) and t.is_floating_point())
            return operator(*arguments, **options)

        return call

    for module, name in OPERATORS.items():
        owner = importlib.import_module(module)
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    maps = [paddle.rand([2, 8, 16 // n, 24 // n]).astype("bfloat16") for n in (1, 2)]
    proposals = tiny.rois([[3, 4, 30, 40]], [[0, 0, 90, 60], [10, 10, 12, 14]])
    sizes = {"levels": 2, "canonical_stride": 8, "output_size": 2}
    pools = [RoIAlign([4, 8], **sizes), DeformRoIPool([4, 8], 8, modulated=True, hidden=4, **sizes)]
    for pool in pools:
        assert pool(maps, proposals).dtype == paddle.float32
    assert DeformConv2D(8, 8, 3, 1, 1, Deformable())(maps[0]).dtype == paddle.float32
    assert dtypes == {paddle.float32}


@pytest.mark.parametrize("pool", ["align", "modulated"])
def test_roi_pooling_receives_float32_of_maps_in_half_precision(pool: Any) -> None:
    """Layers of a pooling, such as those that predict offsets, have float32 weights."""
    model, dtypes = tiny.detector(pool=pool), []
    model.roi_pool.register_forward_pre_hook(lambda _, inputs: dtypes.extend(part.dtype for part in inputs[0]))
    maps = [paddle.rand([1, 32, 16 // n, 24 // n]).astype("bfloat16") for n in (1, 2, 4, 8, 16)]
    pooled = model._pool(maps, tiny.rois([[3, 4, 30, 40], [0, 0, 90, 60]]))
    assert pooled.dtype == paddle.float32 and dtypes == [paddle.float32] * 5


def test_losses_of_answers_in_half_precision_are_float32() -> None:
    """The box predictor's; the RPN hands its own on in float32."""
    predictor, rois = BoxPredictor(4, 2), sampled([[0, 0, 9, 9]] * 2, [1, 2], [[0, 0, 9, 8]] * 2)
    answers = [paddle.rand([2, n]).astype("bfloat16") for n in (3, 8)]
    output = BoxHeadOutput(paddle.zeros([2, 4]), *answers)
    exact = predictor.losses(BoxHeadOutput(output.embedding, *(a.astype("float32") for a in answers)), rois)
    for name, loss in predictor.losses(output, rois).items():
        assert loss.dtype == paddle.float32
        assert loss.item() == exact[name].item()


def test_float16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    options = [*small_shapes(tmp_path / "shapes", train=2, val=1), "train.amp=float16"]
    with pytest.raises(UserError) as error:
        train(load_config(QUICKSTART, options), tmp_path / "run")
    assert str(error.value) == "command line: train.amp: float16 needs a GPU; on a CPU choose bfloat16, or null"
    assert not (tmp_path / "run").exists()
    require_amp_support("bfloat16", "here")


def test_a_run_trains_in_the_precision_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], amp.bfloat16_layers
    monkeypatch.setattr(
        "ppdet_lite.training.step.bfloat16_layers", lambda net, amp: asked.append(amp) or real(net, amp)
    )
    options = small_shapes(tmp_path / "shapes", train=1, val=1)
    options += ["train={length: 1 iterations, evaluate_every: null, amp: bfloat16, rehearse: true}"]
    train(load_config(QUICKSTART, [*options, "data.loader.threads=0"]), tmp_path / "run")
    assert asked == ["bfloat16"]


def test_the_loss_scale_goes_through_a_checkpoint_and_a_skipped_step_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As on a GPU, with the layers in float32; the second of four steps overflows. Resuming equals the straight run."""
    monkeypatch.setattr(loop, "require_amp_support", lambda *_: None)
    monkeypatch.setattr(amp, "_on_cpu", lambda: True)

    def overflowing(network: nn.Layer, *arguments: Any, **options: Any) -> Step:
        options["amp"] = None
        hook = network.predictor.classify.weight.register_hook(
            lambda gradient: gradient * float("inf") if arguments[3] == 1 else gradient
        )
        try:
            return train_step(network, *arguments, **options)
        finally:
            hook.remove()

    monkeypatch.setattr("ppdet_lite.training.run.train_step", overflowing)
    options = small_shapes(tmp_path / "shapes", train=4, val=1)
    options += ["train={length: 4 iterations, checkpoint_every: 1 iterations, evaluate_every: null, keep_last: 9}"]
    config = load_config(QUICKSTART, [*options, "train.amp=float16", "train.rehearse=false", "data.loader.threads=0"])
    train(config, tmp_path / "run")
    assert "iteration 2 skipped: a gradient exceeds float16; loss scale 65536 -> 32768" in capsys.readouterr().out
    train(config, tmp_path / "again", resume=str(tmp_path / "run/checkpoints/iter_00000002"))
    found = [load_checkpoint(tmp_path / name / "checkpoints/iter_00000004") for name in ("run", "again")]
    assert [meta["loss_scale"] for _, meta in found] == [[32768.0, 2]] * 2
    for name, array in found[0][0]["model"].items():
        np.testing.assert_array_equal(found[1][0]["model"][name], array, err_msg=name)
    one, two = (load_checkpoint(tmp_path / f"run/checkpoints/iter_0000000{i}")[0]["model"] for i in (1, 2))
    for name, array in one.items():  # running statistics too: those of an overflow would stay infinite
        np.testing.assert_array_equal(two[name], array, err_msg=name)
