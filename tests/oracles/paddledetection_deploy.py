"""PaddleDetection's deploy/python/infer.py on our exports, beside our own detections of the same pictures.

    python -m tests.oracles.paddledetection_deploy PYTHON FOLDER [--images DIR] [EXPORT ...]

PYTHON has what infer.py imports; FOLDER is PaddleDetection's deploy/python (see `deploy.sh`, which brings both).
EXPORT: folders that tools/export_model.py wrote; without one, models of random weights are exported and taken. It runs
as it is, on the command line, each picture alone and in pairs, without oneDNN and with it, and what it prints is
compared: to a hundredth of a pixel and a ten-thousandth of a score.

Paddle 3 refuses `enable_memory_optim`, which infer.py calls, of any model in its own new format (Paddle's issue 75496):
that one call of Paddle's does nothing here. Nothing of infer.py or of the exports is changed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppdet_lite import Detector
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.drawing import write_image
from ppdet_lite.data.loading.transforms import collate, image_sample
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment.export import export
from tests.random_detector import random_detector

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PLAIN = "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml"
SMALLER = ["data.preprocess.short_side=256", "data.preprocess.long_side=426"]
CAFFE = [
    *("data.preprocess.channels=bgr", "data.preprocess.pixel_range=255"),
    *("data.preprocess.mean=[103.53, 116.28, 123.675]", "data.preprocess.std=[1.0, 1.0, 1.0]"),
]
RECIPES = {
    "plain": (PLAIN, []),
    "dcn": ("dcn/faster_rcnn_dcn_r50_fpn_1x_coco.yml", []),
    "mdpool": ("dpool/faster_rcnn_r50_fpn_mdpool_1x_coco.yml", []),
    "caffe": (PLAIN, CAFFE),
}
BOX = re.compile(r"class_id:(\d+), confidence:([\d.]+), left_top:\[(.+?),(.+?)\],right_bottom:\[(.+?),(.+?)\]")
SAVED = "save result to: "
WITHOUT_MEMORY_OPTIM = """
import runpy, sys
from paddle.inference import Config
Config.enable_memory_optim = lambda *_: None
sys.argv[0] = "infer.py"
runpy.run_path("infer.py", run_name="__main__")
"""
BOX_GAP, SCORE_GAP = 0.01, 1e-4  # beside what printing rounds, 0.005 and 0.00005
Rows = np.ndarray  # [D, 6]: class, score, x1, y1, x2, y2


class Run(NamedTuple):
    """What infer.py found, in the order in which it took the pictures."""

    names: list[str]
    rows: list[Rows]


def theirs(python: Path, folder: Path, model: Path, images: Path, batch_size: int, onednn: bool) -> Run:
    """Run infer.py and read what it prints."""
    with tempfile.TemporaryDirectory() as output:
        command = [
            python,
            "-c",
            WITHOUT_MEMORY_OPTIM,
            "--model_dir",
            model,
            "--image_dir",
            images,
            "--output_dir",
            output,
        ]
        command += ["--threshold", "0.05", "--batch_size", str(batch_size), "--enable_mkldnn", str(onednn)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"infer.py ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    run = Run([], [])
    found: list[list[float]] = []
    for line in done.stdout.splitlines():
        if (match := BOX.match(line)) is not None:
            found.append([float(part) for part in match.groups()])
        elif line.startswith(SAVED):
            run.names.append(Path(line.removeprefix(SAVED)).name)
            run.rows.append(np.array(found).reshape(-1, 6))
            found = []
    return run


def ours(detector: Detector, images: Path, names: list[str], batch_size: int) -> list[Rows]:
    """Our detections in the same batches, which infer.py pads to their largest picture.

    infer.py passes the rounded sizes of the resized pictures, so boxes are clipped to what is recovered from these.
    """
    rows = []
    for start in range(0, len(names), batch_size):
        pictures = (load_image(str(images / name)) for name in names[start : start + batch_size])
        samples = [image_sample(picture, detector.preprocess, i) for i, picture in enumerate(pictures)]
        for sample in samples:
            sample["original_size"] = np.floor(sample["image_size"] / sample["scale"] + 0.5)
        for found in detector.detect([collate(samples, detector.preprocess)]):
            rows.append(np.column_stack([found.classes, found.scores, found.boxes]))
    return rows


def gaps(one: Rows, other: Rows) -> tuple[float, float]:
    """The largest differences of boxes and scores, each row beside the nearest of its class in the other."""
    if not len(one) and not len(other):
        return 0.0, 0.0
    if len(one) != len(other):
        sys.exit(f"{len(one)} detections beside {len(other)}")
    away = np.abs(one[:, None] - other)
    distance = away[..., 2:].max(axis=2) + 100 * away[..., 1] + 1e6 * (away[..., 0] > 0)
    places = np.arange(len(one))
    pairs = [(places, distance.argmin(axis=1)), (distance.argmin(axis=0), places)]
    return max(away[pair][:, 2:].max() for pair in pairs), max(away[pair][:, 1].max() for pair in pairs)


def export_recipes(folder: Path, images: Path) -> list[Path]:
    """Export a model of random weights for each recipe."""
    for name, (config, overrides) in RECIPES.items():
        trained = random_detector(load_config(CONFIGS / config, [*SMALLER, *overrides]))
        export(trained, folder / name, sorted(images.iterdir())[:2])
    return [folder / name for name in RECIPES]


def draw(folder: Path) -> Path:
    """Pictures of different sizes, an even number."""
    for i, size in enumerate((300, 420, 500, 640)):
        write_image(folder / f"{i}.png", scene(np.random.default_rng(i), size)[0])
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("exports", nargs="*", type=Path)
    parser.add_argument("--images", type=Path)
    args = parser.parse_intermixed_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        images = (args.images or draw(Path(temporary) / "images")).resolve()
        for model in args.exports or export_recipes(Path(temporary), images):
            detector = Detector.load(model)
            for batch_size, onednn in ((1, False), (2, False), (2, True)):
                run = theirs(args.python.absolute(), args.folder, model.resolve(), images, batch_size, onednn)
                pairs = zip(ours(detector, images, run.names, batch_size), run.rows, strict=True)
                box, score = np.max([gaps(*pair) for pair in pairs], axis=0)
                count = sum(map(len, run.rows))
                print(
                    f"{model.name:<12} {len(run.names)} pictures, batch {batch_size}, oneDNN {onednn!s:<5} "
                    f"{count} detections, boxes within {box:.4f} px, scores within {score:.5f}",
                    flush=True,
                )
                worst = max(worst, (box - 0.005) / BOX_GAP, (score - 0.00005) / SCORE_GAP)
    sys.exit("they differ" if worst > 1 else 0)


if __name__ == "__main__":
    main()
