"""The validation loss compared with direct calls of the model."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.assembly.recipe import Evaluation
from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.data.loading.augment import Augment, train_sample
from ppdet_lite.data.loading.loader import Loader
from ppdet_lite.data.loading.transforms import Preprocess, collate
from ppdet_lite.evaluation.coco_metric import format_metrics
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.evaluation.validation_loss import validation_losses
from tests.tiny_run import as_detector, tiny_config, tiny_dataset

PREPROCESS = Preprocess(short_side=32, long_side=64)


def test_validation_losses_are_means_of_training_losses_over_images(tmp_path):
    """The oracle calls the model per image. Neither the model nor the random state is changed."""
    config = load_config(tiny_config(tmp_path), ["model.roi_sampler.append_ground_truth=true"])
    dataset = tiny_dataset(tmp_path)
    model = build_model(config, dataset.class_names)
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    paddle.seed(3)
    expected_draw = paddle.rand([3]).numpy()
    paddle.seed(3)
    result = validation_losses(model, dataset, PREPROCESS, Loader(batch_size=1))
    np.testing.assert_array_equal(paddle.rand([3]).numpy(), expected_draw)
    assert all(layer.training for layer in (model, model.rpn, model.backbone))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)

    sums = {}
    model.eval()
    model.rpn.training = True
    for index in range(len(dataset)):
        still = Augment(flip=0.0)
        batch = collate([train_sample(dataset, index, PREPROCESS, still, np.random.default_rng(1))], PREPROCESS)
        paddle.seed(dataset.info(index).id)
        with paddle.no_grad():
            losses = model(*training_arguments(batch)).losses
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + float(value)
    assert result["losses"] == pytest.approx({name: value / 3 for name, value in sums.items()}, rel=1e-6)
    assert result["loss"] == pytest.approx(sum(sums.values()) / 3, rel=1e-6) and result["loss"] > 0
    metrics = evaluate(
        as_detector(model, dataset, PREPROCESS), dataset, Loader(batch_size=1), tmp_path, Evaluation(loss=True)
    )
    assert metrics["loss"] == pytest.approx(
        result["loss"], rel=1e-6
    ) and f"loss {result['loss']:.4f}" in format_metrics(metrics)


class LossByBatchSize(paddle.nn.Layer):
    """A detector whose losses are 6 and 1 for a batch of one image, and 3 and 0 for one of two."""

    needs_originals = False

    def __init__(self):
        super().__init__()
        self.rpn, self.batch_sizes = paddle.nn.Linear(1, 1), []

    def forward(self, images, *rest):
        self.batch_sizes.append(len(images))
        values = {1: (6.0, 1.0), 2: (3.0, 0.0)}[len(images)]
        return SimpleNamespace(losses=dict(zip(("loss_a", "loss_b"), map(paddle.to_tensor, values), strict=True)))


def test_each_image_counts_once_however_large_its_batch(tmp_path):
    """Batches of one and two images: (6 + 2 * 3) / 3 and (1 + 2 * 0) / 3; by batches they were 4.5 and 0.5."""
    model, dataset = LossByBatchSize(), tiny_dataset(tmp_path)
    result = validation_losses(model, dataset, PREPROCESS, Loader(batch_size=2, threads=1))
    assert sorted(model.batch_sizes) == [1, 2]
    assert result == {"loss": pytest.approx(13 / 3), "losses": {"loss_a": 4.0, "loss_b": pytest.approx(1 / 3)}}


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    """It could not be written as JSON, and no later loss would be below it."""
    model, dataset = LossByBatchSize(), tiny_dataset(tmp_path)
    model.forward = lambda *_: SimpleNamespace(losses={"loss_a": paddle.to_tensor(float("nan"))})
    with pytest.raises(RunFailed, match=r"a validation loss is not finite: loss_a nan; the weights have diverged"):
        validation_losses(model, dataset, PREPROCESS, Loader(batch_size=2, threads=1))
