"""A file from the network: resumed where it was cut, checked, and under its final name only when it is whole."""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_CHUNK = 1 << 20  # bytes
_PROGRESS = 1 << 16  # bytes of an attempt that count as progress
_SLOWEST = 1 << 10  # bytes in ``timeout`` seconds: fewer count as a stall
_LATER = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a little later
_BROKEN = (TimeoutError, ConnectionError, http.client.HTTPException, ssl.SSLError)


class DownloadFailed(OSError):
    """A file could not be had. The message says in one line why, and what to do."""


class Receipt(NamedTuple):
    """What was downloaded."""

    sha256: str
    size: int  # bytes


class _Cut(Exception):
    """The transfer broke off. What came is kept, unless it is ``useless``."""

    def __init__(self, why: str, useless: bool = False, hopeless: bool = False):
        super().__init__(why)
        self.useless, self.hopeless = useless, hopeless


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Remembers the hash that Hugging Face's hub gives in the answer that redirects to its storage."""

    linked: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        tag = headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", tag):
            self.linked = tag
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    timeout: float = 30.0,
    retries: int = 5,
    wait: float = 1.0,
) -> Receipt:
    """Bring ``url`` to ``path``. What an earlier call left in ``path.part`` is gone on with where a hash can check it.

    One process at a time for each path; the caller sees to that.

    Args:
        url: http or https.
        path: the file; its folder is made. One that is there already is checked and taken.
        sha256: the hash, or its beginning, in hexadecimal digits; None: what Hugging Face's hub says, if it says it.
        progress: called with the bytes that are there, and those of the whole file if known.
        timeout: seconds of silence that end an attempt.
        retries: attempts without progress, one after another, that end it all.
        wait: seconds before the second attempt; twice as many before each further one.

    Raises:
        DownloadFailed: no such file, no network, another hash or size, a full disk.
    """
    transfer = _Transfer(url, path, sha256, progress, timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return transfer.check_present()
        if sha256 is None:  # nothing could tell whether two halves belong together
            transfer.part.unlink(missing_ok=True)
        fruitless = 0
        while True:
            before = transfer.size()
            try:
                return transfer.attempt()
            except _Cut as cut:
                if cut.useless:
                    transfer.part.unlink(missing_ok=True)
                came = transfer.size() - before
                fruitless = 0 if came >= _PROGRESS else fruitless + 1
                if fruitless >= retries or cut.hopeless:
                    raise DownloadFailed(f"{url}: {cut}; {transfer.advice}") from None
            time.sleep(min(30.0, wait * 2 ** max(0, fruitless - 1)))
    except DownloadFailed:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
        raise DownloadFailed(
            f"{path.parent}: {why}; make room there, or name another folder by HRNET_FAST_HOME"
        ) from None


class _Transfer:
    """The attempts at one file."""

    def __init__(self, url: str, path: Path, sha256: str | None, progress: Callable, timeout: float):
        self.url, self.path, self.sha256 = url, path, sha256
        self.progress, self.timeout = progress, timeout
        self.part = path.with_name(path.name + ".part")
        self.validator: str | None = None  # of the version that the part is from
        self.mismatches = 0
        self.redirects = _Redirects()
        self.opener = urllib.request.build_opener(self.redirects)
        self.advice = f"try again later, or get the file by other means and put it at {path}"

    def size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def check_present(self) -> Receipt:
        """The file that is there already, checked."""
        receipt = Receipt(_hash(self.path), self.path.stat().st_size)
        if self.sha256 and not receipt.sha256.startswith(self.sha256):
            raise DownloadFailed(
                f"{self.path}: has SHA-256 {receipt.sha256[:8]}, expected is {self.sha256[:8]}, that of {self.url}; "
                "remove it"
            )
        return receipt

    def attempt(self) -> Receipt:
        """One request for what is missing; the file gets its name if it is whole then."""
        total = self._receive(self.size())
        size = self.size()
        if total is not None and size != total:
            raise _Cut(f"the server announced {total:,} bytes and sent {size:,}", useless=size > total)
        digest, expected = _hash(self.part), self.sha256 or self.redirects.linked
        if expected and not digest.startswith(expected):
            self.mismatches += 1  # once may be two halves that do not belong together
            why = f"what came has SHA-256 {digest[:8]}, expected is {expected[:8]}: damaged, or another file by now"
            raise _Cut(why, useless=True, hopeless=self.mismatches > 1)
        os.replace(self.part, self.path)
        return Receipt(digest, size)

    def _receive(self, have: int) -> int | None:
        """Appends to the part; the size that the whole file should have, as the server says."""
        headers = {"User-Agent": "hrnet_fast", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.validator:
                headers["If-Range"] = self.validator
        with contextlib.ExitStack() as stack:
            try:
                request = urllib.request.Request(self.url, headers=headers)
                response = stack.enter_context(self.opener.open(request, timeout=self.timeout))
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 416 and have and error.headers.get("Content-Range", "") == f"bytes */{have}":
                        return have  # everything was there already
                    raise self._refused(error) from None
            except urllib.error.URLError as error:
                unknown = isinstance(error.reason, socket.gaierror)
                host = urlsplit(self.url).hostname
                raise _Cut(f"no connection to {host} ({_reason(error.reason)})", hopeless=unknown) from None
            except (*_BROKEN, ValueError) as error:
                raise _Cut(f"the server's answer is broken ({_reason(error)})") from None
            total = self._total(response, have)
            self.validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if self.validator and self.validator.startswith("W/"):
                self.validator = None
            if response.status != 206:
                have = 0
            room = shutil.disk_usage(self.part.parent).free
            if total is not None and total - have > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with self.part.open("ab" if have else "wb") as file:
                for chunk in self._chunks(response):
                    file.write(chunk)
                    have += len(chunk)
                    self.progress(have, total)
                file.flush()
                os.fsync(file.fileno())
        return total

    def _total(self, response: http.client.HTTPResponse, have: int) -> int | None:
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != have:
                raise _Cut("the server sends another part than was asked for", useless=True)
            if match[2] != "*":
                return int(match[2])
        elif response.status != 200:
            raise _Cut(f"the server answers {response.status} {response.reason}", hopeless=True)
        if response.headers.get_content_type() == "text/html":
            raise _Cut("the server sends a web page in place of the file: the link is dead", hopeless=True)
        length = response.headers.get("Content-Length", "")
        begun = have if response.status == 206 else 0
        return begun + int(length) if length.isdecimal() else None

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        began, came = time.monotonic(), 0
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (*_BROKEN, ValueError, OSError) as error:
                raise _Cut(f"the transfer broke off ({_reason(error)})") from None
            if not chunk:
                return
            yield chunk
            came += len(chunk)
            now = time.monotonic()
            if now - began > self.timeout:
                if came < _SLOWEST:
                    raise _Cut(f"the transfer came to a stop ({came} bytes in {now - began:.0f} s)")
                began, came = now, 0

    def _refused(self, error: urllib.error.HTTPError) -> _Cut:
        answer = f"the server answers {error.code} {error.reason}".splitlines()[0]
        if error.code in (404, 410):
            answer += ": the file is no longer there"
        return _Cut(answer, useless=error.code == 416, hopeless=error.code not in (*_LATER, 416))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
