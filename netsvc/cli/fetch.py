"""Downloads over HTTP, HTTPS and TFTP: several at a time, resumed where that is possible, and tried again."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import queue
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from netsvc import __version__
from netsvc.base.files import give_name, read_file, write_atomic
from netsvc.base.paths import open_directory
from netsvc.base.text import escape
from netsvc.cli.errors import AgainError, ClientError, distrust, reason
from netsvc.cli.sink import Sink
from netsvc.cli.tftp import download, is_tftp, parse_url

__all__ = ["ChecksumError", "Fetcher", "PartFile", "RemoteFile", "fetch_all", "file_name", "is_url", "make_opener"]

_BLOCK = 256 * 1024
#: Bytes of the file that says how to resume.
_STATE_LIMIT = 64 * 1024
#: Statuses that may be another one later (RFC 9110, RFC 6585).
_FOR_NOW = frozenset({408, 429, 500, 502, 503, 504})
#: Seconds between two tries at most, and at most if the server names them.
MOST_PAUSE, MOST_RETRY_AFTER = 30.0, 120.0
#: Seconds that a date must be older than the answer to identify the content (RFC 9110, section 8.8.2.2).
_SETTLED = 60.0
#: The SHA-256 in Repr-Digest (RFC 9530, section 3), in base64.
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class ChecksumError(ClientError):
    """The content has another SHA-256 than the one that was given, or that the server has announced."""


@dataclass(frozen=True)
class RemoteFile:
    """What is downloaded, and the SHA-256 that it must have, in hexadecimal."""

    url: str
    sha256: str | None = None


class PartFile:
    """`NAME.part`, which becomes NAME when it is complete, and `NAME.part.json`, which says how to resume it.

    A context manager: what is incomplete stays. Raises `ClientError` on entry if another process writes it, and
    `OSError`.
    """

    def __init__(self, path: Path, url: str, force: bool) -> None:
        self._path, self._force, self._url = path, force, url
        self._part = path.with_name(f"{path.name}.part")
        self._state = path.with_name(f"{path.name}.part.json")
        self.position = 0
        self.validator: str | None = None
        self.size: int | None = None
        self._descriptor = -1

    def __enter__(self) -> PartFile:
        # A link that has this name is not followed.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._part, flags, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            name = escape(str(self._part), 4096)
            raise ClientError(f"{name}: another process downloads it; wait for that one, or use -o") from None
        self._resume()
        return self

    def __exit__(self, *failure: object) -> None:
        if not self.position:
            # Nothing to resume. After `keep` and `discard` it has gone.
            self._part.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _resume(self) -> None:
        have = os.fstat(self._descriptor).st_size
        try:
            state = json.loads(read_file(self._state, _STATE_LIMIT))
            url, validator, size = state["url"], state["validator"], state["size"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        usable = url == self._url and isinstance(validator, str) and validator.isprintable() and isinstance(size, int)
        if usable and 0 < have <= size:
            self.validator, self.size = validator, size
            # One byte at least is asked for, so that the server says whether the file is the same.
            self.position = min(have, size - 1)
            os.ftruncate(self._descriptor, self.position)
            os.lseek(self._descriptor, self.position, os.SEEK_SET)

    def start_over(self, url: str, validator: str | None, size: int | None) -> None:
        """See `Sink`."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.position, self.validator, self.size = 0, validator, size
        if validator is None or size is None:
            self._state.unlink(missing_ok=True)
        else:
            write_atomic(self._state, json.dumps({"url": url, "validator": validator, "size": size}))

    def write(self, data: bytes) -> None:
        """See `Sink`."""
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            self.position += written
            rest = rest[written:]

    def sha256(self) -> str:
        """See `Sink`."""
        with open(self._part, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def discard(self) -> None:
        """See `Sink`."""
        self._part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def keep(self) -> None:
        """See `Sink`. Without `force` an existing file is not replaced: `ClientError`."""
        os.fsync(self._descriptor)
        directory = open_directory(self._path.parent)
        try:
            give_name(self._part.name, self._path.name, directory, replace=self._force)
        except FileExistsError:
            name = escape(str(self._path), 4096)
            raise ClientError(f"{name} already exists; the download is {escape(self._part.name, 4096)}") from None
        finally:
            os.close(directory)
        self._part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but not from https to http."""

    def redirect_request(  # noqa: PLR0917  (as in urllib)
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """Return the next request. Raises `ClientError`."""
        if req.type == "https" and not newurl.startswith("https:"):
            raise ClientError(f"{escape(req.full_url, 4096)}: the server redirects to {escape(newurl)}, without TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def make_opener(tls: ssl.SSLContext) -> Callable[[Request, float], Any]:
    """Return what opens a request, with a time-out in seconds. Proxies are taken from the environment."""
    opener = OpenerDirector()
    # Not those of `build_opener`, which opens files as well.
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(context=tls)):
        opener.add_handler(handler)
    for other in (HTTPDefaultErrorHandler(), _Redirects(), HTTPErrorProcessor()):
        opener.add_handler(other)
    return lambda request, timeout: opener.open(request, timeout=timeout)


@dataclass(frozen=True)
class Fetcher:
    """How downloads are made: `open` as of `make_opener`, seconds of silence, tries without progress, and the pause."""

    open: Callable[[Request, float], Any]
    timeout: float = 30.0
    retries: int = 5
    sleep: Callable[[float], object] = time.sleep

    def fetch(self, download: RemoteFile, sink: Sink, shown: Callable[[int, int | None], object]) -> None:
        """Download to a sink. `shown` is called with the position and the size, if it is known. Raises `ClientError`.

        An answer that is cut off is resumed; one that cannot be resumed starts over.
        """
        failed = 0
        while True:
            before = sink.position
            try:
                announced = self._try(download.url, sink, shown)
                break
            except AgainError as again:
                failed = 1 if sink.position > before else failed + 1
                if failed > self.retries:
                    raise ClientError(f"{escape(download.url, 4096)}: {again}; tried {failed} times") from None
                self.sleep(max(again.pause, min(MOST_PAUSE, 2.0 ** (failed - 1))))
        self._check(download, announced, sink)
        sink.keep()

    def _check(self, download: RemoteFile, announced: str | None, sink: Sink) -> None:
        given = download.sha256.lower() if download.sha256 is not None else None
        wanted = {each: whose for each, whose in ((announced, "server"), (given, "user")) if each is not None}
        if not wanted:
            return
        found = sink.sha256()
        for digest, whose in wanted.items():
            if digest != found:
                sink.discard()
                said = f", not {digest} as the server has announced" if whose == "server" else ""
                raise ChecksumError(f"{escape(download.url, 4096)}: its SHA-256 is {found}{said}; it is not kept")

    def _try(self, url: str, sink: Sink, shown: Callable[[int, int | None], object]) -> str | None:
        """Download the rest; return the SHA-256 that the server has announced, in hexadecimal."""
        if is_tftp(url):
            download(url, sink, shown, self.timeout)
            return None
        headers = {"User-Agent": f"netsvc/{__version__}", "Accept-Encoding": "identity"}
        headers["Want-Repr-Digest"] = "sha-256=10"
        if sink.position and sink.validator is not None:
            headers |= {"Range": f"bytes={sink.position}-", "If-Range": sink.validator}
        with self._opened(url, headers, sink) as answer:
            self._take(url, answer, sink)
            shown(sink.position, sink.size)
            while data := self._read(answer):
                sink.write(data)
                shown(sink.position, sink.size)
        if sink.size is not None and sink.position != sink.size:
            raise AgainError(f"cut off after {sink.position} of {sink.size} bytes")
        return _announced(answer.headers)

    def _opened(self, url: str, headers: dict[str, str], sink: Sink) -> Any:
        try:
            # `is_url` has checked the scheme.
            return self.open(Request(_quoted(url), headers=headers), self.timeout)  # noqa: S310
        except HTTPError as error:
            raise self._refused(url, error, sink) from None
        except URLError as error:
            cause = error.reason
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise ClientError(f"{escape(url, 4096)}: {distrust(cause)}") from None
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
                raise ClientError(f"{escape(url, 4096)}: TLS failed ({reason(cause)}); is it http:?") from None
            raise AgainError(reason(cause) if isinstance(cause, OSError) else escape(str(cause))) from None
        except OSError as error:
            raise AgainError(reason(error)) from None
        except HTTPException as error:
            raise AgainError(f"no answer of HTTP ({type(error).__name__})") from None

    def _read(self, answer: Any) -> bytes:
        try:
            data: bytes = answer.read(_BLOCK)
        except OSError as error:
            raise AgainError(reason(error)) from None
        except HTTPException as error:
            raise AgainError(f"cut off ({type(error).__name__})") from None
        return data

    def _take(self, url: str, answer: Any, sink: Sink) -> None:
        """Prepare the sink for what an answer brings."""
        if answer.status == 206:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if match is None or (int(match[1]), int(match[3])) != (sink.position, sink.size):
                sink.start_over(url, None, None)
                raise AgainError("the server sent another part than the one asked for")
            return
        length = answer.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdecimal() else None
        sink.start_over(url, _validator(answer.headers), size)

    def _refused(self, url: str, error: HTTPError, sink: Sink) -> Exception:
        """Return the error to raise for a status that is none of success."""
        with error:
            status = f"the server answered {error.code} {escape(str(error.reason))}"
            if error.code == 416 and sink.position:
                sink.start_over(url, None, None)
                return AgainError(status)
            if error.code in _FOR_NOW:
                after = error.headers.get("Retry-After", "")
                pause = float(after[:9]) if after.isascii() and after.isdecimal() else 0.0
                return AgainError(status, min(pause, MOST_RETRY_AFTER))
            return ClientError(f"{escape(url, 4096)}: {status}")


def _announced(headers: Any) -> str | None:
    found = _DIGEST.search(", ".join(headers.get_all("Repr-Digest", [])))
    # It is that of the content as it is encoded.
    if found is None or headers.get("Content-Encoding", "identity") != "identity":
        return None
    return base64.b64decode(found[1]).hex()


def _validator(headers: Any) -> str | None:
    """Return what identifies the content byte by byte, for If-Range: a strong ETag, or a date that is old enough."""
    tag = headers.get("ETag", "")
    if tag:
        return tag if tag.startswith('"') else None
    try:
        modified, sent = headers["Last-Modified"], headers["Date"]
        settled = (parsedate_to_datetime(sent) - parsedate_to_datetime(modified)).total_seconds() >= _SETTLED
    except (TypeError, ValueError):
        return None
    return str(modified) if settled else None


def is_url(word: str) -> bool:
    """Return whether a word is a URL of HTTP or TFTP."""
    return word.lower().startswith(("http://", "https://")) or is_tftp(word)


def file_name(url: str) -> str:
    """Return the name of the file that a URL names. Raises `ValueError` with one line."""
    if is_tftp(url):
        name = os.fsdecode(parse_url(url).name.rpartition(b"/")[2])
        if name in ("", ".", ".."):
            raise ValueError(f"{escape(url, 4096)} does not name a file; name one with -o FILE")
        return name
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise ValueError(f"{escape(url, 4096)} is not a URL such as http://host/file")
    if parts.username is not None:
        raise ValueError("a URL with a user name and password is not supported")
    name = unquote(parts.path.rpartition("/")[2])
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{escape(url, 4096)} does not name a file; name one with -o FILE")
    return name


def _quoted(url: str) -> str:
    return quote(url.partition("#")[0], safe="%/:=&?~+!$,;'@()*[]")


def fetch_all(jobs: Sequence[Callable[[], None]], at_once: int) -> list[ClientError]:
    """Run jobs in threads, `at_once` at a time; return what they raise. A signal ends the wait.

    Another error than `ClientError` and `OSError` is raised.
    """
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        with suppress(queue.Empty):
            while True:
                job = waiting.get_nowait()
                try:
                    job()
                except BaseException as error:  # noqa: BLE001  (the main thread raises it)
                    ended.put(error)
                else:
                    ended.put(None)

    for _ in range(min(at_once, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    failures: list[ClientError] = []
    for _ in jobs:
        error = ended.get()
        if isinstance(error, OSError):
            error = ClientError(f"{escape(str(error.filename or 'download'), 4096)}: {reason(error)}")
        if isinstance(error, ClientError):
            failures.append(error)
        elif error is not None:
            raise error
    return failures
