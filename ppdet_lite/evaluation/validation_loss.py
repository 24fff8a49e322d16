"""The training losses, computed on validation images."""

import math
from collections.abc import Callable
from typing import Any

import paddle

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.errors import RunFailed
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
    """Return `losses`, the mean of each training loss over the images of a dataset, and `loss`, their sum.

    Images are not augmented, norm layers use their running statistics, and the RPN keeps as many proposals as in
    training. Sampling, such as that of RoIs, is seeded by image id, so that results are reproducible; the state of the
    random generator is restored afterwards. With several ranks each processes a part of the images, and all return the
    mean over all images.

    check: called after every batch. An exception that it raises ends the computation on all ranks.

    Raises RunFailed if a loss is not finite.
    """
    batches = EvalBatches(dataset, preprocess, loader, ranks.rank(), ranks.world())
    sums_by_rank = ranks.on_all_ranks(lambda: _sums(model, batches, check))
    names = dict.fromkeys(name for sums in sums_by_rank for name in sums)
    means = {name: sum(sums.get(name, 0.0) for sums in sums_by_rank) / len(dataset) for name in names}
    if not all(map(math.isfinite, means.values())):
        shown = ", ".join(f"{name} {value:g}" for name, value in means.items())
        raise RunFailed(
            f"a validation loss is not finite: {shown}; the weights have diverged: lower optimizer.base_lr or lengthen "
            "the warm-up"
        )
    return {"loss": sum(means.values()), "losses": means}


def _sums(model: FasterRCNN, batches: EvalBatches, check: Callable[[], None] | None) -> dict[str, float]:
    """Return the sum of each loss over the images of the batches."""
    state = paddle.get_rng_state()
    sums: dict[str, float] = {}
    try:
        with evaluation_mode(model), paddle.no_grad():
            model.rpn.training = True
            for batch in batches.iterate_with_targets(model.needs_originals):
                ids = batch["image_ids"]
                paddle.seed(int(ids[0]) % 2**31)
                for name, value in model(*training_arguments(batch)).losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(ids)
                if check is not None:
                    check()
    finally:
        paddle.set_rng_state(state)
    return sums
