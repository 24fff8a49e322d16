"""From a dataset in any known format to a config for it: recognized, imported if necessary, and reused afterwards."""

import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppdet_lite.assembly.setup import load_config, run_folder
from ppdet_lite.assembly.starter_config import NAMES, Start, write_starter_config
from ppdet_lite.assembly.zoo import initial_weights
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.yaml_nodes import flow
from ppdet_lite.core import cli
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.other_formats import COCO, formats_of, import_source, other_format
from ppdet_lite.data.annotations.other_formats import NAMES as FORMAT_NAMES
from ppdet_lite.data.importing.coco_files import divide, find_images, find_splits
from ppdet_lite.data.importing.convert import import_data
from ppdet_lite.data.importing.splits import UNDIVIDED
from ppdet_lite.storage.files import write_json

DATASETS = Path("dataset")  # imported datasets and divided annotation files are below this folder
ANY_RECIPE = "quickstart/shapes_r18_fpn"  # its model is not built
OF_A_MODEL = ("model", "data.preprocess")  # settings that do not apply to another detector or to existing results
FRACTIONS = (0.8, 0.2)  # of the images, for train and val, in a source that is not divided
RECORD = "source.json"  # where an imported dataset is from


def prepare_own_data(source: Path, start: Start) -> Path:
    """Return the path of a config for a dataset, which is written if it does not exist.

    source: a folder or file in COCO's or another known format. COCO files that are divided into train and val are used
    where they are. Everything else is written into dataset/NAME: two COCO files if there is one, or an import with a
    copy of the images. It is reused as long as the source does not change.

    Raises UserError if the format is not clear, for an import that fails, and for a source that was changed.
    """
    form, file = _recognize(source)
    if form == COCO:
        splits = find_splits(source)
        is_import = any((source / name).is_file() for name in (*NAMES.values(), RECORD))
        folder = source if is_import else _folder(source)
        if UNDIVIDED not in splits:
            if not is_import and not _is_current(folder, source):
                _record(folder, source)
            return _config(folder, splits, start)
        if not _is_current(folder, source):
            annotations = splits[UNDIVIDED]
            images = find_images(annotations)
            CocoDataset(str(images), str(annotations))  # raises UserError if the file cannot be read
            splits = divide(annotations, images, folder, FRACTIONS)
            _record(folder, source, _digest(source), images)
        return _config(folder, find_splits(folder), start)
    folder = _folder(source)
    if not _is_current(folder, source):
        given = source if source.is_dir() else import_source(form, file)
        if "train" not in (imported := import_data(form, given, folder, default_fractions=FRACTIONS)):
            shutil.rmtree(folder)
            raise UserError(f"--data {source}: has the splits {', '.join(imported)}, but no train; name one so")
        _record(folder, source, _digest(source))
    return _config(folder, find_splits(folder), start)


def starter_lines(folder: Path, sets: Mapping[str, CocoDataset]) -> list[str]:
    """Write a config for an imported dataset, and return lines with the next commands, or why there is no config."""
    if missing := [name for name in ("train", "val") if name not in sets]:
        splits = " and no ".join(missing)
        return [f"no {NAMES['zoo']} was written, since there is no split {splits}: import again with --split 0.8/0.2"]
    if not sets["train"].statistics().boxes.any():
        return [f"no {NAMES['zoo']} was written, since train has no objects: divide the images differently"]
    path = write_starter_config(folder, sets["train"], sets["val"], "zoo")
    config = shlex.quote(str(path))
    run = shlex.quote(str(run_folder(load_config(path), path)))
    return [
        f"written: {path}; next:",
        f"  ppdet-lite train -c {config} --eval",
        f"  ppdet-lite eval -c {config} -o weights={run} --report {run}/report",
        f"without a network: ppdet-lite train --data {shlex.quote(str(folder))} --start random",
    ]


def evaluation_config(
    path: str | None, annotations: Path | None, images: Path | None, overrides: Sequence[str], builds_model: bool
) -> Config:
    """Return the config at `path`, or one for scoring results without a model, whose `data.val` is `annotations`.

    images: the folder of the images; None to search near the annotations. If none is found, a report shows no images.
    builds_model: whether the detections are those of the config's model. If not, overrides of it raise UserError.
    """
    if not builds_model:
        reason = "the detections are not those of the config's model; for these, use -c CONFIG -o weights=PATH"
        cli.require_effect(overrides, OF_A_MODEL, reason, have=False)
    if annotations is None:
        return load_config(str(path), overrides)
    if images is None:
        try:
            images = find_images(annotations)
        except UserError as error:
            if not annotations.is_file():
                raise
            get_logger().warning("%s, or add --images; until then a report shows no images", error)
            images = annotations.parent
    val = {"data.val.annotations": annotations, "data.val.images": images}
    return load_config(ANY_RECIPE, [*(f"{key}={flow(str(path))}" for key, path in val.items()), *overrides])


def require_start(config: Config, source: Path) -> None:
    """Download the initial weights of a config. Raises UserError with the way without a network if that fails."""
    if config["pretrain_weights"] is None:
        return
    try:
        initial_weights(config["pretrain_weights"])
    except UserError as error:
        command = f"ppdet-lite train --data {shlex.quote(str(source))} --start random"
        raise UserError(f"{error}; or start from random weights: {command}") from None


def _recognize(source: Path) -> tuple[str, Path]:
    """Return the format of a source and its first file. Raises UserError if there is none, or more than one."""
    if not source.exists():
        raise UserError(f"--data {source}: no such file or folder; correct the path")
    found = formats_of(source)
    importable = [form for form in found if form in FORMAT_NAMES]
    if len(found) > 1:
        names = ", ".join(f"{FORMAT_NAMES.get(form, form)} ({path.name})" for form, path in found.items())
        command = f"ppdet-lite import-data --from {'|'.join(importable)} {shlex.quote(str(source))} --output DIR"
        raise UserError(f"--data {source}: contains several formats: {names}; import one of them: {command}")
    if not found or not (importable or COCO in found):
        reason = other_format(source) if found else "contains no annotations in a known format"
        hint = "" if found else f": {', '.join(['COCO', *FORMAT_NAMES])}"
        raise UserError(f"--data {source}: {reason}{hint}")
    return next(iter(found.items()))


def _folder(source: Path) -> Path:
    """Return dataset/NAME, the folder in which the dataset of a source is stored."""
    full = source.resolve()
    name = full.name if full.is_dir() else full.parent.name if full.suffix in (".yaml", ".yml") else full.stem
    folder = DATASETS / name
    root = full if full.is_dir() else full.parent
    if folder.resolve() == root:
        folder = DATASETS / f"{name}_coco"
    if root in folder.resolve().parents and full.is_dir():
        raise UserError(f"--data {source}: contains {folder}, where it would be imported; run this in another folder")
    return folder


def _is_current(folder: Path, source: Path) -> bool:
    """Return whether a source was imported into a folder and is unchanged. Raises UserError if something else is there.

    A source that changed is not imported again by itself: the folder may be in use by a run, or edited.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    remedy = f"delete {folder} to import it anew, or train on what is there: ppdet-lite train --data {folder}"
    if not (folder / RECORD).is_file():
        raise UserError(f"--data {source}: {folder} exists, but was not imported from it by this command; {remedy}")
    record = _read_record(folder)
    if record.get("source") != str(source.resolve()):
        raise UserError(f"--data {source}: {folder} was imported from {record.get('source')}; {remedy}")
    if record.get("digest") not in (None, _digest(source)):
        raise UserError(f"--data {source}: has changed since it was imported into {folder}; {remedy}")
    get_logger().info("using what is in %s, from %s", folder, source)
    return True


def _record(folder: Path, source: Path, digest: str | None = None, images: Path | None = None) -> None:
    """Record where a folder's dataset is from. digest: that of the source, if the folder has a copy of its content."""
    content = {"source": str(source.resolve()), "digest": digest, "images": None if images is None else str(images)}
    write_json(folder / RECORD, content)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _digest(source: Path) -> str:
    """Return a hash of the names, sizes and modification times of the files of a source."""

    def states() -> Iterator[str]:
        root = source.parent if source.suffix in (".yaml", ".yml") else source
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file():
                state = path.stat()
                yield f"{path.relative_to(root).as_posix()} {state.st_size} {state.st_mtime_ns}"

    return hashlib.sha256("\n".join(states()).encode(errors="surrogateescape")).hexdigest()


def _config(folder: Path, files: dict[str, Path], start: Start) -> Path:
    """Return the path of a dataset's config in a folder; write it unless it exists."""
    path = folder / NAMES[start]
    if path.is_file():
        get_logger().info("using %s as it is; delete it to have it written anew", path)
        return path
    images = _read_record(folder).get("images")  # of an annotation file that was divided
    train, val = (CocoDataset(str(images or find_images(files[name])), str(files[name])) for name in ("train", "val"))
    return write_starter_config(folder, train, val, start)
