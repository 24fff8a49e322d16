"""tools/train.py of which rank 1 fails in its third step: failing_rank.py error|memory, then train.py's arguments."""

import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    sys.path.insert(0, str(ROOT))
    import ppdet_lite  # noqa: F401  first of all: it sets threads and malloc

    import paddle  # isort: skip

    from ppdet_lite.assembly import ranks
    from ppdet_lite.modeling.faster_rcnn import FasterRCNN

    how, forward = sys.argv.pop(1), FasterRCNN.forward

    def failing(self: FasterRCNN, *inputs: Any, iteration: int | None = None) -> Any:
        if ranks.rank() == 1 and iteration == 2:
            if how == "memory":
                paddle.zeros([1 << 50])
            raise ValueError("nobody thought of this")
        return forward(self, *inputs, iteration=iteration)

    FasterRCNN.forward = failing
    runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")


if __name__ == "__main__":
    main()
