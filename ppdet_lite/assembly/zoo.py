"""Published weights of the zoo as runs of this project: downloaded, converted once, and kept in the cache."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from ppdet_lite import __version__
from ppdet_lite.assembly.conversion import convert_file
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.peers.zoo import downloaded, find_detector, find_entry, is_zoo
from ppdet_lite.storage.checkpoint import is_checkpoint
from ppdet_lite.storage.download import resolve_weights
from ppdet_lite.storage.files import file_digest


def trained_weights(spec: str | Path) -> Path:
    """Return the run folder of a detector "zoo:NAME"; any other value is a path."""
    return zoo_folder(spec) if is_zoo(spec) else Path(spec)


def initial_weights(spec: str) -> Path:
    """Return the run folder or file of `pretrain_weights`: zoo:NAME, https://...#sha256=..., or an existing path."""
    if not is_zoo(spec):
        return resolve_weights(spec)
    entry = find_entry(spec)
    return downloaded(entry) if entry.recipe is None else zoo_folder(spec)


def zoo_folder(spec: str | Path) -> Path:
    """Return the run folder of a detector of the zoo, "zoo:NAME" or "NAME": config.yml and checkpoints/best.

    The file is downloaded and converted if that was not done before. A changed file, config or version of this
    package causes another conversion. Raises UserError if the file cannot be downloaded or does not match its recipe.
    """
    entry = find_detector(spec)
    file = downloaded(entry)
    config = load_config(entry.spec)
    decisive = f"{file_digest(file)} {entry.bn_epsilon} {__version__}\n{config.dump()}"
    key = hashlib.sha256(decisive.encode()).hexdigest()[:12]
    folder = file.parent / "converted" / f"{entry.name.rpartition('/')[2]}-{key}"
    if is_checkpoint(folder / "checkpoints/best"):
        return folder
    get_logger().info("converting %s", file)
    try:
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            convert_file(entry.peer, config, file, Path(temporary, "run"), bn_epsilon=entry.bn_epsilon)
            _publish(Path(temporary, "run"), folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; set PPDET_LITE_CACHE") from error
    get_logger().info("%s: converted into %s", entry.spec, folder)
    return folder


def _publish(partial: Path, folder: Path) -> None:
    """Rename a finished folder. If another process was faster, its equal folder stays."""
    try:
        partial.rename(folder)
    except OSError:
        if is_checkpoint(folder / "checkpoints/best"):
            return
        shutil.rmtree(folder)  # damaged
        partial.rename(folder)
