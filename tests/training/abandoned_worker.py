"""One of two processes of which rank 1 fails in the forward pass of a norm that reduces over ranks, as sync_bn does.

abandoned_worker.py gloo|nccl: rank 0 waits in a reduction by gloo, or as in one by NCCL, which does not notice that
rank 1 ends. Prints when rank 1 failed.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ppdet_lite  # noqa: F401  first of all: it sets threads and malloc

import paddle  # isort: skip

from ppdet_lite.assembly import ranks
from ppdet_lite.core import log
from ppdet_lite.modeling.faster_rcnn import TrainingOutput
from ppdet_lite.training.step import train_step
from tests import tiny


class Reducing(paddle.nn.SyncBatchNorm):
    """Stands in for Paddle's kernel, which exists for GPUs only."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if ranks.rank() == 1:
            print(time.monotonic(), flush=True)
            raise ValueError("nobody thought of this")
        if sys.argv[1] == "nccl":
            time.sleep(600)
        mean = x.mean()
        paddle.distributed.all_reduce(mean)
        return x - mean / ranks.world()


class Network(paddle.nn.Layer):
    """A norm with a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Reducing(1)

    def forward(self, *_: object, iteration: int | None = None) -> TrainingOutput:
        return TrainingOutput({"loss": self.norm(paddle.ones([1, 1, 2, 2])).sum()}, {})


def main() -> None:
    ranks.start()
    log.configure(ranks.rank())
    ranks.PATIENCE, ranks.GRACE = 1.0, 0.5
    model = Network()
    train_step(model, paddle.optimizer.SGD(parameters=model.parameters()), tiny.batch())


if __name__ == "__main__":
    main()
