"""What the teacher of R-CNN feature mimicking classifies by itself: patches of validation images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.assembly.setup import build_dataset, build_model
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.evaluation.results_file import Results
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.checkpoint import latest_checkpoint, load_checkpoint
from ppdet_lite.structures import Rois

PATCHES = 32  # classified together: as many as in a training step, since batch norms use their statistics


def load_with_teacher(config: Config, run: Path) -> tuple[FasterRCNN, CocoDataset]:
    """Return the model of a run with its teacher, and the run's validation data."""
    dataset = build_dataset(config, "val")
    model = build_model(config, dataset.class_names)
    missing, unexpected = model.set_state_dict(load_checkpoint(latest_checkpoint(run / "checkpoints")).groups["model"])
    assert not missing and not unexpected, (missing, unexpected)
    return model, dataset


@paddle.no_grad()
def teacher_probabilities(
    model: FasterRCNN, dataset: CocoDataset, config: Config, boxes: Mapping[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Return the teacher's class probabilities [B, K + 1] of boxes [B, 4] xyxy, in original pixels, by image id.

    The teacher runs as in training: batch norms use the statistics of the patches.
    """
    batches = EvalBatches(dataset, build(config["data"]["preprocess"]), Loader(batch_size=1, threads=1))
    owners, waiting, logits = [], [], []
    model.train()

    def classify() -> None:
        patches = paddle.concat(waiting)
        for start in range(0, len(patches), PATCHES):
            logits.append(model.mimic.classify(model._embed_patches(patches[start : start + PATCHES])))
        waiting.clear()

    for batch in batches.iterate_with_targets(keep_original=True):
        image_id = int(batch["image_ids"][0])
        if not len(boxes.get(image_id, ())):
            continue
        _, sizes, scales, _, originals = training_arguments(batch)
        scaled = boxes[image_id] * np.tile(batch["scales"][0, ::-1], 2)
        rois = Rois(paddle.to_tensor(scaled.astype(np.float32)), paddle.to_tensor([len(scaled)], dtype="int32"))
        waiting.append(model.mimic.crop(rois, originals, sizes, scales))
        owners.append((image_id, len(scaled)))
        if sum(map(len, waiting)) >= PATCHES:
            classify()
    if waiting:
        classify()
    if not owners:
        return {}
    probabilities = F.softmax(paddle.concat(logits)).numpy()
    parts = np.split(probabilities, np.cumsum([count for _, count in owners])[:-1])
    return {image_id: part for (image_id, _), part in zip(owners, parts, strict=True)}


def teacher_accuracy(model: FasterRCNN, dataset: CocoDataset, config: Config) -> float:
    """Return the share of objects whose ground-truth box the teacher gives its class."""
    objects = {int(dataset.image_ids[i]): dataset.annotations(i) for i in range(len(dataset))}
    boxes = {image_id: part.boxes[~part.is_crowd] for image_id, part in objects.items()}
    found = teacher_probabilities(model, dataset, config, boxes)
    correct = [
        found[image_id].argmax(axis=1) == objects[image_id].classes[~objects[image_id].is_crowd] for image_id in found
    ]
    return float(np.concatenate(correct).mean())


def combined_scores(model: FasterRCNN, dataset: CocoDataset, config: Config, results: Results) -> dict[str, Results]:
    """Return the detections of a dataset, rescored by the teacher: product, and mean, of the two scores."""
    rows = {image_id: np.flatnonzero(results.image_ids == image_id) for image_id in set(results.image_ids.tolist())}
    xyxy = np.concatenate([results.xywh[:, :2], results.xywh[:, :2] + results.xywh[:, 2:]], axis=1)
    found = teacher_probabilities(model, dataset, config, {image_id: xyxy[row] for image_id, row in rows.items()})
    teacher = np.empty(len(results.scores))
    position = {category: k for k, category in enumerate(dataset.category_ids.tolist())}
    classes = np.array([position[category] for category in results.category_ids.tolist()], int)
    for image_id, row in rows.items():
        teacher[row] = found[image_id][np.arange(len(row)), classes[row]]
    combined = {"product": results.scores * teacher, "mean": (results.scores + teacher) / 2}
    return {name: results._replace(scores=scores) for name, scores in combined.items()}
