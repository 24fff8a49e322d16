"""Detects annotations in formats other than COCO from the beginning of a file or the files of a folder."""

import json
import re
from pathlib import Path

HEAD = 4096  # bytes of a file that are inspected
MAX_FILES = 20  # files of a folder that are inspected
_YOLO = re.compile(r"\s*\d+(\s+-?\d*\.?\d+([eE]-?\d+)?){4,}\s*")
NAMES = {"voc": "Pascal VOC XML", "yolo": "YOLO text", "labelme": "labelme JSON", "csv": "CSV"}


def other_format(path: Path) -> str | None:
    """Return what a path contains instead of COCO JSON and how to import it; None if it may be COCO or is missing."""
    if path.is_dir():
        files = [file.name for file in sorted(path.glob("*.json")) if _file_format(file) is None]
        if files or (form := _folder_format(path)) is None:
            return f"a folder; name the JSON file in it{f', such as {files[0]}' if files else ''}"
        return _import_hint(form, path, "a folder of ")
    if not path.is_file():
        return None
    form = _file_format(path)
    return None if form is None else _import_hint(form, path if form == "csv" else path.parent, "")


def _import_hint(form: str, source: Path, prefix: str) -> str:
    command = f"python tools/import_data.py --from {form} {source} --output DIR"
    return f"{prefix}{NAMES[form]}, not COCO JSON; import it: {command}"


def _folder_format(folder: Path) -> str | None:
    """Return the format of the first file below a folder whose format is recognized."""
    if (folder / "data.yaml").is_file() or (folder / "data.yml").is_file():
        return "yolo"
    files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in (".xml", ".txt", ".json", ".csv"))
    formats = (_file_format(file) for _, file in zip(range(MAX_FILES), files))
    return next((form for form in formats if form is not None), None)


def _file_format(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD).decode("utf-8-sig", errors="replace").lstrip()
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
