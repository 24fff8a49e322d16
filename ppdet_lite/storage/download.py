"""Downloads files into a cache over https: resumed after a break, and verified by their checksums."""

import os
import re
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.storage.files import HAS_LOCKS, file_digest, open_locked, sync_folder, write_text

DIGEST_LENGTHS = {"sha256": 64, "md5": 32}
TIMEOUT = 30  # seconds without data
ATTEMPTS = 5  # connections, of which each continues the one before
RANGE_NOT_SATISFIABLE = 416

Opener = Callable[..., Any]  # opener(request, timeout=) like urlopen


class _OtherVersion(OSError):
    """A server answers a request for the rest of a file with something else."""


class Remote(NamedTuple):
    """A file to download, with its checksum."""

    url: str
    algorithm: str = "sha256"
    digest: str = ""  # the first hexadecimal digits of the checksum: all, some, or none if it is not published

    @property
    def name(self) -> str:
        """The file's name."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]

    @property
    def is_exact(self) -> bool:
        """Whether the whole checksum is published."""
        return len(self.digest) == DIGEST_LENGTHS[self.algorithm]


def resolve_weights(spec: str, cache: Path | None = None, opener: Opener | None = None) -> Path:
    """Return the existing local path for a path or a URL of the form `https://host/file#sha256=<64 hex digits>`.

    A URL is downloaded once into `cache` (default: `cache_folder()`) and its checksum verified on each call;
    `#md5=<32 hex digits>` is also accepted. `opener(request, timeout=)` replaces urlopen. Raises UserError for a
    missing path, any other URL, a failed download or a wrong checksum.
    """
    if "://" not in spec:
        path = Path(spec).expanduser()
        if not path.exists():
            raise UserError(
                f"{spec}: no such weights; give a path that exists, zoo:NAME, or https://host/file#sha256=<hex digits>"
            )
        return path
    remote = _parse(spec)
    folder = cache_folder() if cache is None else Path(cache)
    return cached_file(remote, folder / remote.digest[:16] / remote.name, opener)


def cache_folder() -> Path:
    """Return $PPDET_LITE_CACHE, or else ppdet_lite/weights in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("PPDET_LITE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ppdet_lite" / "weights"


def cached_file(remote: Remote, path: Path, opener: Opener | None = None) -> Path:
    """Return `path` with the content of a remote file, which is downloaded if it is not there or has a wrong checksum.

    If the whole checksum is not published, the SHA-256 of the first file is recorded in `<path>.sha256`, and another
    content is refused from then on. Several processes may call this at the same time.

    Raises UserError, with the address and the place for a file downloaded by other means, if the download fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_intact(remote, path):
            _download(remote, path, opener or _open)
    except OSError as error:
        raise UserError(f"{path}: the cache cannot be used: {error.strerror}; set PPDET_LITE_CACHE") from error
    return path


def record_of(path: Path) -> Path:
    """Return the file that records the SHA-256 of a file in the cache, in the format of the program sha256sum."""
    return path.with_name(f"{path.name}.sha256")


def _parse(spec: str) -> Remote:
    parts = urlsplit(spec)
    if parts.scheme != "https":
        raise UserError(f"{spec}: weights are downloaded over https only: https://host/file#sha256=<64 hex digits>")
    algorithm, _, digest = parts.fragment.partition("=")
    if not re.fullmatch(rf"[0-9a-fA-F]{{{DIGEST_LENGTHS.get(algorithm, 0)}}}", digest) or not digest:
        raise UserError(
            f"{spec}: add the file's checksum: {spec.partition('#')[0]}#sha256=<64 hex digits> or #md5=<32>"
        )
    remote = Remote(spec.partition("#")[0], algorithm, digest.lower())
    if not re.fullmatch(r"\w[\w.+-]*", remote.name):
        raise UserError(f"{spec}: the URL has no file name; it must be like https://host/resnet50.pdparams#...")
    return remote


def _is_intact(remote: Remote, path: Path) -> bool:
    """Return whether a file is in the cache and has the published checksum. Raises UserError if it was changed."""
    if not path.is_file():
        return False
    if not file_digest(path, remote.algorithm).startswith(remote.digest):
        get_logger().warning("%s: its %s differs from the one given; downloading it again", path, remote.algorithm)
        return False
    if not remote.is_exact:
        _check_record(path, path, "the file was changed; delete it to download it again")
    return True


def _check_record(path: Path, content: Path, reason: str) -> None:
    """Record the SHA-256 of `content`, which is or becomes `path`. Raises UserError if another one is recorded."""
    digest, record = file_digest(content), record_of(path)
    if not record.is_file():
        write_text(record, f"{digest}  {path.name}\n")
        return
    recorded = record.read_text(encoding="utf-8", errors="replace").partition(" ")[0].strip()
    if digest != recorded:
        raise UserError(
            f"{path}: its sha256 is {digest}, but {recorded} was recorded at the first download: {reason}, and delete "
            f"{record} if you trust the new one"
        )


def _download(remote: Remote, path: Path, opener: Opener) -> None:
    """Download into `<path>.part`, verify, and rename. Other processes that want the same file wait."""
    part = path.with_name(f"{path.name}.part" if HAS_LOCKS else f"{path.name}.{os.getpid()}.part")
    by_hand = f"download {remote.url} yourself and put it at {path}"
    with open_locked(part, lambda: get_logger().info("waiting for the download of another process: %s", part)) as file:
        if path.is_file() and _is_intact(remote, path):  # downloaded by the process that had the lock
            _discard(file, part)
            return
        get_logger().info("downloading %s to %s", remote.url, path)
        try:
            _receive(remote.url, file, part, opener)
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            received = file.seek(0, os.SEEK_END)
            if not received:
                _discard(file, part)
            reason = " ".join(str(error).split()) or type(error).__name__
            again = f"try again to continue after {received / 1e6:.1f} MB, or " if received else ""
            raise UserError(f"{remote.url}: cannot be downloaded ({reason}); {again}{by_hand}") from error
        try:
            _verify(remote, path, part, by_hand)
        except UserError:
            _discard(file, part)
            raise
        if not HAS_LOCKS:
            file.close()  # Windows cannot rename an open file
        part.replace(path)
        _validator_file(part).unlink(missing_ok=True)
        sync_folder(path.parent)


def _discard(file: BinaryIO, part: Path) -> None:
    if not HAS_LOCKS:
        file.close()  # Windows cannot remove an open file
    part.unlink()
    _validator_file(part).unlink(missing_ok=True)


def _verify(remote: Remote, path: Path, part: Path, by_hand: str) -> None:
    """Raise UserError if a downloaded file has another checksum than the published or the recorded one."""
    digest = file_digest(part, remote.algorithm)
    if not digest.startswith(remote.digest):
        raise UserError(
            f"{remote.url}: its {remote.algorithm} is {digest}, not {remote.digest}{'' if remote.is_exact else '...'}: "
            f"incomplete, or another file; try again, correct the checksum, or {by_hand}"
        )
    if not remote.is_exact:
        _check_record(path, part, "the file at this address was changed; ask its publisher")


def _receive(url: str, file: BinaryIO, part: Path, opener: Opener) -> None:
    """Append to `file`, which is open at `part`, until it is complete. Raises OSError or HTTPException.

    A connection that breaks after some data is continued by another one.
    """
    for attempt in range(1, ATTEMPTS + 1):
        before = file.seek(0, os.SEEK_END)
        try:
            total = _connect(url, file, part, opener)
            received = file.seek(0, os.SEEK_END)
            if total is None or received >= total:
                file.flush()
                os.fsync(file.fileno())
                return
            raise ConnectionError(f"the connection ended after {received} of {total} bytes")
        except (HTTPError, _OtherVersion) as error:
            if (isinstance(error, HTTPError) and error.code != RANGE_NOT_SATISFIABLE) or not before:
                raise
            file.truncate(0)  # the part is of another version of the file, or longer than it
        except (OSError, HTTPException):
            if attempt == ATTEMPTS or file.seek(0, os.SEEK_END) <= before:
                raise
            get_logger().warning("%s: the connection broke; continuing", url)


def _connect(url: str, file: BinaryIO, part: Path, opener: Opener) -> int | None:
    """Receive the rest of a file by one request, and return its whole size if the server reports it.

    The rest is requested if the part is of a version of the file that the server identified by an ETag or a date. A
    server that sends the whole file instead, because it is another version, replaces the part.
    """
    validator = _read_validator(part)
    start = file.seek(0, os.SEEK_END) if validator else 0
    headers = {"Range": f"bytes={start}-", "If-Range": validator} if start else {}
    with opener(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        found = _validator(response.headers)
        if response.status == 206:
            is_rest = (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
            if not start or not is_rest or found not in ("", validator):
                raise _OtherVersion("the server sends another part than the missing one")
        else:
            start = 0
            file.truncate(0)
            _validator_file(part).write_text(found, encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _copy(response, file, start, total)
    return total


def _copy(response: BinaryIO, file: BinaryIO, start: int, total: int | None) -> None:
    """Append the response to the file, with a progress bar on a terminal."""
    from tqdm import tqdm

    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None, leave=False)
    with bar:
        while chunk := response.read(1 << 20):
            file.write(chunk)
            bar.update(len(chunk))


def _validator(headers: Any) -> str:
    """Return what identifies the version of a file: its ETag unless that is weak, or else its date, or ""."""
    etag = headers.get("ETag") or ""
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _read_validator(part: Path) -> str:
    try:
        return _validator_file(part).read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return ""


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Refuses redirections to anything but https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Return the request for the new address."""
        if urlsplit(newurl).scheme != "https":
            raise URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, timeout: float) -> Any:
    return urllib.request.build_opener(_OnlyHttps).open(request, timeout=timeout)
