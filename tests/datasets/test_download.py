"""Files from the web, from a server on this machine: checked, kept, and gone on with after a failure."""

import hashlib
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from pipeline.artifacts.errors import UserError
from pipeline.datasets import download, text, tokens

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves CONTENT; `breaks` is after how many bytes it hangs up, `ranges` whether it knows how to go on,
    `patience` for how many seconds it waits after each 1,000 bytes."""

    class Handler(BaseHTTPRequestHandler):
        asked: list = []
        breaks: int | None = None
        ranges = True
        patience = 0.0

        def do_GET(self):
            wanted = self.headers.get("Range") if self.ranges else None
            self.asked.append((self.path, wanted))
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if self.path.startswith("/none"):
                self.send_error(404)
                return
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            for at in range(start, self.breaks or len(CONTENT), 1000):
                self.wfile.write(CONTENT[at : min(at + 1000, self.breaks or len(CONTENT))])
                time.sleep(self.patience)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{serving.server_port}/a.txt"
    yield Handler
    serving.shutdown()
    serving.server_close()


HASH = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_fetched_once(server):
    for _ in range(2):
        assert download.fetch(server.url, HASH, "a.txt").read_bytes() == CONTENT
    assert server.asked == [("/a.txt", None)]


def test_a_download_that_broke_off_is_gone_on_with(server, monkeypatch):
    monkeypatch.setattr(download, "_CHUNK", 1000)
    server.breaks = 3000
    with pytest.raises(UserError, match=r"a\.txt: could not be fetched \("):
        download.fetch(server.url, HASH, "a.txt")
    server.breaks = None
    assert download.fetch(server.url, HASH, "a.txt").read_bytes() == CONTENT
    assert server.asked[-1] == ("/a.txt", "bytes=3000-")


def test_a_server_that_cannot_go_on_begins_again(server):
    server.breaks = 3000
    with pytest.raises(UserError):
        download.fetch(server.url, HASH, "a.txt")
    server.breaks, server.ranges = None, False
    assert download.fetch(server.url, HASH, "a.txt").read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(server):
    with pytest.raises(UserError, match=f"its content does not have the sha256 {'0' * 64}; do this"):
        download.fetch(server.url, "0" * 64, "a.txt", "; do this")
    assert download.fetch(server.url, HASH, "a.txt").read_bytes() == CONTENT


def test_what_is_not_there_is_one_line(server):
    for url in (server.url.replace("a.txt", "none.txt"), "http://127.0.0.1:9/a.txt"):
        with pytest.raises(UserError, match=r"\.txt: could not be fetched \(") as caught:
            download.fetch(url, HASH, "a.txt")
        assert "\n" not in str(caught.value)


JOB = """
import sys
from pipeline.datasets import download
print(download.fetch(sys.argv[1], sys.argv[2], "a.txt"))
"""


def test_jobs_that_want_the_same_file_fetch_it_once(server, project, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.patience = 0.2
    command = [sys.executable, "-c", JOB, server.url, HASH]
    jobs = [subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [job.communicate(timeout=600) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], told
    (kept,) = {out.strip() for out, _ in told}
    assert Path(kept).read_bytes() == CONTENT
    assert server.asked == [("/a.txt", None)]
    assert sum("another job fetches" in err for _, err in told) >= 1


def test_what_was_fetched_is_used_where_nothing_can_be_written(server, monkeypatch):
    kept = download.fetch(server.url, HASH, "a.txt")

    def refused(*_):
        raise AssertionError

    monkeypatch.setattr(download, "FileLock", refused)
    assert download.fetch(server.url, HASH, "a.txt") == kept


def test_a_dataset_of_a_url(make, server):
    made = make(text, kind="text", url=server.url, sha256=HASH, separator=None)
    assert made.facts["tokens"] == {"train": 9216, "validation": 1024}
    assert tokens.read(made, "train").tobytes() == CONTENT[:9216]
    assert made.facts["sources"] == {server.url: HASH}
