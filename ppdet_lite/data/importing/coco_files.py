"""COCO annotation files that training can use in place: the files of the splits, their image folders, and division."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.lenient_values import parse_integer
from ppdet_lite.data.annotations.other_formats import is_coco
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.coco_writer import ANNOTATIONS
from ppdet_lite.data.importing.records import ImportedData, ImportedImage
from ppdet_lite.data.importing.splits import UNDIVIDED, split, split_of_name
from ppdet_lite.storage.files import plain_json, write_json

PREFIX = "instances_"  # of COCO's own annotation files, beside captions and keypoints
SAMPLED = 20  # images whose files are looked for


def find_splits(source: Path) -> dict[str, Path]:
    """Return the training and the validation file of a dataset, or only one file as UNDIVIDED.

    source: a folder, or one of the files. Files are assigned by their names or those of their folders, such as
    instances_train2017.json or valid/_annotations.coco.json; without a validation file, that of a test set is used. A
    training file is completed by the validation file beside it. Raises UserError if it is not clear which files to use.
    """
    if source.is_file():
        beside = [source.with_name(source.name.replace("train", word)) for word in ("val", "valid")]
        partner = next((path for path in beside if "train" in source.name and path.is_file()), None)
        return {UNDIVIDED: source} if partner is None else {"train": source, "val": partner}
    files = [path for path in sorted(source.rglob("*.json")) if path.is_file() and is_coco(path)]
    files = [path for path in files if path.name.startswith(PREFIX)] or files
    if len(files) == 1:
        return {UNDIVIDED: files[0]}
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_of_name(path.stem) or split_of_name(path.parent.name), []).append(path)
    train, val = by_split.get("train", []), by_split.get("val") or by_split.get("test", [])
    if len(train) == len(val) == 1:
        if "val" not in by_split:
            get_logger().warning("%s has no validation file: %s is used for validation", source, val[0])
        return {"train": train[0], "val": val[0]}
    names = ", ".join(str(path.relative_to(source)) for path in files[:6])
    raise UserError(
        f"{source}: which of its COCO files are for training and validation is not clear ({names}): give one file, "
        "which is divided, or name two in a config: data.train.annotations and data.val.annotations"
    )


def find_images(annotations: Path) -> Path:
    """Return the folder that contains the images of an annotation file. Raises UserError if none near it does."""
    names = [name.replace("\\", "/") for name in read_coco(str(annotations)).file_names[:SAMPLED]]
    parent, root = annotations.parent, annotations.parent.parent
    own = annotations.stem.removeprefix(PREFIX)
    folders = [parent / own, parent / "images", parent, root / own, root / "images" / own, root / "images", root]
    counts = [sum(os.path.isfile(folder / name) for name in names) for folder in folders]
    if not max(counts, default=0):
        tried = ", ".join(map(str, folders))
        raise UserError(f"{annotations}: its images, such as {names[0]}, are in none of {tried}; move them to one")
    return folders[counts.index(max(counts))]


def divide(annotations: Path, images: Path, folder: Path, fractions: Sequence[float]) -> dict[str, Path]:
    """Divide an annotation file randomly; write FOLDER/annotations/instances_SPLIT.json and return the files.

    Everything in the file is kept as it is, and the images stay where they are. The file must be readable as COCO.
    """
    raw = annotations.read_bytes()
    content = json.loads(raw.decode(json.detect_encoding(raw)))
    names = [str(record["file_name"]).strip().replace("\\", "/") for record in content["images"]]
    listed = [ImportedImage(images / name, name, [], str(annotations)) for name in dict.fromkeys(names)]
    splits, notes = split(ImportedData(listed), fractions, (), seed=0, bad_items=BadItems(False))
    for note in notes:
        get_logger().warning("%s: %s", annotations, note)
    files = {}
    for name, chosen in splits.items():
        kept = {image.name for image in chosen}
        records = [record for record, file in zip(content["images"], names, strict=True) if file in kept]
        ids = {parse_integer(record["id"])[0] for record in records}
        objects = [record for record in content["annotations"] if parse_integer(record["image_id"])[0] in ids]
        files[name] = folder / ANNOTATIONS / f"{PREFIX}{name}.json"
        write_json(files[name], plain_json(content | {"images": records, "annotations": objects}))
    return files
