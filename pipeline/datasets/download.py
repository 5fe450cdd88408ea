"""Fetches a file whose hash is known. A download that breaks off is gone on with by the next attempt."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock, Timeout

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256 as digest
from pipeline.console import progress, say

_CHUNK = 2**20
_SECONDS = 30


def fetch(url: str, sha256: str, name: str, otherwise: str = "") -> Path:
    """The file at `url`, kept in this user's cache. Raises UserError, which ends with `otherwise`: what else can be done.

    Jobs that want the same file at the same time fetch it once: the others wait.
    """
    cache = Path(pooch.os_cache("saeflow"))
    kept = cache / f"{sha256[:12]}-{name}"
    try:
        if kept.is_file() and digest(kept) == sha256:
            return kept
        with _alone(url, cache):
            cached = pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=kept.name, path=cache, downloader=resume)
    except ValueError:  # pooch's word for a hash that differs
        raise UserError(f"{url}: its content does not have the sha256 {sha256}{otherwise}") from None
    except OSError as error:  # those of requests are OSErrors too
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{url}: could not be fetched ({type(error).__name__}: {told}){otherwise}") from None
    return Path(cached)


@contextmanager
def _alone(url: str, cache: Path) -> Iterator[None]:
    """No other process on this machine, nor on others that share the folder, fetches `url` meanwhile."""
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / f"{_key(url)}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another job fetches {url}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def resume(url: str, output_file: Any, _: Any = None) -> None:
    """Downloads to `output_file` (pooch's downloader); what came before a failure waits in a .part file beside it."""
    target = Path(output_file)
    part = target.with_name(f"{_key(url)}.part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=_SECONDS) as answer:
        if have and answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.replace(target)  # all of it had come; if it is another content, its hash says so
            return
        answer.raise_for_status()
        have = have if answer.status_code == requests.codes.partial_content else 0
        total = have + int(answer.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file, progress(f"fetch {url}", total, "bytes") as bar:
            bar.advance(have)
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                bar.advance(len(chunk))
    if part.stat().st_size < total:
        raise requests.ConnectionError(f"{part.stat().st_size:,} of {total:,} bytes came")
    part.replace(target)
