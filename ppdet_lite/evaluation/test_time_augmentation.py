"""Test-time augmentation: detections in several views of an image (sizes, horizontal flip) are merged by NMS."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import paddle

from ppdet_lite.assembly.recipe import Evaluation
from ppdet_lite.data.loading.transforms import Preprocess, View
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.ops.nms import grouped_nms


def make_views(preprocess: Preprocess, options: Evaluation) -> list[View]:
    """Return the views of each image. The limit of the long side keeps its ratio to the short side."""
    sizes = [preprocess]
    if options.short_sides is not None:
        ratio = preprocess.long_side / preprocess.short_side
        sizes = [replace(preprocess, short_side=side, long_side=round(side * ratio)) for side in options.short_sides]
    return [View(size, flipped) for size in sizes for flipped in ((False, True) if options.flip else (False,))]


def merge_views(results: Iterable[ImageDetections], views: int, postprocess: Postprocess) -> Iterator[ImageDetections]:
    """Yield the merged detections of each image once all of its views have been processed. views: their number."""
    parts: dict[int, list[ImageDetections]] = defaultdict(list)
    for image in results:
        parts[image.image_id].append(image)
        if len(parts[image.image_id]) == views:
            yield merge_detections(parts.pop(image.image_id), postprocess)


def merge_detections(parts: Sequence[ImageDetections], postprocess: Postprocess) -> ImageDetections:
    """Merge the detections in the views of one image: NMS per class, then the `max_detections` of highest score."""
    names = ("boxes", "scores", "classes")
    boxes, scores, classes = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    tensors = (paddle.to_tensor(values) for values in (boxes, scores, classes))
    kept = grouped_nms(*tensors, postprocess.nms_iou).numpy()[: postprocess.max_detections]
    return ImageDetections(parts[0].image_id, boxes[kept], scores[kept], classes[kept])
