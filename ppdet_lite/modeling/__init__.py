"""The layers and components of the detector; importing the package registers the components.

May import ops, structures, config and core, and never data.
"""

from ppdet_lite.modeling import box_head, cascade, faster_rcnn, fpn, neck, resnet, roi_pool

__all__ = ["box_head", "cascade", "faster_rcnn", "fpn", "neck", "resnet", "roi_pool"]
