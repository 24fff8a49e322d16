"""Downloads weights files, given by URL and checksum, into a cache."""

import hashlib
import os
import re
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.storage.files import atomic_writer, file_digest

DIGEST_LENGTHS = {"sha256": 64, "md5": 32}
TIMEOUT = 30  # seconds without data


class _Remote(NamedTuple):
    url: str
    name: str  # file name
    algorithm: str
    digest: str


def resolve_weights(spec: str, cache: Path | None = None, opener: Callable[..., Any] | None = None) -> Path:
    """Return the existing local path for a path or a URL of the form `https://host/file#sha256=<64 hex digits>`.

    A URL is downloaded once into `cache` (default: $PPDET_LITE_CACHE, else ppdet_lite/weights in the user's cache
    folder) and its checksum verified on each call; `#md5=<32 hex digits>` is also accepted. `opener(url, timeout=)`
    replaces urlopen. Raises UserError for a missing path, any other URL, a failed download or a wrong checksum.
    """
    if "://" not in spec:
        path = Path(spec).expanduser()
        if not path.exists():
            raise UserError(
                f"{spec}: no such weights; give a path that exists, or https://host/file#sha256=<hex digits>"
            )
        return path
    remote = _parse(spec)
    folder = _default_cache() if cache is None else Path(cache)
    path = folder / remote.digest[:16] / remote.name
    try:
        if path.is_file():
            if file_digest(path, remote.algorithm) == remote.digest:
                return path
            get_logger().warning("%s: its %s differs from the one given; downloading it again", path, remote.algorithm)
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the cache cannot be used: {error.strerror}; set PPDET_LITE_CACHE") from error
    _download(remote, path, opener or urllib.request.urlopen)
    return path


def _parse(spec: str) -> _Remote:
    parts = urlsplit(spec)
    if parts.scheme != "https":
        raise UserError(f"{spec}: weights are downloaded over https only: https://host/file#sha256=<64 hex digits>")
    algorithm, _, digest = parts.fragment.partition("=")
    if not re.fullmatch(rf"[0-9a-fA-F]{{{DIGEST_LENGTHS.get(algorithm, 0)}}}", digest) or not digest:
        raise UserError(
            f"{spec}: add the file's checksum: {spec.partition('#')[0]}#sha256=<64 hex digits> or #md5=<32>"
        )
    name = unquote(parts.path).rpartition("/")[2]
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"{spec}: the URL has no file name; it must be like https://host/resnet50.pdparams#...")
    return _Remote(spec.partition("#")[0], name, algorithm, digest.lower())


def _default_cache() -> Path:
    if own := os.environ.get("PPDET_LITE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ppdet_lite" / "weights"


def _download(remote: _Remote, path: Path, opener: Callable[..., Any]) -> None:
    by_hand = f"download {remote.url} yourself and put it at {path}"
    get_logger().info("downloading %s to %s", remote.url, path)
    try:
        with opener(remote.url, timeout=TIMEOUT) as response, atomic_writer(path) as file:
            digest = _copy(response, file, remote.algorithm)
            if digest != remote.digest:  # raised inside the block, so that the file is discarded
                raise UserError(
                    f"{remote.url}: its {remote.algorithm} is {digest}, not {remote.digest}: incomplete, or another"
                    f" file; try again, correct the checksum, or {by_hand}"
                )
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{remote.url}: cannot be downloaded ({reason}); {by_hand}") from error


def _copy(response: BinaryIO, file: BinaryIO, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    while chunk := response.read(1 << 20):
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()
