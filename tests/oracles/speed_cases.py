"""What `speed.py` compares: detectors that both can build, the size of images, and what both processes share."""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BOXES = 8  # objects in an image, about COCO's mean
WARM_UP = 2
CLASSES = 80
SLIM = "configs/quickstart/shapes_r18_fpn.yml"
PLAIN = "configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml"
DEFORMABLE = "configs/dcn/faster_rcnn_dcn_r50_fpn_1x_coco.yml"


class Case(NamedTuple):
    """told: in words. torchvision builds it from depth, norm and deformable alone: see `speed_torchvision.py`."""

    told: str
    config: str
    batch: int = 1
    size: tuple[int, int] = (320, 427)  # h, w
    training: bool = True
    norm: str = "frozen_bn"
    has_floor: bool = False
    bfloat16: bool = False  # ours, and torchvision's a second time, under autocast

    @property
    def ways(self) -> tuple[str, ...]:
        """How our side does it; detection also by the exported graph and in ONNX Runtime."""
        return ("as trained",) if self.training or self.bfloat16 else ("as trained", "exported", "onnx")


CASES = {
    "r50_frozen": Case("R50-FPN, frozen norms, stem and stage 2 fixed, one image of 320x427", PLAIN, has_floor=True),
    "r18_bn": Case("R18-FPN slim, batch norm, four images of 320x427", SLIM, 4, norm="bn"),
    "r18_gn": Case("R18-FPN slim, group norm in backbone and FPN, four images of 320x427", SLIM, 4, norm="gn"),
    "r50_mdconv": Case("R50-FPN, deformable convolution v2 in stages 3 to 5, one image of 320x427", DEFORMABLE),
    "infer_r50": Case("R50-FPN, detection in one image of 640x640", PLAIN, size=(640, 640), training=False),
    "r50_bfloat16": Case("the same training step of R50-FPN in bfloat16", PLAIN, bfloat16=True),
    "r18_bfloat16": Case("the same training step of R18-FPN slim in bfloat16", SLIM, 4, norm="bn", bfloat16=True),
    "infer_bfloat16": Case("the same detection in bfloat16", PLAIN, size=(640, 640), training=False, bfloat16=True),
    "memory_r50": Case("R50-FPN, frozen norms, one image of 800x1333", PLAIN, size=(800, 1333)),
    "tiny_1": Case("R18-FPN slim, batch norm, one image of 64x64: what is no arithmetic", SLIM, 1, (64, 64), norm="bn"),
    "tiny_4": Case("the same, four images", SLIM, 4, (64, 64), norm="bn"),
}


class Picture(NamedTuple):
    """image uint8 [H, W, 3]; boxes float32 [G, 4]; classes int64 [G], from 0."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def pictures(case: Case) -> list[Picture]:
    """Noise with boxes on it, the same for both."""
    found = []
    for i in range(case.batch):
        rng = np.random.default_rng(i)
        corners = rng.uniform(0, 1, (BOXES, 2, 2)) * case.size[::-1]
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
        image = rng.integers(0, 256, (*case.size, 3), np.uint8)
        found.append(Picture(image, boxes, rng.integers(0, CLASSES, BOXES)))
    return found


def serve(step: Callable[[], object], rate: Callable[[], float] | None = None) -> None:
    """Warm up, then for each number that is read take as many steps and tell their times, until the end.

    rate: measures the GFLOP/s of a large matrix product.
    """
    for _ in range(WARM_UP):
        step()
    print("{}", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        turn = {"seconds": seconds, "peak_rss_mb": peak, **({"gflops": rate()} if rate else {})}
        print(json.dumps(turn), flush=True)
