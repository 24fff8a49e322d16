"""The training losses on validation images."""

from collections.abc import Callable
from typing import Any

import paddle

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.deployment.detect import evaluation_mode
from ppdet_lite.modeling.faster_rcnn import FasterRCNN


def validation_losses(
    model: FasterRCNN,
    dataset: CocoDataset,
    preprocess: Preprocess,
    loader: Loader,
    check: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """The mean over a dataset's images of each of the training losses, as `losses`, and of their sum, as `loss`.

    Images are not augmented, norms keep to their running statistics, and proposals are as many as in training. What is
    drawn, such as the RoIs of a batch, is drawn alike each time; the random numbers of others go on as if nothing was.
    Of several ranks each takes its share, and every one returns the mean over all.

    check: called after every batch; what it raises ends it on all ranks.
    """
    batches = EvalBatches(dataset, preprocess, loader, ranks.rank(), ranks.world())
    shares = ranks.together(lambda: _sums(model, batches, check))
    names = dict.fromkeys(name for share in shares for name in share)
    means = {name: sum(share.get(name, 0.0) for share in shares) / len(dataset) for name in names}
    return {"loss": sum(means.values()), "losses": means}


def _sums(model: FasterRCNN, batches: EvalBatches, check: Callable[[], None] | None) -> dict[str, float]:
    """The sum over the images of batches of each loss."""
    state = paddle.get_rng_state()
    sums: dict[str, float] = {}
    try:
        with evaluation_mode(model), paddle.no_grad():
            model.rpn.training = True
            for batch in batches.labelled(model.needs_originals):
                ids = batch["image_ids"]
                paddle.seed(int(ids[0]) % 2**31)
                for name, value in model(*training_arguments(batch)).losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(ids)
                if check is not None:
                    check()
    finally:
        paddle.set_rng_state(state)
    return sums
