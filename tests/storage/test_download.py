"""Downloads: only over https with a checksum, whole or absent, from the cache the second time."""

import hashlib
import http.server
import logging
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage import download
from ppdet_lite.storage.download import Remote, cached_file, resolve_weights

CONTENT = b"weights" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()
URL = "https://example.org/models/w%2B1.pdparams?raw=true"


class Site:
    """A web server on this machine; its opener sends https://example.org there.

    It serves `content` whole, or the range that is asked for if the file is the one of If-Range. /gone does not exist,
    /broken breaks each connection after 3000 bytes, and /whole knows neither versions nor ranges.
    """

    def __init__(self) -> None:
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                site.ranges.append(self.headers.get("Range"))
                if self.path.startswith("/gone"):
                    self.send_error(404)
                    return
                has_versions = not self.path.startswith("/whole")
                tag, start = f'"{hashlib.md5(site.content).hexdigest()}"', 0
                if has_versions and self.headers.get("Range") and self.headers.get("If-Range") in (tag, site.trusts):
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(site.content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
                if has_versions:
                    self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(site.content) - start))
                self.end_headers()
                breaks = self.path.startswith(("/broken", "/whole/broken"))
                self.wfile.write(site.content[start : start + 3000 if breaks else None])

            def log_message(self, *_):
                pass

        self.content, self.trusts = CONTENT, None  # trusts: a version that it wrongly takes for the current one
        self.asked: list[str] = []
        self.ranges: list[str | None] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def open(self, request: urllib.request.Request, timeout: float):
        local = request.full_url.replace("https://example.org", f"http://127.0.0.1:{self.server.server_port}")
        proxyless = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return proxyless.open(urllib.request.Request(local, headers=dict(request.header_items())), timeout=timeout)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_local_path_must_exist(tmp_path, monkeypatch):
    (tmp_path / "w.pdparams").write_bytes(b"")
    assert resolve_weights(str(tmp_path / "w.pdparams")) == tmp_path / "w.pdparams"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_weights("~/w.pdparams") == tmp_path / "w.pdparams"
    with pytest.raises(UserError, match=r"nowhere/w\.pdparams: no such weights"):
        resolve_weights("nowhere/w.pdparams")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (f"http://example.org/w.pdparams#sha256={SHA}", "downloaded over https only: https://host/file#sha256="),
        ("ftp://example.org/w.pdparams", "downloaded over https only"),
        ("file:///etc/passwd", "downloaded over https only"),
        ("https://example.org/w.pdparams", r"add the file's checksum: https://example.org/w.pdparams#sha256=<64 hex"),
        ("https://example.org/w.pdparams#sha256=12ab", "add the file's checksum"),
        (f"https://example.org/w.pdparams#md5={SHA}", "add the file's checksum"),
        ("https://example.org/w.pdparams#sha1=" + 40 * "a", "add the file's checksum"),
        ("https://example.org/w.pdparams#", "add the file's checksum"),
        (f"https://example.org/#sha256={SHA}", "has no file name"),
        (f"https://example.org/..#sha256={SHA}", "has no file name"),
        (f"https://example.org/a%2F..%2F..%2Fb%5C#sha256={SHA}", "has no file name"),
    ],
)
def test_other_urls_are_refused(tmp_path, spec, text):
    with pytest.raises(UserError, match=text):
        resolve_weights(spec, tmp_path, opener=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checksum", [f"sha256={SHA.upper()}", f"md5={hashlib.md5(CONTENT).hexdigest()}"])
def test_a_download_happens_once(tmp_path, site, checksum):
    first = resolve_weights(f"{URL}#{checksum}", tmp_path / "cache", site.open)
    assert first.read_bytes() == CONTENT and first.name == "w+1.pdparams"
    assert (tmp_path / "cache") in first.parents
    assert resolve_weights(f"{URL}#{checksum}", tmp_path / "cache", site.open) == first
    assert site.asked == ["/models/w%2B1.pdparams?raw=true"]
    assert files(tmp_path) == [first]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, site, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    path = resolve_weights(f"{URL}#sha256={SHA}", tmp_path, site.open)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert resolve_weights(f"{URL}#sha256={SHA}", tmp_path, site.open).read_bytes() == CONTENT
    assert len(site.asked) == 2
    assert "its sha256 differs from the one given; downloading it again" in caplog.text


def test_another_file_is_not_kept(tmp_path, site):
    wanted = "0" * 64
    with pytest.raises(UserError, match=f"its sha256 is {SHA}, not {wanted}: incomplete, or another file"):
        resolve_weights(f"https://example.org/models/w.pdparams#sha256={wanted}", tmp_path, site.open)
    assert files(tmp_path) == []


def test_a_failed_download_says_what_to_put_where(tmp_path, site):
    with pytest.raises(UserError) as caught:
        resolve_weights(f"https://example.org/gone/w.pdparams#sha256={SHA}", tmp_path, site.open)
    place = tmp_path / SHA[:16] / "w.pdparams"
    url = "https://example.org/gone/w.pdparams"
    assert str(caught.value) == (
        f"{url}: cannot be downloaded (HTTP Error 404: Not Found); download {url} yourself and put it at {place}"
    )
    place.write_bytes(CONTENT)  # what the message asks for helps
    assert resolve_weights(f"{url}#sha256={SHA}", tmp_path, site.open) == place
    assert len(site.asked) == 1


def test_a_missing_network_is_reported(tmp_path):
    def offline(_url, timeout):
        raise urllib.error.URLError(OSError(101, "Network is unreachable"))

    with pytest.raises(UserError, match=r"cannot be downloaded .*Network is unreachable.* yourself and put it at"):
        resolve_weights(f"{URL}#sha256={SHA}", tmp_path, offline)


def test_the_cache_folder(tmp_path, site, monkeypatch):
    for name in ("PPDET_LITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    spec = f"{URL}#sha256={SHA}"

    def cache() -> Path:
        return resolve_weights(spec, opener=site.open).parents[1]

    assert cache() == tmp_path / "home" / ".cache" / "ppdet_lite" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache() == tmp_path / "xdg" / "ppdet_lite" / "weights"
    monkeypatch.setenv("PPDET_LITE_CACHE", str(tmp_path / "own"))
    assert cache() == tmp_path / "own"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPDET_LITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"the cache cannot be used: .*; set PPDET_LITE_CACHE"):
        cache()


BROKEN = "https://example.org/broken/w.pdparams"


def test_a_broken_connection_is_continued(tmp_path, site, caplog, monkeypatch):
    """Of 7000 bytes each connection brings 3000."""
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    path = resolve_weights(f"{BROKEN}#sha256={SHA}", tmp_path, site.open)
    assert path.read_bytes() == CONTENT and files(tmp_path) == [path]
    assert site.ranges == [None, "bytes=3000-", "bytes=6000-"]
    assert caplog.text.count("the connection broke; continuing") == 2


def interrupted(tmp_path, site, monkeypatch, spec=f"{BROKEN}#sha256={SHA}") -> Path:
    """Leave the first 3000 bytes in the cache, as a run that ended does, and return their file."""
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(UserError, match=r"\(the connection ended after 3000 of 7000 bytes\); try again to continue"):
        resolve_weights(spec, tmp_path, site.open)
    part, _ = files(tmp_path)
    assert part.name == "w.pdparams.part" and part.read_bytes() == site.content[:3000]
    site.ranges.clear()
    monkeypatch.undo()
    return part


def test_another_run_continues_a_download(tmp_path, site, monkeypatch):
    interrupted(tmp_path, site, monkeypatch)
    path = resolve_weights(f"{BROKEN}#sha256={SHA}", tmp_path, site.open)
    assert path.read_bytes() == CONTENT and files(tmp_path) == [path]
    assert site.ranges[0] == "bytes=3000-"


@pytest.mark.parametrize("trusts_any", [False, True])
def test_a_file_that_was_changed_meanwhile_starts_anew(tmp_path, site, monkeypatch, trusts_any):
    """Also if the server answers with the rest of another file."""
    interrupted(tmp_path, site, monkeypatch)
    site.trusts = f'"{hashlib.md5(CONTENT).hexdigest()}"' if trusts_any else None
    site.content = b"another" * 1000
    url = BROKEN.replace("broken", "models")
    spec = f"{url}#sha256={hashlib.sha256(site.content).hexdigest()}"
    for name in ("w.pdparams.part", "w.pdparams.part.version"):
        target = tmp_path / spec.partition("sha256=")[2][:16] / name
        target.parent.mkdir(exist_ok=True)
        (tmp_path / SHA[:16] / name).rename(target)
    assert resolve_weights(spec, tmp_path, site.open).read_bytes() == site.content
    assert site.ranges[0] == "bytes=3000-"


def test_a_server_without_versions_starts_anew(tmp_path, site, monkeypatch):
    spec = f"https://example.org/whole/broken/w.pdparams#sha256={SHA}"
    interrupted(tmp_path, site, monkeypatch, spec)
    with pytest.raises(UserError, match="the connection ended after 3000 of 7000 bytes"):
        resolve_weights(spec, tmp_path, site.open)
    assert set(site.ranges) == {None}


def test_a_part_longer_than_the_file_starts_anew(tmp_path, site, monkeypatch):
    part = interrupted(tmp_path, site, monkeypatch)
    part.write_bytes(CONTENT + b"more")
    path = resolve_weights(f"{BROKEN}#sha256={SHA}", tmp_path, site.open)
    assert path.read_bytes() == CONTENT and site.ranges[:2] == ["bytes=7004-", None]


def test_the_first_digits_of_a_checksum_are_checked(tmp_path, site):
    url = "https://example.org/models/w.pth"
    path = cached_file(Remote(url, "sha256", SHA[:8]), tmp_path / "w.pth", site.open)
    assert path.read_bytes() == CONTENT
    md5 = hashlib.md5(CONTENT).hexdigest()
    assert cached_file(Remote(url, "md5", md5[:6]), path, site.open) == path and len(site.asked) == 1
    with pytest.raises(UserError, match=rf"w\.pth: its sha256 is {SHA}, not 00000000\.\.\.: incomplete, or another"):
        cached_file(Remote(url, "sha256", "00000000"), tmp_path / "x.pth", site.open)
    assert files(tmp_path) == [path, tmp_path / "w.pth.sha256"]


def test_a_file_without_a_published_checksum_stays_the_first(tmp_path, site):
    """Its SHA-256 is recorded, and neither a change in the cache nor one on the server is accepted."""
    remote, path = Remote("https://example.org/models/w.pth"), tmp_path / "w.pth"
    cached_file(remote, path, site.open)
    record = tmp_path / "w.pth.sha256"
    assert record.read_text() == f"{SHA}  w.pth\n"
    path.write_bytes(CONTENT[:-1] + b"!")
    changed = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as caught:
        cached_file(remote, path, site.open)
    assert str(caught.value) == (
        f"{path}: its sha256 is {changed}, but {SHA} was recorded at the first download: the file was changed; delete "
        f"it to download it again, and delete {record} if you trust the new one"
    )
    path.unlink()
    site.content = b"changed" * 1000
    with pytest.raises(UserError, match="the file at this address was changed; ask its publisher, and delete"):
        cached_file(remote, path, site.open)
    assert files(tmp_path) == [record]
    site.content = CONTENT
    assert cached_file(remote, path, site.open).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_used_and_checked(tmp_path, site):
    remote, path = Remote("https://example.org/gone/w.pth", "sha256", SHA[:8]), tmp_path / "zoo/w.pth"
    with pytest.raises(UserError, match=rf"download https://example\.org/gone/w\.pth yourself and put it at {path}$"):
        cached_file(remote, path, site.open)
    path.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match="cannot be downloaded"):
        cached_file(remote, path, site.open)
    assert path.exists()  # it was not removed
    path.write_bytes(CONTENT)
    assert cached_file(remote, path, site.open) == path


def test_processes_that_want_the_same_file_download_it_once(tmp_path, site):
    """Threads have locks of their own here: each opens the file."""
    remote, path = Remote("https://example.org/models/w.pth", "sha256", SHA[:8]), tmp_path / "w.pth"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cached_file(remote, path, site.open).read_bytes(), range(8)))
    assert found == [CONTENT] * 8 and site.asked == ["/models/w.pth"]
    assert files(tmp_path) == [path, tmp_path / "w.pth.sha256"]


def test_redirections_stay_on_https():
    handler = download._OnlyHttps()
    request = urllib.request.Request("https://example.org/w")
    with pytest.raises(urllib.error.URLError, match=r"redirected to http://example\.org/w, which is not https"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://example.org/w")
    assert handler.redirect_request(request, None, 302, "Found", {}, "https://example.org/v").full_url[-1] == "v"
