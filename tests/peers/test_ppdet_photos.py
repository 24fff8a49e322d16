"""Photos from file to boxes: our detectors with PaddleDetection's weights, against its own reader and models."""

import json

import numpy as np
import pytest

from ppdet_lite.assembly.setup import build_uninitialized, peer_config, state_shapes
from ppdet_lite.config.registry import build
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.loading.transforms import collate, image_sample
from ppdet_lite.deployment.detect import TrainedNetwork
from ppdet_lite.peers.dataset_classes import COCO_NAMES
from ppdet_lite.peers.names.ppdet import ppdet
from tests.oracles import seeded
from tests.oracles.compare import assert_found
from tests.peers.test_conversion_ppdet import CONFIGS, GOLDENS, ROOT

PHOTOS = ROOT.parent / "shared/data/coco_tiny/val2017"
GOLDEN = np.load(GOLDENS.parent / "paddledetection_photos.npz")
ARCHITECTURES = sorted({key.partition("/")[0] for key in GOLDEN})
FAST = "dcn_r50_vd_fpn"  # the others read and resize photos in the same way


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="shared/data/coco_tiny is not here")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == FAST else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_boxes_of_photos_are_theirs(name: str, request: pytest.FixtureRequest) -> None:
    """Boxes to 1e-2 pixels, scores to 1e-4, as many of them; one photo, and all three with --slow."""
    overrides = [f"model.rpn.post_nms_test={int(GOLDEN[f'{name}/post_nms'])}"]
    config = peer_config(ROOT / f"configs/{CONFIGS[name]}.yml", "ppdet", overrides)
    model, preprocess = build_uninitialized(config, COCO_NAMES), build(config["data"]["preprocess"])
    shapes = json.loads(str(np.load(GOLDENS / f"{name}.npz")["weights"]))
    report = ppdet(state_shapes(model)).to_ours(state_shapes(model), seeded.fill(shapes))
    model.set_state_dict(report.matched)
    network, photos = TrainedNetwork(model), sorted({key.split("/")[1] for key in GOLDEN if key.endswith("detections")})
    assert len(photos) == 3 and report.is_complete
    photos.sort(key=lambda photo: abs(GOLDEN[f"{name}/{photo}/im_shape"] % 1 - 0.5).min())  # the most rounded first
    for photo in photos if request.config.getoption("--slow") else photos[:1]:
        golden = {key: GOLDEN[f"{name}/{photo}/{key}"] for key in ("im_shape", "scale_factor", "input_shape")}
        batch = collate([image_sample(load_image(str(PHOTOS / f"{photo}.jpg")), preprocess, 0)], preprocess)
        assert list(batch["images"].shape) == golden["input_shape"].tolist()
        np.testing.assert_array_equal(batch["image_sizes"][0], golden["im_shape"])
        np.testing.assert_array_equal(batch["scales"][0], golden["scale_factor"])
        rows, _ = network(batch["images"], batch["image_sizes"], batch["scales"])
        expected = GOLDEN[f"{name}/{photo}/detections"]
        assert len(rows) == len(expected) == 100
        assert_found(expected, rows, [0.0, 1e-4, *[1e-2] * 4])
