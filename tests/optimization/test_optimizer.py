"""Optimizers step by step against their formulas in NumPy, and restoring their state."""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.norm import ConvNorm, FrozenBatchNorm, NormName
from ppdet_lite.optimization.optimizer import (
    SGD,
    AdamW,
    Optimizer,
    clip_gradients,
    freeze,
    optimizer_state,
    restore_optimizer,
    squared_gradient_norms,
)
from tests import tiny

RATES = (0.1, 0.05, 0.2)
NORMS = ("group.norm", "batch.norm")


class Net(nn.Layer):
    """Convolutions with GN, BN and frozen BN, and linear layers: plain, with a low learning rate, and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.group = ConvNorm(2, 32, 1, norm="gn")
        self.batch = ConvNorm(32, 3, 1, norm="bn")
        self.fixed = ConvNorm(3, 3, 1, norm="frozen_bn")
        self.linear = nn.Linear(3, 2)
        slow = paddle.ParamAttr(learning_rate=0.1)
        self.slow = nn.Linear(2, 3, weight_attr=slow, bias_attr=False)
        self.idle = nn.Linear(2, 2)
        for parameter in self.idle.parameters():
            parameter.stop_gradient = True


def trained(net: nn.Layer) -> dict[str, paddle.Tensor]:
    return {name: p for name, p in net.named_parameters() if not p.stop_gradient}


def values(net: nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def gradients(net: nn.Layer, step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {name: rng.standard_normal(p.shape).astype(np.float32) for name, p in trained(net).items()}


def advance(net: nn.Layer, optimizer: paddle.optimizer.Optimizer, step: int, limit: float | None = None) -> None:
    """Take one step with the gradients `gradients(net, step)`, clipped to a limit."""
    given = gradients(net, step)
    sum((p * paddle.to_tensor(given[name])).sum() for name, p in trained(net).items()).backward()
    optimizer.set_lr(RATES[step])
    clip_gradients(net, limit)
    optimizer.step()
    optimizer.clear_grad()


def decay_of(name: str, settings: Optimizer) -> float:
    return settings.norm_decay if name.startswith(NORMS) else settings.weight_decay


def scale_of(name: str) -> float:
    return 0.1 if name.startswith("slow") else 1.0


def check(net: nn.Layer, expected: dict[str, np.ndarray]) -> None:
    found = values(net)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "settings", [SGD(weight_decay=0.1), SGD(weight_decay=0.1, norm_decay=0.3, momentum=0.5), SGD(momentum=0.0)]
)
def test_sgd(settings: SGD) -> None:
    """v = momentum * v + gradient + decay * w; w = w - rate * v."""
    net = Net()
    optimizer, expected = settings.build(net), values(net)
    velocity = {name: np.zeros(p.shape) for name, p in trained(net).items()}
    for step, rate in enumerate(RATES):
        for name, gradient in gradients(net, step).items():
            gradient = gradient + decay_of(name, settings) * expected[name]
            velocity[name] = settings.momentum * velocity[name] + gradient
            expected[name] = expected[name] - rate * scale_of(name) * velocity[name]
        advance(net, optimizer, step)
    check(net, expected)


@pytest.mark.parametrize("settings", [AdamW(), AdamW(weight_decay=0.2, norm_decay=0.1, beta1=0.8, beta2=0.9)])
def test_adamw(settings: AdamW) -> None:
    """Loshchilov and Hutter's algorithm 2: the decay acts on the weights, past the moments."""
    net = Net()
    optimizer, expected = settings.build(net), values(net)
    first = {name: np.zeros(p.shape) for name, p in trained(net).items()}
    second = {name: np.zeros(p.shape) for name, p in trained(net).items()}
    for step, rate in enumerate(RATES):
        for name, gradient in gradients(net, step).items():
            first[name] = settings.beta1 * first[name] + (1 - settings.beta1) * gradient
            second[name] = settings.beta2 * second[name] + (1 - settings.beta2) * gradient**2
            mean = first[name] / (1 - settings.beta1 ** (step + 1))
            deviation = np.sqrt(second[name] / (1 - settings.beta2 ** (step + 1)))
            own = rate * scale_of(name)
            kept = expected[name] * (1 - own * decay_of(name, settings))
            expected[name] = kept - own * mean / (deviation + 1e-8)
        advance(net, optimizer, step)
    check(net, expected)


def test_the_norm_of_a_large_gradient_is_exact() -> None:
    """Adding a million squares one by one in float32 is off by 1e-5, and by 1e-3 with few large ones."""
    net = nn.Linear(1000, 1000, bias_attr=False)
    gradient = np.random.default_rng(0).normal(3.0, 1.0, (1000, 1000)).astype(np.float32)
    (net.weight * paddle.to_tensor(gradient)).sum().backward()
    assert squared_gradient_norms(net).tolist() == pytest.approx([(gradient.astype(np.float64) ** 2).sum()], rel=1e-6)


def clipped_step(net: nn.Layer, limit: float, decay: float) -> dict[str, np.ndarray]:
    """Compute an SGD step at rate 0.1: gradients scaled to the norm over all parameters, then the decay."""
    given = gradients(net, 0)
    norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in given.values()))
    expected = values(net)
    for name, gradient in given.items():
        scaled = gradient * min(1, limit / norm)
        decayed = scaled + (0 if name.startswith(NORMS) else decay) * expected[name]
        expected[name] = expected[name] - 0.1 * scale_of(name) * decayed
    return expected


@pytest.mark.parametrize(
    "limit",
    [
        0.5,
        1000.0,
    ],
)
def test_clipping_is_by_the_norm_over_all_parameters(limit: float) -> None:
    net = Net()
    expected = clipped_step(net, limit, decay=0.2)
    advance(net, SGD(weight_decay=0.2).build(net), 0, limit)
    check(net, expected)


def test_clipping_without_norm_layers() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    expected = clipped_step(net, 0.5, decay=0.2)
    advance(net, SGD(weight_decay=0.2).build(net), 0, 0.5)
    check(net, expected)


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in", "frozen_stats_bn"])
@pytest.mark.parametrize("settings", [SGD(weight_decay=0.5), AdamW(weight_decay=0.5)])
def test_norms_do_not_decay(norm: NormName, settings: Optimizer) -> None:
    """With gradients of 0 only the decay changes a parameter: rate 0.2 and decay 0.5 subtract a tenth."""
    net = ConvNorm(2, 32, 1, norm=norm)
    for parameter in trained(net).values():
        parameter.set_value(paddle.ones(parameter.shape))
    optimizer = settings.build(net)
    sum((p * 0).sum() for p in trained(net).values()).backward()
    optimizer.set_lr(0.2)
    optimizer.step()
    found = {name: p.numpy() for name, p in trained(net).items()}
    assert set(found) == {"conv.weight", "norm.weight", "norm.bias"}
    np.testing.assert_allclose(found["conv.weight"], 0.9, rtol=1e-6)
    assert (found["norm.weight"] == 1).all()
    assert (found["norm.bias"] == 1).all()


def test_learning_rate_is_scaled_by_the_images_per_step() -> None:
    assert SGD(base_lr=0.02, base_batch=16).scaled_lr(2) == pytest.approx(0.0025)
    assert AdamW(base_lr=1e-4, base_batch=8).scaled_lr(16) == pytest.approx(2e-4)


def test_a_model_of_norms_alone() -> None:
    net = nn.Sequential(nn.GroupNorm(1, 4), FrozenBatchNorm(4))
    before = net[0].weight.numpy()
    advance(net, SGD(weight_decay=0.5).build(net), 0)
    np.testing.assert_allclose(net[0].weight.numpy(), before - 0.1 * gradients(net, 0)["0.weight"], rtol=1e-6)


ALGORITHMS = pytest.mark.parametrize("settings", [SGD(), AdamW(), SGD(momentum=0.5)])


@ALGORITHMS
def test_state_is_restored_in_a_second_model(settings: Optimizer) -> None:
    """The third step from the restored state is bit-identical to that of the uninterrupted model."""
    straight = Net()
    optimizer = settings.build(straight)
    for step in range(2):
        advance(straight, optimizer, step)
    state, weights = optimizer_state(optimizer, straight), values(straight)
    advance(straight, optimizer, 2)

    _ = nn.Linear(2, 2)  # shifts the internal names of what follows
    resumed = Net()
    resumed.set_state_dict(weights)
    second = settings.build(resumed)
    restore_optimizer(second, resumed, state)
    advance(resumed, second, 2)
    for name, value in values(straight).items():
        np.testing.assert_array_equal(values(resumed)[name], value, err_msg=name)
    after, restored = optimizer_state(optimizer, straight), optimizer_state(second, resumed)
    assert set(after) == set(restored)
    assert all((after[key] == restored[key]).all() for key in after)


@ALGORITHMS
def test_state_is_copied(settings: Optimizer) -> None:
    """A later step does not change the saved state."""
    net = Net()
    optimizer = settings.build(net)
    advance(net, optimizer, 0)
    state = optimizer_state(optimizer, net)
    before = {key: value.copy() for key, value in state.items()}
    advance(net, optimizer, 1)
    assert all((state[key] == before[key]).all() for key in state)


def test_state_is_named_after_the_models_parameters() -> None:
    net = Net()
    optimizer = SGD().build(net)
    assert optimizer_state(optimizer, net) == {}
    advance(net, optimizer, 0)
    assert {key.split("/")[0] for key in optimizer_state(optimizer, net)} == set(trained(net))


def test_state_of_a_parameter_whose_internal_name_begins_with_that_of_another() -> None:
    net = nn.Linear(2, 3, weight_attr=paddle.ParamAttr(name="w_1"), bias_attr=paddle.ParamAttr(name="w_1_0"))
    optimizer = SGD().build(net)
    advance(net, optimizer, 0)
    state = optimizer_state(optimizer, net)
    assert {name: value.shape for name, value in state.items()} == {"weight/velocity": (2, 3), "bias/velocity": (3,)}


def test_state_does_not_depend_on_earlier_optimizers() -> None:
    net = Net()
    names = []
    for _ in range(2):
        optimizer = SGD().build(net)
        advance(net, optimizer, 0)
        names.append(list(optimizer_state(optimizer, net)))
    assert names[0] == names[1]


def test_state_of_another_model() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(UserError) as error:
        restore_optimizer(SGD().build(net), net, {"backbone.stem.conv.weight/velocity": np.zeros(3, np.float32)})
    assert str(error.value) == (
        "the checkpoint's optimizer state belongs to another optimizer or model (missing or unexpected arrays: 3, "
        "such as backbone.stem.conv.weight/velocity); resume with the checkpoint's config"
    )


@pytest.mark.parametrize("change", ["another optimizer", "a parameter less", "another shape"])
def test_mismatched_state(change: str) -> None:
    """It raises UserError before the first step."""
    net = Net()
    optimizer = SGD().build(net)
    advance(net, optimizer, 0)
    state, settings = optimizer_state(optimizer, net), SGD()
    if change == "another optimizer":
        settings = AdamW()
    elif change == "a parameter less":
        del state["linear.weight/velocity"]
    else:
        state["linear.weight/velocity"] = np.zeros([5, 5], np.float32)
    resumed = Net()
    with pytest.raises(UserError):
        restore_optimizer(settings.build(resumed), resumed, state)


def test_the_state_before_the_first_update_is_restored() -> None:
    """Every step of a run can have exceeded float16."""
    net = Net()
    state = optimizer_state(SGD().build(net), net)
    assert state == {}
    restore_optimizer(SGD().build(net), net, state)


def test_no_trained_parameter_is_an_error() -> None:
    net = Net()
    freeze(net, ["*"])
    with pytest.raises(UserError, match=r"no parameter is trained: remove patterns from train\.freeze"):
        SGD().build(net)


def test_a_pattern_matches_the_layers_of_all_stages_of_a_cascade() -> None:
    model = tiny.detector(cascade={})
    freeze(model, ["predictor.*"])
    frozen = {name for name, parameter in model.named_parameters() if parameter.stop_gradient}
    parts = {name.rpartition("predictor.")[0] for name in frozen if "predictor." in name}
    assert parts == {"", "earlier.0.", "earlier.1."} and not any("box_head" in name for name in frozen)
