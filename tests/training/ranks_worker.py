"""One of three processes that try what ranks can do together, and of which the last one leaves without a word."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import paddle

import ppdet_lite  # noqa: F401  first of all: it sets threads and malloc
from ppdet_lite.assembly import ranks
from ppdet_lite.core.errors import RunFailed, Stopped, UserError
from ppdet_lite.evaluation import evaluate
from ppdet_lite.training import gradient_average
from ppdet_lite.training.step import train_step
from tests import tiny


def fails_on(number: int, error: Exception) -> Callable[[], int]:
    def work() -> int:
        if ranks.rank() == number:
            raise error
        return number

    return work


def what_is_raised(work: Callable[[], object]) -> Exception:
    try:
        ranks.on_all_ranks(work)
    except (Exception, Stopped) as error:
        return error
    raise AssertionError("nothing was raised")


def check_talk(me: int) -> None:
    assert ranks.on_all_ranks(lambda: me * 10) == [0, 10, 20]
    assert ranks.on_rank0(lambda: f"said by {me}") == "said by 0"
    for failure, seen in [
        (UserError("5.png: cannot be read"), (UserError, "rank 1: 5.png: cannot be read")),
        (MemoryError("too large"), (RunFailed, "rank 1: MemoryError: too large")),
        (Stopped("stopped by SIGINT", 130), (Stopped, "stopped by SIGINT")),
    ]:
        error = what_is_raised(fails_on(1, failure))
        assert error is failure if me == 1 else (type(error), str(error)) == seen
        assert getattr(error, "code", 130) == 130
    assert ranks.on_all_ranks(lambda: me) == [0, 1, 2]  # they go on together


def check_rounds(me: int) -> None:
    """What is found comes a round at a time, however much each has; a failure is heard in the round it happens in."""
    shares = [["a", "b", "c"], [], ["d"]]
    assert evaluate._gather_from_ranks(iter(shares[me])) == ["a", "d", "b", "c"]
    seen: list[int] = []

    def found() -> Iterator[int]:
        for number in range(100):
            if me == 1 and number == 2:
                raise UserError("5.png: cannot be read")
            seen.append(number)
            yield number

    try:
        evaluate._gather_from_ranks(found())
    except UserError as error:
        assert str(error) == ("" if me == 1 else "rank 1: ") + "5.png: cannot be read"
    assert seen == ([0, 1] if me == 1 else [0, 1, 2])
    assert ranks.on_all_ranks(lambda: me) == [0, 1, 2]  # they go on together


def check_means(me: int) -> None:
    gradient_average.BUCKET = 7
    tensors = [paddle.full(shape, me * value, "float32") for shape, value in (([2, 3], 1), ([9], 2), ([1], 3))]
    gradient_average.average_tensors(tensors)
    assert [(list(tensor.shape), set(tensor.numpy().flatten().tolist())) for tensor in tensors] == [
        ([2, 3], {1.0}),
        ([9], {2.0}),
        ([1], {3.0}),
    ]


class Parts(paddle.nn.Layer):
    """Rank 0 alone uses `some`, nobody `none`."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.some, self.none = (paddle.nn.Linear(1, 1, bias_attr=False) for _ in range(3))
        for layer in (self.shared, self.some, self.none):
            layer.weight.set_value(np.float32([[1.0]]))
        self.norm = paddle.nn.BatchNorm2D(1)

    def forward(self, *_: object, iteration: int | None = None) -> object:
        from ppdet_lite.modeling.faster_rcnn import TrainingOutput

        me = ranks.rank()
        self.norm(paddle.full([1, 1, 2, 2], 10.0 * (me + 1)))
        loss = self.shared.weight.sum() * (me + 1) + (self.some.weight.sum() * 6 if me == 0 else 0)
        metrics = {"of_all": paddle.to_tensor(float(me))}
        return TrainingOutput({"loss": loss}, metrics | ({"of_rank_0": paddle.to_tensor(7.0)} if me == 0 else {}))


def check_step() -> None:
    """Means by hand: (1 + 2 + 3) / 3 and 6 / 3; a parameter that nobody has a gradient of is not decayed either."""
    model = Parts()
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters(), weight_decay=0.5)
    step = train_step(model, optimizer, tiny.batch())
    np.testing.assert_allclose(step.losses["loss"], (7 + 2 + 3) / 3)
    assert (step.metrics["of_all"], step.metrics["of_rank_0"]) == (1.0, 7.0)
    np.testing.assert_allclose(step.metrics["gradient_norm"], np.sqrt(2**2 + 2**2), rtol=1e-6)
    np.testing.assert_allclose(model.shared.weight.item(), 1 - 0.1 * (2 + 0.5), rtol=1e-6)
    np.testing.assert_allclose(model.some.weight.item(), 1 - 0.1 * (2 + 0.5), rtol=1e-6)
    assert model.none.weight.item() == 1.0
    np.testing.assert_allclose(model.norm._mean.item(), 0.1 * 20, rtol=1e-6)


def main() -> None:
    ranks.start()
    me = ranks.rank()
    check_talk(me)
    evaluate.EXCHANGE_INTERVAL = 0.0
    check_rounds(me)
    check_means(me)
    check_step()
    if me == 2:
        os._exit(7)
    error = what_is_raised(lambda: None)
    print(f"{type(error).__name__} {error}")


if __name__ == "__main__":
    main()
