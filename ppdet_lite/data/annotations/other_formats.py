"""Annotations in other formats, told from COCO by a look at a file or a folder, and how to bring them in."""

import json
import re
from pathlib import Path

LOOK = 4096  # bytes of a file
LOOK_AT = 20  # files of a folder
_YOLO = re.compile(r"\s*\d+(\s+-?\d*\.?\d+([eE]-?\d+)?){4,}\s*")
NAMES = {"voc": "Pascal VOC XML", "yolo": "YOLO text", "labelme": "labelme JSON", "csv": "CSV"}


def other_format(path: Path) -> str | None:
    """What a path holds instead of COCO JSON, and how to import it; None if it may be COCO, or is not there."""
    if path.is_dir():
        files = [file.name for file in sorted(path.glob("*.json")) if _of_file(file) is None]
        if files or (found := _of_folder(path)) is None:
            return f"a folder; name the JSON file in it{f', such as {files[0]}' if files else ''}"
        return _import(found, path, "a folder of ")
    if not path.is_file():
        return None
    found = _of_file(path)
    return None if found is None else _import(found, path if found == "csv" else path.parent, "")


def _import(found: str, source: Path, kind: str) -> str:
    command = f"python tools/import_data.py --from {found} {source} --output DIR"
    return f"{kind}{NAMES[found]}, not COCO JSON; import it: {command}"


def _of_folder(folder: Path) -> str | None:
    """The format of the first file below a folder that has one."""
    if (folder / "data.yaml").is_file() or (folder / "data.yml").is_file():
        return "yolo"
    files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in (".xml", ".txt", ".json", ".csv"))
    kinds = (_of_file(file) for _, file in zip(range(LOOK_AT), files))
    return next((kind for kind in kinds if kind is not None), None)


def _of_file(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            head = file.read(LOOK).decode("utf-8-sig", errors="replace").lstrip()
    except OSError:
        return None
    if head.startswith("<"):
        return "voc" if "<annotation" in head else None
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo" if re.search(r"^(names|nc)\s*:", head, re.MULTILINE) else None
    if head.startswith("{"):
        return "labelme" if _is_labelme(path, head) else None
    lines = [line for line in head.splitlines()[:-1] or head.splitlines() if line.strip()]
    if lines and all(_YOLO.fullmatch(line) for line in lines):
        return "yolo"
    return "csv" if path.suffix.lower() == ".csv" and lines and lines[0].count(",") >= 4 else None


def _is_labelme(path: Path, head: str) -> bool:
    """Whether a JSON file has the keys of labelme's; its picture may stand within, so only small files are parsed."""
    if '"shapes"' not in head:
        return False
    if '"imagePath"' in head or '"flags"' in head:
        return True
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and "imagePath" in content
