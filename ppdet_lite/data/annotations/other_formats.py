"""Detects annotations in formats other than COCO from the beginning of a file or the files of a folder."""

import itertools
import json
import os
import re
import shlex
from pathlib import Path

from ppdet_lite.data.images.files import SUFFIXES

HEAD = 1 << 16  # bytes of a file that are inspected
MAX_FILES = 20  # files of a folder that are inspected
_YOLO = re.compile(r"\s*\d+(\s+-?\d*\.?\d+([eE]-?\d+)?){4,}\s*")
COCO = "coco"
_KITTI = re.compile(r"\s*[A-Za-z]\S*(\s+-?\d+(\.\d*)?([eE]-?\d+)?){14,15}\s*")
NAMES = {
    "voc": "Pascal VOC XML",
    "yolo": "YOLO text",
    "labelme": "labelme JSON",
    "cvat": "CVAT's XML for images",
    "kitti": "KITTI text",
    "openimages": "Open Images CSV",
    "csv": "CSV",
}
CVAT_VIDEO, OTHER_XML = "CVAT's XML for video", "XML without VOC's <bndbox>"  # formats that cannot be imported
CONFIGS = ("data.yaml", "data.yml")
CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names")  # names of class lists in a YOLO dataset


def other_format(path: Path, images: Path | None = None) -> str | None:
    """Return what a path contains instead of COCO JSON and how to import it; None if it may be COCO or is missing.

    images: the folder in which the images should be, named in the command if the import would not find them itself.
    """
    if path.is_dir():
        files = [file.name for file in sorted(path.glob("*.json")) if _file_format(file) is None]
        form, sample = (None, path) if files else _folder_format(path)
        if form is None:
            return f"a folder; name the JSON file in it{f', such as {files[0]}' if files else ''}"
        is_one_table = form == "csv" and sample.parent == path and len(list(path.glob("*.csv"))) == 1
        source = path if form != "csv" or is_one_table else sample
        return _import_hint(form, source, sample, images, "a folder of ")
    if not path.is_file():
        return None
    form = _file_format(path)
    return None if form is None else _import_hint(form, import_source(form, path), path, images, "")


def formats_of(path: Path) -> dict[str, Path]:
    """Return the formats in which a file, or the files of a folder, contain annotations, with the first file of each.

    The formats are those of `NAMES`, COCO JSON, and the ones that cannot be imported. A folder with a data.yaml is
    YOLO, whatever else it contains.
    """
    if path.is_file():
        form = _file_format(path) or (COCO if path.suffix.lower() == ".json" else None)
        return {} if form is None else {form: path}
    configs = [path / name for name in CONFIGS if (path / name).is_file()]
    if configs:
        return {"yolo": configs[0]}
    found: dict[str, Path] = {}
    files = sorted(path.rglob("*"))
    for suffix in (".xml", ".txt", ".json", ".csv"):
        for file in [file for file in files if file.suffix.lower() == suffix][:MAX_FILES]:
            form = _file_format(file) or (COCO if suffix == ".json" and is_coco(file) else None)
            if form is not None:
                found.setdefault(form, file)
    return found


def is_coco(path: Path) -> bool:
    """Return whether a JSON file begins as a COCO annotation file, without reading all of it."""
    text = _head(path)
    return text.startswith("{") and re.search(r'"(images|annotations|categories)"\s*:\s*\[', text) is not None


def import_source(form: str, file: Path) -> Path:
    """Return what is imported for a file of a format: the file itself, or its folder."""
    is_source = form in ("csv", "openimages", "cvat") or (
        file.suffix.lower() in (".yaml", ".yml") and file.name not in CONFIGS
    )
    return file if is_source else file.parent


def _import_hint(form: str, source: Path, sample: Path, images: Path | None, prefix: str) -> str:
    """Return the name of a format and the command that imports it; sample: a file of the source."""
    if form not in NAMES:
        return f"{prefix}{form}, not COCO JSON; export it as COCO or Pascal VOC"
    for top in {"voc": ["Annotations"], "kitti": ["label_2"]}.get(form, []):
        source = _up_to(source, top) if top in source.parts else source
    command = f"ppdet-lite import-data --from {form} {shlex.quote(str(source))}"
    if not _finds_image(form, source, sample):
        command += f" --images {shlex.quote(str(images)) if images is not None and images.is_dir() else 'DIR'}"
    root, first = yolo_root(source), ""
    if form == "yolo" and not (root.is_file() or any((root / name).is_file() for name in (*CONFIGS, *CLASS_LISTS))):
        first = f"write the class names into {root / CLASS_LISTS[0]}, one on each line, and "
    return f"{prefix}{NAMES[form]}, not COCO JSON; {first}import it: {command} --output DIR"


def _up_to(path: Path, part: str) -> Path:
    """Return the path up to the last directory with a name."""
    return Path(*path.parts[: len(path.parts) - path.parts[::-1].index(part)])


def yolo_root(source: Path) -> Path:
    """Return the folder of a YOLO dataset that contains the labels folder, which the source is or is in.

    It is the source itself if that has the class names, unless it is a labels folder beside an images folder.
    """
    has_names = any((source / name).is_file() for name in (*CONFIGS, *CLASS_LISTS))
    if "labels" not in source.parts or (
        has_names and not (source.name == "labels" and (source.parent / "images").is_dir())
    ):
        return source
    return _up_to(source, "labels").parent


def _finds_image(form: str, source: Path, sample: Path) -> bool:
    """Return whether the import finds the image of a sample file without the option --images."""
    if form in ("cvat", "openimages"):
        return _finds_listed_image(form, source, sample)
    if form == "csv":
        with open(sample, encoding="utf-8", errors="replace") as file:
            lines = list(itertools.islice(file, 3))
        cells = [cell.strip().strip('"').replace("\\", "/") for line in lines for cell in re.split("[,;\t]", line)]
        return any(_is_image(sample.parent / cell) for cell in cells)
    if form == "labelme":
        try:
            content = json.loads(sample.read_bytes())
        except (ValueError, RecursionError):  # the import reports it
            return True
        name = str(content.get("imagePath")).replace("\\", "/")
        beside = (sample.parent / name, sample.parent / Path(name).name)
        return content.get("imageData") is not None or any(_is_image(path) for path in beside)
    if sample.suffix.lower() in (".yaml", ".yml"):
        return True
    if form == "voc":
        root = source.parent if source.name == "Annotations" else source
        folders = [root / "JPEGImages", root / "images"]
    elif form == "kitti":
        root = sample.parent
        folders = [root.parent / "image_2", root.parent / "images"] if root.name == "label_2" else []
    else:
        root = yolo_root(source)
        folders = [root / "images"]
    folder = next((path for path in folders if path.is_dir()), root)
    return any(_is_image(path) for path in folder.rglob("*") if path.stem == sample.stem)


def _finds_listed_image(form: str, source: Path, sample: Path) -> bool:
    """Return whether an image that is listed in a file of CVAT or Open Images is where the import looks for it."""
    head = _head(sample)
    if form == "cvat":
        stems, root = re.findall(r"<image\b[^>]*\bname=[\"']([^\"']+)", head), sample.parent
    else:
        root = source if source.is_dir() else source.parent
        root = root.parent if not source.is_dir() and root.name in ("annotations", "labels") else root
        column = [cell.strip() for cell in head.split("\n", 1)[0].split(",")].index("ImageID")
        stems = [line.split(",")[column] for line in head.splitlines()[1:] if line.count(",") >= column]
    wanted = {Path(stem.replace("\\", "/")).stem for stem in stems}
    folder = next((path for path in (root / "images", root / "data") if path.is_dir()), root)
    return any(_is_image(path) and path.stem in wanted for path in folder.rglob("*"))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and os.path.isfile(path)


def _folder_format(folder: Path) -> tuple[str | None, Path]:
    """Return the format of the first file below a folder whose format is recognized, and the file."""
    configs = [folder / name for name in CONFIGS if (folder / name).is_file()]
    files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in (".xml", ".txt", ".json", ".csv"))
    formats = ((_file_format(file), file) for _, file in zip(range(MAX_FILES), files))
    found = ((form, file) for form, file in formats if form is not None)
    return ("yolo", configs[0]) if configs else next(found, (None, folder))


def _head(path: Path) -> str:
    with open(path, "rb") as file:
        raw = file.read(HEAD)
    return raw.decode(json.detect_encoding(raw), errors="replace").lstrip()


def _file_format(path: Path) -> str | None:
    try:
        head = _head(path)
    except OSError:
        return None
    if head.startswith("<"):
        return _xml_format(head)
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo" if re.search(r"^(names|nc)\s*:", head, re.MULTILINE) else None
    if head.startswith("{"):
        return "labelme" if _is_labelme(path, head) else None
    lines = [line for line in head.splitlines()[:-1] or head.splitlines() if line.strip()]
    if lines and all(_YOLO.fullmatch(line) for line in lines):
        return "yolo"
    if lines and all(_KITTI.fullmatch(line) for line in lines):
        return "kitti"
    if path.suffix.lower() != ".csv" or not lines or lines[0].count(",") < 4:
        return None
    return "openimages" if {"ImageID", "LabelName", "XMin"} <= set(lines[0].split(",")) else "csv"


def _xml_format(head: str) -> str | None:
    """Return the format of an XML file by its root element, and by the first object if that is complete."""
    root = re.search(r"<([A-Za-z_][\w.-]*)", head)
    if root is None or root[1] not in ("annotation", "annotations"):
        return None
    if root[1] == "annotations":
        first = re.search(r"<(image|track)[\s>]", head)
        if first is not None and first[1] == "track":
            return CVAT_VIDEO
        return "cvat" if first is not None or re.search(r"<meta[\s>]", head) else OTHER_XML
    first = re.search(r"<object[\s>].*?</object>", head, re.DOTALL)
    return "voc" if first is None or "<bndbox" in first[0] else OTHER_XML


def _is_labelme(path: Path, head: str) -> bool:
    """Return whether a JSON file, which may be large with its image inside, has labelme's keys; avoid parsing it."""
    if '"shapes"' not in head:
        return False
    if '"imagePath"' in head or '"flags"' in head:
        return True
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and "imagePath" in content
