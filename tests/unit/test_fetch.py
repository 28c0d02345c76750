"""Downloads of `netsvc get` over HTTP, from a server that is a function."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.cli.errors import ClientError
from netsvc.cli.fetch import ChecksumError, Fetcher, PartFile, RemoteFile, fetch_all, file_name

URL = "http://a.example/f.bin"
DATA = bytes(range(256)) * 40


def headers(**given: str) -> Message:
    message = Message()
    for name, value in given.items():
        message[name.replace("_", "-")] = value
    return message


class Answer(io.BytesIO):
    """An answer, which ends with `error` if one is given."""

    def __init__(self, status: int, body: bytes, given: Message, error: Exception | None = None) -> None:
        super().__init__(body)
        self.status, self.headers, self.error = status, given, error

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(100)
        if not data and self.error is not None:
            raise self.error
        return data


class Server:
    """Sends a file, of which it cuts off the answers after the given numbers of bytes; None is all."""

    def __init__(self, *cuts: int | Exception | None, data: bytes = DATA, etag: str = '"1"') -> None:
        self.cuts = list(cuts)
        self.data, self.etag = data, etag
        self.ranges: list[str | None] = []
        #: The header Repr-Digest, and Content-Encoding, if there are any.
        self.digest = self.coding = ""
        self.pauses: list[float] = []
        self.fetcher = Fetcher(self.open, retries=2, sleep=self.pauses.append)

    def open(self, request: Request, timeout: float) -> Any:
        cut = self.cuts.pop(0) if self.cuts else None
        if isinstance(cut, Exception):
            raise cut
        start, status = 0, 200
        self.ranges.append(request.get_header("Range"))
        if self.ranges[-1] is not None and request.get_header("If-range") == self.etag:
            start, status = int(self.ranges[-1].removeprefix("bytes=").rstrip("-")), 206
        rest = self.data[start:]
        given = headers(Content_Length=str(len(rest)), ETag=self.etag)
        if self.digest:
            assert request.get_header("Want-repr-digest") == "sha-256=10"
            given["Repr-Digest"] = self.digest
        if self.coding:
            given["Content-Encoding"] = self.coding
        if status == 206:
            given["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        return Answer(status, rest[:cut], given)

    def fetch(self, path: Path, sha256: str | None = None, url: str = URL) -> None:
        with PartFile(path, url, force=False) as part:
            self.fetcher.fetch(RemoteFile(url, sha256), part, lambda position, size: None)


def refusal(code: int, **given: str) -> HTTPError:
    return HTTPError(URL, code, "reason", headers(**given), io.BytesIO())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "f.bin"


def test_a_file_gets_its_name_when_it_is_complete(path: Path) -> None:
    Server().fetch(path, hashlib.sha256(DATA).hexdigest().upper())
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]


def announced(data: bytes) -> str:
    return f"md5=:AA==:, sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_what_the_server_announces_is_checked_after_all_parts(path: Path) -> None:
    server = Server(1000, None)
    server.digest = announced(DATA)
    server.fetch(path)
    assert path.read_bytes() == DATA
    assert server.ranges == [None, "bytes=1000-"]


def test_a_content_that_the_server_has_not_announced_is_not_kept(path: Path) -> None:
    server = Server()
    server.digest = announced(b"another")
    with pytest.raises(ChecksumError) as caught:
        server.fetch(path, hashlib.sha256(DATA).hexdigest())
    assert hashlib.sha256(b"another").hexdigest() in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_an_announcement_that_is_of_something_else_or_malformed_is_ignored(path: Path) -> None:
    server = Server()
    server.digest, server.coding = announced(b"another"), "gzip"
    server.fetch(path)
    server = Server()
    server.digest = "sha-256=:AA:"
    server.fetch(path.with_name("other"))
    assert path.with_name("other").read_bytes() == DATA


def test_what_is_cut_off_is_resumed(path: Path) -> None:
    server = Server(1000, 500, None)
    server.fetch(path)
    assert path.read_bytes() == DATA
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-"]
    assert server.pauses == [1.0, 1.0]


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError(), IncompleteRead(b"")])
def test_an_error_while_it_is_read_cuts_it_off(path: Path, error: Exception) -> None:
    server = Server()
    broken = Answer(200, DATA[:300], headers(Content_Length=str(len(DATA)), ETag='"1"'), error)
    answers = [broken]

    def answer(request: Request, timeout: float) -> Any:
        return answers.pop() if answers else server.open(request, timeout)

    server.fetcher = Fetcher(answer, sleep=server.pauses.append)
    server.fetch(path)
    assert (path.read_bytes(), server.ranges) == (DATA, ["bytes=300-"])


def test_another_process_resumes_it(path: Path) -> None:
    failing = Server(1000, *([URLError(ConnectionRefusedError())] * 3))
    with pytest.raises(ClientError):
        failing.fetch(path)
    assert not path.exists()
    assert failing.pauses == [1.0, 2.0]
    server = Server()
    server.fetch(path)
    assert (path.read_bytes(), server.ranges) == (DATA, ["bytes=1000-"])


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        ({"url": URL, "validator": '"1"', "size": len(DATA)}, "bytes=1000-"),
        ({"url": URL, "validator": '"1"', "size": 1000}, "bytes=999-"),
        ({"url": URL, "validator": '"1"', "size": 999}, None),
        ({"url": URL + "2", "validator": '"1"', "size": len(DATA)}, None),
        ({"url": URL, "validator": '"1"\r\nX: y', "size": len(DATA)}, None),
        ({"url": URL, "validator": 1, "size": len(DATA)}, None),
        ([], None),
        ("x" * 100_000, None),
    ],
)
def test_only_a_part_of_the_same_file_is_resumed(path: Path, state: object, asked: str | None) -> None:
    path.with_name("f.bin.part").write_bytes(DATA[:1000])
    path.with_name("f.bin.part.json").write_text(json.dumps(state))
    server = Server()
    server.fetch(path)
    assert (path.read_bytes(), server.ranges[0]) == (DATA, asked)


def test_a_file_that_has_changed_starts_over(path: Path) -> None:
    with pytest.raises(ClientError):
        Server(1000, *([TimeoutError()] * 3)).fetch(path)
    changed = Server(data=DATA[::-1], etag='"2"')
    changed.fetch(path)
    assert (path.read_bytes(), changed.ranges) == (DATA[::-1], ["bytes=1000-"])


def test_a_weak_tag_resumes_nothing(path: Path) -> None:
    server = Server(1000, etag='W/"1"')
    server.fetch(path)
    assert (path.read_bytes(), server.ranges) == (DATA, [None, None])


@pytest.mark.parametrize("code", [429, 503])
def test_a_refusal_for_a_while_is_waited_for(path: Path, code: int) -> None:
    server = Server(refusal(code, Retry_After="7"), refusal(code, Retry_After="99999"))
    server.fetch(path)
    assert (path.read_bytes(), server.pauses) == (DATA, [7.0, 120.0])


@pytest.mark.parametrize("code", [403, 404, 410])
def test_another_refusal_ends_it_and_leaves_nothing(path: Path, code: int) -> None:
    server = Server(refusal(code))
    with pytest.raises(ClientError, match=str(code)):
        server.fetch(path)
    assert (server.pauses, list(path.parent.iterdir())) == ([], [])


def test_another_checksum_leaves_nothing(path: Path) -> None:
    with pytest.raises(ChecksumError):
        Server().fetch(path, "0" * 64)
    assert list(path.parent.iterdir()) == []


def test_an_existing_file_stays(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ClientError):
        Server().fetch(path)
    assert path.read_bytes() == b"old"


def test_two_processes_do_not_write_the_same_part(path: Path) -> None:
    with PartFile(path, URL, force=False), pytest.raises(ClientError), PartFile(path, URL, force=False):
        pass


@pytest.mark.parametrize(
    ("url", "name"),
    [(URL, "f.bin"), ("https://a/%E6%96%87%20b.txt?x=/y", "文 b.txt"), ("HTTP://[::1]:80/a/b#c", "b")],
)
def test_the_name_of_the_file(url: str, name: str) -> None:
    assert file_name(url) == name


@given(st.text(max_size=30))
def test_no_url_names_a_file_elsewhere(text: str) -> None:
    try:
        name = file_name(f"http://a/{text}")
    except ValueError:
        return
    assert "/" not in name and "\0" not in name and name not in ("", ".", "..")


def test_jobs_run_a_number_at_a_time_and_report_their_errors() -> None:
    def fails(error: Exception) -> Callable[[], None]:
        def job() -> None:
            raise error

        return job

    done: list[int] = []
    jobs = [
        lambda: done.append(1),
        fails(ClientError("a")),
        fails(OSError(28, "No space left")),
        lambda: done.append(2),
    ]
    assert len(fetch_all(jobs, 1)) == 2
    assert done == [1, 2]
    with pytest.raises(ZeroDivisionError):
        fetch_all([fails(ZeroDivisionError())], 4)
