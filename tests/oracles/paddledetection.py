"""Golden values of PaddleDetection's own Faster and Cascade R-CNNs, with the weights of seeded.py.

In an environment of its own (see README.md here):
    python paddledetection.py CONFIGS [NAME ...]
CONFIGS is the folder `configs` of PaddleDetection's repository, release/2.6; NAME such as dcn_r50_fpn (without:
all). Writes goldens/paddledetection/<architecture>.npz: the names and shapes of its weights, and for three images the
features, the proposals, the RoIs of a cascade's later stages, and the detections.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")

import numpy as np
import paddle
import seeded
from ppdet.core.workspace import create, load_config

HERE = Path(__file__).resolve().parent
NAMES = {  # golden file -> a config of that architecture; the others differ in training alone
    "r34_fpn": "faster_rcnn/faster_rcnn_r34_fpn_1x",
    "r34_vd_fpn": "faster_rcnn/faster_rcnn_r34_vd_fpn_1x",
    "r50": "faster_rcnn/faster_rcnn_r50_1x",
    "r50_vd": "faster_rcnn/faster_rcnn_r50_vd_1x",
    "r101": "faster_rcnn/faster_rcnn_r101_1x",
    "r50_fpn": "faster_rcnn/faster_rcnn_r50_fpn_1x",
    "r50_vd_fpn": "faster_rcnn/faster_rcnn_r50_vd_fpn_1x",
    "r101_fpn": "faster_rcnn/faster_rcnn_r101_fpn_1x",
    "r101_vd_fpn": "faster_rcnn/faster_rcnn_r101_vd_fpn_1x",
    "x101_vd_64x4d_fpn": "faster_rcnn/faster_rcnn_x101_vd_64x4d_fpn_1x",
    "dcn_r50_fpn": "dcn/faster_rcnn_dcn_r50_fpn_1x",
    "dcn_r50_vd_fpn": "dcn/faster_rcnn_dcn_r50_vd_fpn_1x",
    "dcn_r101_vd_fpn": "dcn/faster_rcnn_dcn_r101_vd_fpn_1x",
    "dcn_x101_vd_64x4d_fpn": "dcn/faster_rcnn_dcn_x101_vd_64x4d_fpn_1x",
    "r50_fpn_gn": "gn/faster_rcnn_r50_fpn_gn_2x",
    "cascade_r50_fpn": "cascade_rcnn/cascade_rcnn_r50_fpn_1x",
    "cascade_r50_vd_fpn": "cascade_rcnn/cascade_rcnn_r50_vd_fpn_ssld_1x",
    "cascade_dcn_r50_fpn": "dcn/cascade_rcnn_dcn_r50_fpn_1x",
    "cascade_dcn_x101_vd_64x4d_fpn": "dcn/cascade_rcnn_dcn_x101_vd_64x4d_fpn_1x",
    "cascade_r50_fpn_gn": "gn/cascade_rcnn_r50_fpn_gn_2x",
}
PROPOSALS, FEW = 300, 60  # kept of an image, less than the configs say, to be quick; FEW where each costs a stage 5
SHOWN_PROPOSALS = 50

_concat = paddle.concat


def concat(parts: list[paddle.Tensor], axis: int = 0, name: str | None = None) -> paddle.Tensor:
    """PaddleDetection 2.6 is of a Paddle whose scalars had one element; 3.3's have no axis to be joined along."""
    return _concat([part.reshape([1]) if part.ndim == 0 else part for part in parts], axis, name)


paddle.concat = concat


def build(configs: Path, name: str) -> paddle.nn.Layer:
    """PaddleDetection's own model of a config, in evaluation mode, with seeded weights."""
    config = load_config(str(configs / f"{name}_coco.yml"))
    config["num_classes"] = 80
    model = create(config.architecture)
    model.eval()
    model.rpn_head.test_proposal.post_nms_top_n = FEW if model.neck is None else PROPOSALS
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing, unexpected = model.set_state_dict(seeded.fill(shapes))
    assert not missing and not unexpected, (missing, unexpected)
    return model


def signature(label: str, value: paddle.Tensor) -> dict[str, np.ndarray]:
    """A big array by its shape, mean, deviation and some of its values."""
    array = value.numpy()
    sampled = array.ravel()[seeded.places(label, array.shape)]
    return {
        f"{label}.shape": np.array(array.shape, np.int32),
        f"{label}.values": np.concatenate([[array.mean(), array.std()], sampled]).astype(np.float32),
    }


@paddle.no_grad()
def answer(model: paddle.nn.Layer, number: int, scale: float) -> dict[str, np.ndarray]:
    """Features, proposals and detections of one image; `scale` is what it was resized by."""
    image = seeded.image(number)
    inputs = {
        "image": paddle.to_tensor(image),
        "im_shape": paddle.to_tensor([image.shape[2:]], dtype="float32"),
        "scale_factor": paddle.to_tensor([[scale, scale]], dtype="float32"),
        "im_id": paddle.to_tensor([[number]]),
    }
    features = model.backbone(inputs)
    out = {}
    for i, feature in enumerate(features):
        out |= signature(f"{number}.backbone{i}", feature)
    if model.neck is not None:
        features = model.neck(features)
        for i, feature in enumerate(features):
            out |= signature(f"{number}.neck{i}", feature)
    rois, _, _ = model.rpn_head(features, inputs)
    out[f"{number}.proposals"] = rois[0].numpy()[:SHOWN_PROPOSALS]
    out[f"{number}.proposal_count"] = np.array(rois[0].shape[0], np.int32)
    refined = recorded_rois(model.bbox_head)
    found = model(inputs)
    out[f"{number}.detections"] = found["bbox"].numpy()
    return out | {f"{number}.rois{stage}": rois[:SHOWN_PROPOSALS] for stage, rois in enumerate(refined, 2)}


def recorded_rois(head: paddle.nn.Layer) -> list[np.ndarray]:
    """A list that receives the RoIs of a cascade's stages after the first; it stays empty for a Faster R-CNN."""
    refined: list[np.ndarray] = []
    if hasattr(type(head), "_get_rois_from_boxes"):

        def refine(*arguments: object) -> object:
            rois, counts = type(head)._get_rois_from_boxes(head, *arguments)
            refined.append(rois[0].numpy())
            return rois, counts

        head._get_rois_from_boxes = refine
    return refined


def write(configs: Path, golden: str) -> None:
    """Write the golden file of one architecture."""
    began = time.time()
    model = build(configs, NAMES[golden])
    out = {}
    for number in range(len(seeded.SIZES)):
        out |= answer(model, number, 0.5 + 0.25 * number)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    out["weights"] = np.array(json.dumps(shapes))
    out["post_nms"] = np.array(model.rpn_head.test_proposal.post_nms_top_n, np.int32)
    file = HERE / "goldens" / "paddledetection" / f"{golden}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **out)
    found = [out[f"{number}.detections"] for number in range(3)]
    print(
        f"{golden}: {file.stat().st_size / 1024:.0f} KB, {time.time() - began:.0f} s, detections"
        f" {[len(f) for f in found]}, of {[len(set(f[:, 0])) for f in found]} classes, scores"
        f" {[f'{f[:, 1].min():.2f}..{f[:, 1].max():.2f}' for f in found]}",
        flush=True,
    )


def main() -> None:
    """Each architecture in a process of its own: PaddleDetection keeps its configuration in global variables."""
    configs, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    if len(wanted) == 1:
        os.chdir(tempfile.mkdtemp())  # PaddleDetection writes where it runs
        return write(configs, wanted[0])
    for golden in wanted or NAMES:
        subprocess.run([sys.executable, __file__, str(configs), golden], check=True)


if __name__ == "__main__":
    main()
