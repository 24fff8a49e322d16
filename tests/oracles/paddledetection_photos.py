"""Golden detections of PaddleDetection's own models on photos, read by its own reader.

In the environment of paddledetection.py (see README.md here):
    python paddledetection_photos.py CONFIGS PHOTOS [NAME ...]
PHOTOS is the folder `val2017` of COCO images. Writes goldens/paddledetection_photos.npz: for each architecture and
photo, the size and the scale that the reader passes to the model, the shape of the network input, and the detections.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
from paddledetection import HERE, NAMES, build
from ppdet.core.workspace import global_config
from ppdet.data.reader import BatchCompose, Compose

ARCHITECTURES = ("r50_fpn", "r34_vd_fpn", "dcn_r50_vd_fpn", "r50_fpn_gn", "r50")
PHOTOS = ("000000524291", "000000501760", "000000573455")
"""426x640, 333x500 and 383x640 pixels (h, w): the resized width 1201.88 is rounded up, 1201.20 down. The third is
limited by its long side, and its height 797.72 is rounded up."""


@paddle.no_grad()
def detections(model: paddle.nn.Layer, file: Path) -> dict[str, np.ndarray]:
    """Return what the reader makes of a photo, and the model's detections in it."""
    reader = global_config["TestReader"]
    sample = Compose(reader["sample_transforms"])({"im_file": str(file), "im_id": np.array([0])})
    batch = BatchCompose(reader["batch_transforms"])([sample])
    inputs = {name: paddle.to_tensor(np.asarray(batch[name])) for name in ("image", "im_shape", "scale_factor")}
    rows = model({**inputs, "im_id": paddle.to_tensor([[0]])})["bbox"].numpy()
    return {
        "im_shape": inputs["im_shape"].numpy()[0],
        "scale_factor": inputs["scale_factor"].numpy()[0],
        "input_shape": np.array(inputs["image"].shape, np.int32),
        "detections": rows,
    }


def write(configs: Path, photos: Path, name: str, file: Path) -> None:
    """Write the values of one architecture, with keys such as r50_fpn/000000524291/detections."""
    model = build(configs, NAMES[name])
    out = {}
    for photo in PHOTOS:
        found = detections(model, photos / f"{photo}.jpg")
        out |= {f"{name}/{photo}/{key}": value for key, value in found.items()}
        print(name, photo, found["im_shape"], len(found["detections"]), found["detections"][:, 1].min(), flush=True)
    out[f"{name}/post_nms"] = np.array(model.rpn_head.test_proposal.post_nms_top_n, np.int32)
    np.savez(file, **out)


def main() -> None:
    """Each architecture in a process of its own: PaddleDetection keeps its configuration in global variables."""
    configs, photos, names = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3:] or ARCHITECTURES
    if len(names) == 2 and names[1].endswith(".npz"):
        os.chdir(tempfile.mkdtemp())  # PaddleDetection writes where it runs
        return write(configs, photos, names[0], Path(names[1]))
    values: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            part = Path(folder) / f"{name}.npz"
            subprocess.run([sys.executable, __file__, str(configs), str(photos), name, str(part)], check=True)
            values |= dict(np.load(part))
    np.savez_compressed(HERE / "goldens" / "paddledetection_photos.npz", **values)


if __name__ == "__main__":
    main()
