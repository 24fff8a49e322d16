"""A COCO dataset as a folder in YOLO's format, without splits: python -m tests.yolo_folder IMAGES ANNOTATIONS FOLDER"""

import json
import shutil
import sys
from pathlib import Path


def write_yolo_folder(images: Path, annotations: Path, folder: Path, count: int | None = None) -> None:
    """Write images/, labels/ and classes.txt with the first `count` images; crowd regions and empty boxes are left out.

    Boxes are clipped to their image, which YOLO requires.
    """
    content = json.loads(annotations.read_text(encoding="utf-8"))
    categories = sorted(content["categories"], key=lambda category: category["id"])
    index = {category["id"]: number for number, category in enumerate(categories)}
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(category["name"] for category in categories), encoding="utf-8")
    for image in content["images"][:count]:
        shutil.copyfile(images / image["file_name"], folder / "images" / image["file_name"])
        lines = []
        for annotation in content["annotations"]:
            if annotation["image_id"] != image["id"] or annotation.get("iscrowd"):
                continue
            x, y, w, h = annotation["bbox"]
            (x1, x2), (y1, y2) = (
                (min(max(low, 0), size) / size, min(max(low + side, 0), size) / size)
                for low, side, size in ((x, w, image["width"]), (y, h, image["height"]))
            )
            if x2 > x1 and y2 > y1:
                numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                lines.append(f"{index[annotation['category_id']]} {' '.join(map(repr, numbers))}")
        label = folder / "labels" / f"{Path(image['file_name']).stem}.txt"
        label.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    write_yolo_folder(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 200)
