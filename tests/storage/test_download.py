"""Downloads: only over https with a checksum, whole or absent, from the cache the second time."""

import hashlib
import http.server
import logging
import threading
import urllib.request
from pathlib import Path

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.download import resolve_weights

CONTENT = b"weights" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()
URL = "https://example.org/models/w%2B1.pdparams?raw=true"


class Site:
    """A web server on this machine; its opener sends https://example.org there."""

    def __init__(self) -> None:
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                if self.path.startswith("/gone"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[: 700 if self.path.startswith("/broken") else None])

            def log_message(self, *_):
                pass

        self.asked: list[str] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def open(self, url: str, timeout: float):
        local = url.replace("https://example.org", f"http://127.0.0.1:{self.server.server_port}")
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(local, timeout=timeout)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


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
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [first]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, site, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    path = resolve_weights(f"{URL}#sha256={SHA}", tmp_path, site.open)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert resolve_weights(f"{URL}#sha256={SHA}", tmp_path, site.open).read_bytes() == CONTENT
    assert len(site.asked) == 2
    assert "its sha256 differs from the one given; downloading it again" in caplog.text


@pytest.mark.parametrize("folder", ["models", "broken"])
def test_a_wrong_or_cut_file_is_not_kept(tmp_path, site, folder):
    wanted = SHA if folder == "broken" else "0" * 64
    found = hashlib.sha256(CONTENT[:700]).hexdigest() if folder == "broken" else SHA
    with pytest.raises(UserError, match=f"its sha256 is {found}, not {wanted}: incomplete, or another file"):
        resolve_weights(f"https://example.org/{folder}/w.pdparams#sha256={wanted}", tmp_path, site.open)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


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
