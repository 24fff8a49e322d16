"""Accumulation, early stopping, freezing and learning rates by name."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling import matching
from ppdet_lite.optimization.optimizer import SGD, freeze
from ppdet_lite.storage.checkpoint import load_checkpoint
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from ppdet_lite.training.step import train_step
from tests import tiny
from tests.tiny_run import QUICKSTART, small_shapes


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *small_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=2),
        "data.loader.threads=0",
        "train={length: 4 iterations, checkpoint_every: 2 iterations, log_every: 1, preview_images: 0}",
    ]


def images(first: int, count: int) -> dict[str, Any]:
    """A batch of images of noise from number `first` on, each with an object of its own."""
    rngs = [np.random.default_rng(first + i) for i in range(count)]
    corners = [rng.uniform(0, 30, 2) for rng in rngs]
    return {
        "images": np.stack([rng.standard_normal((3, 64, 96)).astype(np.float32) for rng in rngs]),
        "image_sizes": np.tile(np.float32([64, 96]), (count, 1)),
        "scales": np.ones((count, 2), np.float32),
        "image_ids": np.arange(first, first + count),
        "targets": [
            {"boxes": np.float32([[*c, *(c + 32)]]), "classes": np.array([1]), "is_crowd": np.array([False])}
            for c in corners
        ],
    }


def after_a_step(batches: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    model = tiny.detector(norm="gn")
    optimizer = SGD(base_lr=0.02, base_batch=16).build(model)
    optimizer.set_lr(0.01)
    model.train()
    losses = train_step(model, optimizer, batches).losses
    return {name: value.numpy() for name, value in model.state_dict().items()}, losses


def test_two_batches_of_two_make_the_step_of_one_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling takes the first candidates in place of random ones."""
    monkeypatch.setattr(matching, "sample_true", lambda mask, _, count: paddle.nonzero(mask).flatten()[:count])
    whole, losses = after_a_step(images(0, 4))
    halves, mean = after_a_step([images(0, 2), images(2, 2)])
    for name, value in whole.items():
        np.testing.assert_allclose(halves[name], value, rtol=0, atol=5e-6 * np.abs(value).max(), err_msg=name)
    assert mean == pytest.approx(losses, rel=1e-5)
    alone, _ = after_a_step(images(0, 2))
    assert max(np.abs(alone[name] - value).max() for name, value in whole.items()) > 1e-5


def test_iterations_and_the_rate_count_accumulated_batches(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """8 images, batches of 1, two a step: 4 iterations an epoch, the rate of 2 images; resuming is exact."""
    config = load_config(QUICKSTART, [*options, "train.accumulate=2"])
    train(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert "4 iterations per epoch" in told and "(1 images x 1 devices x 2 batches) / base_batch 4" in told
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    early, late = (tmp_path / f"run/checkpoints/iter_{n:08d}" for n in (2, 4))
    train(config, tmp_path / "again", resume=str(early))
    straight, again = (
        load_checkpoint(path).groups["model"] for path in (late, tmp_path / "again/checkpoints" / late.name)
    )
    assert all(np.array_equal(value, again[name]) for name, value in straight.items())


def test_training_ends_when_evaluations_get_no_better(
    options: list[str], tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture
) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr(
        "ppdet_lite.training.run.evaluate", lambda *_: {"AP": 0.0, "AP50": next(scores), "per_class": {}}
    )
    stop = ["train.length=9 iterations", "train.checkpoint_every=null", "train.early_stop=2", "train.best_metric=AP50"]
    config = load_config(QUICKSTART, [*options, *stop, "train.evaluate_every=1 iterations"])
    train(config, tmp_path / "run")
    assert "no better AP50 for 2 evaluations: training ends early" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"best", "iter_00000004"}
    meta = load_checkpoint(tmp_path / "run/checkpoints/best").meta
    assert meta["best"] == {"AP50": 0.3, "iteration": 2} and meta["iteration"] == 2
    train(config, tmp_path / "run", resume="auto")  # still over
    assert next(scores) == 0.9


def test_the_best_loss_is_the_least(options: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    losses = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(
        "ppdet_lite.training.run.evaluate", lambda *_: {"AP": 0.0, "loss": next(losses), "losses": {}, "per_class": {}}
    )
    best = ["train.length=3 iterations", "train.evaluate_every=1 iterations", "train.best_metric=loss"]
    with pytest.raises(UserError, match=r"train\.best_metric: the loss is not computed; set eval\.loss"):
        train(load_config(QUICKSTART, [*options, *best]), tmp_path / "run")
    train(load_config(QUICKSTART, [*options, *best, "eval.loss=true"]), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run/checkpoints/best").meta["best"] == {"loss": 0.3, "iteration": 2}


def test_early_stopping_needs_evaluations(options: list[str], tmp_path: Path) -> None:
    config = load_config(QUICKSTART, [*options, "train.early_stop=2"])
    with pytest.raises(UserError, match=r"command line: train\.early_stop: needs evaluations"):
        train(config, tmp_path / "run")


def test_a_best_checkpoint_can_be_gone_on_with(options: list[str], tmp_path: Path) -> None:
    config = load_config(QUICKSTART, [*options, "train.length=2 iterations", "train.evaluate_every=2 iterations"])
    train(config, tmp_path / "run")
    longer = load_config(QUICKSTART, [*options, "train.length=3 iterations"])
    train(longer, tmp_path / "more", resume=str(tmp_path / "run/checkpoints/best"))
    assert load_checkpoint(tmp_path / "more/checkpoints/iter_00000003").meta["iteration"] == 3


def test_frozen_parameters_stay(options: list[str], tmp_path: Path) -> None:
    config = load_config(
        QUICKSTART, [*options, "train.length=2 iterations", "train.freeze=[backbone.*, neck.lateral.0.*]"]
    )
    model = build_model(config)
    before = {name: value.numpy() for name, value in model.named_parameters()}
    train(config, tmp_path / "run")
    after = load_checkpoint(tmp_path / "run/checkpoints/iter_00000002").groups["model"]
    for name, value in before.items():
        if not name.endswith(("._mean", "._variance")):
            frozen = name.startswith(("backbone.", "neck.lateral.0."))
            assert np.array_equal(value, after[name]) == frozen, name


def test_learning_rates_by_name() -> None:
    """Each weight moves by its rate times its gradient, which is 1 here."""
    model = tiny.detector()
    settings = SGD(lr_scales={"backbone.*": 0.1, "backbone.res5.*": 0.5, "neck.*": 2.0}, momentum=0.0, weight_decay=0.0)
    optimizer = settings.build(model)
    optimizer.set_lr(0.01)
    named = dict(model.named_parameters())
    before = {name: parameter.numpy() for name, parameter in named.items()}
    for parameter in named.values():
        parameter.grad = paddle.ones_like(parameter)
    optimizer.step()
    for name, rate in {
        "backbone.res2.0.conv1.conv.weight": 0.1,
        "backbone.res5.0.conv1.conv.weight": 0.05,
        "neck.lateral.0.conv.weight": 2.0,
        "rpn.conv.weight": 1.0,
    }.items():
        np.testing.assert_allclose(before[name] - named[name].numpy(), 0.01 * rate, atol=1e-6, err_msg=name)


def test_a_pattern_that_matches_nothing_is_told() -> None:
    model = tiny.detector()
    with pytest.raises(UserError, match=r"train\.freeze: 'backbon\.\*' matches no parameter; an example of a name is"):
        freeze(model, ["backbon.*"])
    with pytest.raises(UserError, match=r"optimizer\.lr_scales: 'head\.\*' matches no parameter"):
        SGD(lr_scales={"head.*": 0.1}).build(model)


def test_a_backend_that_is_not_here_is_told_before_the_first_step(
    options: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # an import of it fails
    config = load_config(QUICKSTART, [*options, "eval.backend=faster", "train.length=1 iterations"])
    with pytest.raises(
        UserError, match=r"^command line: eval\.backend: faster requires .* pip install faster-coco-eval"
    ):
        train(config, tmp_path / "run", evaluate_at_end=True)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_fails_costs_no_step(tmp_path: Path) -> None:
    """A validation picture is damaged behind its header; when it is mended the run goes on, and evaluates first."""
    options = [*small_shapes(tmp_path / "shapes", train=4, val=2), "train.checkpoint_every=null"]
    options += ["train.length=3 iterations", "train.evaluate_every=2 iterations"]
    picture = sorted((tmp_path / "shapes/val").iterdir())[0]
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    config = load_config(QUICKSTART, options)
    with pytest.raises(UserError, match=picture.name):
        train(config, tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["iter_00000002"]
    picture.write_bytes(whole)
    train(config, tmp_path / "run", resume="auto")
    assert {path.name for path in checkpoints.iterdir()} >= {"best", "iter_00000003"}
