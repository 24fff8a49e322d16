"""Precision, recall, F1 and confusion counted by plain loops over records, one image after the other."""


def iou(a, b, is_crowd=False):
    """Return the IoU of xywh boxes or, if b is a crowd, the fraction of a inside b."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] if is_crowd else a[2] * a[3] + b[2] * b[3] - shared)


def count(objects, detections, score):
    """Return {(object class or None, detection class or None): count}, without crowds and detections of them."""
    pairs = {}

    def add(truth, found):
        pairs[truth, found] = pairs.get((truth, found), 0) + 1

    for image in {item["image_id"] for item in (*objects, *detections)}:
        here = [dict(item) for item in objects if item["image_id"] == image]
        found = [item for item in detections if item["image_id"] == image and item["score"] >= score]
        found = sorted(found, key=lambda item: -item["score"])
        unexplained = []
        for item in found:
            own = [one for one in here if one["category_id"] == item["category_id"]]
            free = [one for one in own if not one.get("iscrowd") and not one.get("taken")]
            best = max(free, key=lambda one: iou(item["bbox"], one["bbox"]), default=None)
            if best is not None and iou(item["bbox"], best["bbox"]) >= 0.5:
                best["taken"] = True
                add(best["category_id"], item["category_id"])
            elif not any(one.get("iscrowd") and iou(item["bbox"], one["bbox"], True) >= 0.5 for one in own):
                unexplained.append(item)
        for item in unexplained:
            free = [one for one in here if not one.get("iscrowd") and not one.get("taken")]
            best = max(free, key=lambda one: iou(item["bbox"], one["bbox"]), default=None)
            if best is not None and iou(item["bbox"], best["bbox"]) >= 0.5:
                best["taken"] = True
                add(best["category_id"], item["category_id"])
            else:
                add(None, item["category_id"])
        for one in here:
            if not one.get("iscrowd") and not one.get("taken"):
                add(one["category_id"], None)
    return pairs


def rates(pairs, category):
    """Return (true positives, false positives, missed) of a class."""
    true = pairs.get((category, category), 0)
    found = sum(n for (_, k), n in pairs.items() if k == category)
    there = sum(n for (k, _), n in pairs.items() if k == category)
    return true, found - true, there - true


def f1(true, false, missed):
    """2 TP / (2 TP + FP + FN)."""
    return 2 * true / (2 * true + false + missed) if true else 0.0
