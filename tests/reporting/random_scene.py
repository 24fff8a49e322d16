"""Random objects and detections that cover all cases. Only NumPy is required, so oracles can generate them too."""

import numpy as np

IDS = (30, 4, 17, 8, 25, 11, 2, 40)  # of images, not ascending
CATEGORIES = {3: "cat", 9: "dog", 5: "eel", 12: "fox"}  # no object is a fox


def random_scene(seed: int, crowds: bool = True) -> tuple[list[dict], list[dict]]:
    """Return objects of three sizes and classes, with crowds and an image without objects, and detections: near the
    objects, of wrong classes, duplicates, of background, more than 100 of a class in one image, with equal scores."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in IDS[:-1]:
        for _ in range(rng.integers(1, 9)):
            side = rng.choice([12, 50, 120]) * rng.uniform(0.8, 1.2, 2)
            bbox = [*rng.uniform(0, [300, 200] - side), *side]
            objects.append({"image_id": image, "category_id": int(rng.choice([3, 9, 5])), "bbox": np.round(bbox, 2)})
            if crowds and rng.random() < 0.15:
                objects[-1].update(iscrowd=1)
            for _ in range(rng.integers(0, 5)):
                near = np.array(bbox) + rng.normal(0, rng.choice([0.1, 0.3]), 4) * np.tile(side, 2)
                category = objects[-1]["category_id"] if rng.random() < 0.8 else int(rng.choice([3, 9, 5, 12]))
                detections.append({"image_id": image, "category_id": category, "bbox": near.clip(1)})
    for count, image in ((6, IDS[-1]), (120, IDS[0])):
        for _ in range(count):
            detections.append({"image_id": image, "category_id": 9, "bbox": rng.uniform(1, 60, 4)})
    for item in detections:
        item["score"] = float(np.round(rng.random(), 2) if crowds else rng.random())
    for item in (*objects, *detections):
        item["bbox"] = item["bbox"].tolist()
    order = rng.permutation(len(detections))
    return objects, [detections[i] for i in order]
