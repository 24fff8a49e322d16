"""One of two processes that train a detector with an R-CNN teacher together; started by `tests.ranks`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import paddle

import ppdet_lite  # noqa: F401  first of all: it sets threads and malloc
from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.training.gradient_average import average_tensors
from tests import tiny


def detector() -> FasterRCNN:
    """The same weights in every process."""
    return tiny.detector(pool="modulated", mimic={"rois_per_image": 3, "include_ground_truth": True, "crop_size": 32})


def backward(network: paddle.nn.Layer, rank: int) -> list[float]:
    """Gradients of a rank's losses on its image: that of rank 0 has objects, that of rank 1 none."""
    batch = {key: value[rank : rank + 1] for key, value in tiny.batch().items()}
    paddle.seed(rank)
    losses = network(*training_arguments(batch)).losses
    sum(losses.values()).backward()
    return [losses[name].item() for name in ("loss_mimic", "loss_mimic_cls")]


def gradients(model: FasterRCNN) -> dict[str, np.ndarray]:
    """By the parameters' names."""
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    ranks.start()
    rank, model = ranks.rank(), detector()
    losses = backward(model, rank)
    average_tensors([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    np.savez(Path(sys.argv[1]) / f"rank{rank}.npz", losses=losses, **gradients(model))


if __name__ == "__main__":
    main()
