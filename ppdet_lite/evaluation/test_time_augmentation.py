"""What is found in several views of an image, at several sizes and mirrored, made one."""

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


def make_views(preprocess: Preprocess, how: Evaluation) -> list[View]:
    """The views that an evaluation takes; the long side keeps its proportion to the short one."""
    sizes = [preprocess]
    if how.short_sides is not None:
        ratio = preprocess.long_side / preprocess.short_side
        sizes = [replace(preprocess, short_side=side, long_side=round(side * ratio)) for side in how.short_sides]
    return [View(size, flipped) for size in sizes for flipped in ((False, True) if how.flip else (False,))]


def merged(found: Iterable[ImageDetections], view_count: int, postprocess: Postprocess) -> Iterator[ImageDetections]:
    """Merge what was found in the views of each image, as soon as it was seen in all of them."""
    parts: dict[int, list[ImageDetections]] = defaultdict(list)
    for image in found:
        parts[image.image_id].append(image)
        if len(parts[image.image_id]) == view_count:
            yield merge(parts.pop(image.image_id), postprocess)


def merge(parts: Sequence[ImageDetections], postprocess: Postprocess) -> ImageDetections:
    """Merge what was found in views of one image: NMS per class over all of it, then the best, best first."""
    boxes, scores, classes = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    tensors = (paddle.to_tensor(values) for values in (boxes, scores, classes))
    kept = grouped_nms(*tensors, postprocess.nms_iou).numpy()[: postprocess.max_detections]
    return ImageDetections(parts[0].image_id, boxes[kept], scores[kept], classes[kept])
