"""Read an annotation file of the size of COCO's train2017, made up, and tell what that takes.

python -m tests.data.large_annotations [--fault]

Says seconds and the most memory of a process that reads nothing else. --fault: one annotation has its category as text,
so that the file is read object by object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

IMAGES, BOXES, CATEGORIES = 118287, 860001, 80
SIDE = (480, 640)  # height, width
CORNERS = 24  # of a polygon, the mean
READ = """
import sys, time
from ppdet_lite.core.runtime import peak_rss_mb
from ppdet_lite.data.annotations.coco_file import read_coco
before, began = peak_rss_mb(), time.perf_counter()
content = read_coco(sys.argv[1])
seconds = time.perf_counter() - began
print(f"{len(content.annotations.ids)} boxes in {seconds:.1f} s, "
      f"peak {peak_rss_mb() * 2**20 / 1e9:.2f} GB, {before * 2**20 / 1e9:.2f} GB of them before")
"""


def write(path: Path, fault: bool) -> None:
    """Write the file, annotation by annotation, as the memory to hold it may be missing."""
    rng = np.random.default_rng(0)
    height, width = SIDE
    images = [
        {"id": i, "file_name": f"{i:012}.jpg", "height": height, "width": width, "license": 1, "date_captured": ""}
        for i in range(1, IMAGES + 1)
    ]
    with path.open("w") as file:
        file.write(json.dumps({"info": {}, "images": images})[:-1] + ', "annotations": [')
        for number in range(1, BOXES + 1):
            x, y, w, h = (rng.random(4) * (width, height, width / 4, height / 4)).round(2).tolist()
            polygon = (rng.random(2 * rng.integers(CORNERS // 2, CORNERS * 3 // 2)) * height).round(2).tolist()
            record = {
                "segmentation": [polygon],
                "area": round(w * h, 4),
                "iscrowd": 0,
                "image_id": int(rng.integers(1, IMAGES + 1)),
                "bbox": [x, y, w, h],
                "category_id": int(rng.integers(1, CATEGORIES + 1)),
                "id": number,
            }
            if fault and number == BOXES:
                record["category_id"] = str(record["category_id"])
            file.write((", " if number > 1 else "") + json.dumps(record))
        categories = [{"id": k, "name": f"class {k}", "supercategory": "thing"} for k in range(1, CATEGORIES + 1)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", action="store_true")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        write(path, parser.parse_args().fault)
        print(f"{path.stat().st_size / 1e6:.0f} MB, {IMAGES} images: ", end="", flush=True)
        subprocess.run([sys.executable, "-c", READ, str(path)], check=True)


if __name__ == "__main__":
    main()
