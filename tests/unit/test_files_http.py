"""Files over HTTP: what is answered to which request, and recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from email import message_from_bytes
from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from netsvc.services.files.core import ON_ITS_WAY
from netsvc.services.files.download import BLOCK, SMALL
from netsvc.services.files.http import LIMITS
from tests.builders.files import open_below, pattern
from tests.builders.files_http import DATE, MODIFIED, FilesSite, producer_of
from tests.builders.http import Transport, connect, read_replies, request


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilesSite]:
    made = FilesSite(tmp_path)
    made.write("f.txt", b"0123456789")
    made.write("d/index.html", b"<p>hello")
    made.write(".hidden", b"h")
    yield made
    made.factory.close()
    assert made.core.downloads == 0
    made.core.stop()
    assert made.clock.getDelayedCalls() == []
    assert open_below(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, 3 * BLOCK + 1])
def test_a_file_of_any_size_is_sent_with_what_is_known_about_it(site: FilesSite, size: int) -> None:
    site.write("data.bin", pattern(size))
    reply = site.ask("/data.bin")
    assert (reply.code, reply.body) == (200, pattern(size))
    assert reply.headers["content-length"] == str(size)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["last-modified"] == DATE
    assert reply.headers["accept-ranges"] == "bytes"
    head = site.ask("/data.bin", "HEAD")
    assert (head.code, head.body, head.headers["x-length"]) == (200, b"", str(size))
    assert {name: head.headers[name] for name in ("etag", "content-type")} == {
        name: reply.headers[name] for name in ("etag", "content-type")
    }
    assert site.results == [("data.bin", size, "sent", "GET", 200), ("data.bin", 0, "sent", "HEAD", 200)]


def test_several_files_are_sent_on_one_connection(site: FilesSite) -> None:
    site.write("big", pattern(2 * BLOCK))
    transport = site.send(request("/f.txt") + request("/big") + request("/missing") + request("/f.txt"))
    assert [(each.code, len(each.body)) for each in read_replies(transport.value())] == [
        *((200, 10), (200, 2 * BLOCK), (404, 14), (200, 10)),
    ]
    assert not transport.ended


@pytest.mark.parametrize(
    ("target", "status", "result"),
    [
        ("/missing", 404, "no such file"),
        ("/f.txt/", 404, "no such file"),
        ("/.hidden", 404, "hidden"),
        ("/../f.txt", 404, "outside the root"),
        ("/%2e%2e/f.txt", 404, "outside the root"),
        ("/..%2ff.txt", 404, "outside the root"),
        ("/%00", 404, "not a file name"),
        ("/f.txt%00", 404, "not a file name"),
        ("/d", 301, "not a regular file"),
    ],
)
def test_what_is_no_file_is_not_sent_and_only_the_log_says_why(
    site: FilesSite, target: str, status: int, result: str
) -> None:
    reply = site.ask(target)
    assert reply.code == status
    assert reply.body.decode() == f"{status} {HTTPStatus(status).phrase}\n"
    assert [each[1:] for each in site.results] == [(0, result, "GET", status)]


def test_a_directory_is_its_index_and_has_a_slash_on_this_site(site: FilesSite) -> None:
    assert site.ask("/d/").body == b"<p>hello"
    assert site.ask("/d?a=b").headers["location"] == "/d/?a=b"
    # It would be another site.
    assert site.ask("//d").headers["location"] == "/d/"


def test_a_file_is_found_by_its_name_in_any_encoding(site: FilesSite) -> None:
    site.write("学习.txt", b"study")
    for target in ("/学习.txt", "/%E5%AD%A6%E4%B9%A0.txt", "/%D1%A7%CF%B0.txt"):
        reply = site.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        [answer] = read_replies(reply.value())
        assert answer.body == b"study"
        assert answer.headers["content-disposition"].endswith("filename*=UTF-8''%E5%AD%A6%E4%B9%A0.txt")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.TXT", "text/plain; charset=utf-8"),
        ("a.html", "text/html; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.png", "image/png"),
        ("a.tar.gz", "application/gzip"),
        ("a", "application/octet-stream"),
        (b"a.\xff", "application/octet-stream"),
    ],
)
def test_the_type_is_that_of_the_ending(site: FilesSite, name: str | bytes, kind: str) -> None:
    site.write(name, b"x")
    assert site.ask("/a." + "%FF" if isinstance(name, bytes) else f"/{name}").headers["content-type"] == kind


def test_other_methods_are_refused_with_those_that_are_not(site: FilesSite) -> None:
    for method in ("POST", "PUT", "DELETE"):
        reply = site.ask("/f.txt", method)
        assert (reply.code, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    reply = site.ask("*", "OPTIONS")
    assert (reply.code, reply.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert "content-length" not in reply.headers
    # Whatever they would upload; but content in a GET has no meaning.
    reply = site.ask("/f.txt", "POST", Content_Length="1")
    assert (reply.code, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert site.ask("/f.txt", "GET", Content_Length="1").code == 413


def test_a_request_is_carried_out_only_if_its_condition_holds(site: FilesSite) -> None:
    tag = site.ask("/f.txt").headers["etag"]
    reply = site.ask("/f.txt", If_None_Match=tag)
    assert (reply.code, reply.body, reply.headers["etag"]) == (304, b"", tag)
    assert "content-length" not in reply.headers
    assert site.ask("/f.txt", If_Modified_Since=DATE).code == 304
    assert site.ask("/f.txt", If_Match='"other"').code == 412
    assert site.ask("/f.txt", If_Match=tag).code == 200
    os.utime(site.root / "f.txt", (MODIFIED + 1, MODIFIED + 1))
    assert site.ask("/f.txt", If_None_Match=tag).code == 200
    assert site.ask("/f.txt", If_Modified_Since=DATE).code == 200
    assert [each[2] for each in site.results[1:4]] == ["not modified", "not modified", "precondition failed"]


def test_a_file_that_has_just_changed_has_a_weak_tag_and_is_sent_whole(
    site: FilesSite,
) -> None:
    (site.root / "new").write_bytes(b"0123456789")
    tag = site.ask("/new").headers["etag"]
    assert tag.startswith("W/")
    reply = site.ask("/new", Range="bytes=0-0", If_Range=tag.removeprefix("W/"))
    assert (reply.code, reply.body) == (200, b"0123456789")


@pytest.mark.parametrize(
    ("asked", "place", "body"),
    [
        ("bytes=0-0", "bytes 0-0/10", b"0"),
        ("bytes=3-", "bytes 3-9/10", b"3456789"),
        ("bytes=-3", "bytes 7-9/10", b"789"),
        ("bytes=8-100", "bytes 8-9/10", b"89"),
    ],
)
def test_a_range_of_a_file_is_sent(site: FilesSite, asked: str, place: str, body: bytes) -> None:
    reply = site.ask("/f.txt", Range=asked)
    assert (reply.code, reply.body, reply.headers["content-range"]) == (206, body, place)
    assert site.results == [("f.txt", len(body), "sent", "GET", 206)]


def test_a_range_beyond_the_file_is_answered_with_its_size(site: FilesSite) -> None:
    reply = site.ask("/f.txt", Range="bytes=10-")
    assert (reply.code, reply.headers["content-range"]) == (416, "bytes */10")


def test_several_ranges_are_sent_in_parts(site: FilesSite) -> None:
    size = 3 * BLOCK
    site.write("big", pattern(size))
    ranges = [(5, 10), (BLOCK, 2 * BLOCK + 1), (size - 1, size)]
    reply = site.ask("/big", Range="bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in ranges))
    assert reply.code == 206
    message = message_from_bytes(f"Content-Type: {reply.headers['content-type']}\r\n\r\n".encode() + reply.body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    for part, (start, stop) in zip(parts, ranges, strict=True):
        assert not isinstance(part, str)
        assert part["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.get_payload(decode=True) == pattern(size)[start:stop]
    sent = sum(stop - start for start, stop in ranges)
    assert site.results == [("big", sent, "sent", "GET", 206)]


def test_a_file_that_shrinks_is_a_reset(site: FilesSite) -> None:
    site.write("big", pattern(2 * BLOCK))
    transport = connect(site.factory, Transport())
    transport.reads_nothing = True
    transport.protocol.dataReceived(request("/big"))
    os.truncate(site.root / "big", 0)
    producer_of(transport).resumeProducing()
    assert transport.aborted
    assert [each[1:3] for each in site.results] == [(0, "file shrank")]


def test_a_client_that_goes_away_leaves_nothing_open_and_a_record(site: FilesSite) -> None:
    site.write("big", pattern(3 * BLOCK))
    transport = connect(site.factory, Transport())
    transport.reads_nothing = True
    transport.protocol.dataReceived(request("/big"))
    producer_of(transport).resumeProducing()
    producer_of(transport).stopProducing()
    transport.protocol.connectionLost(Failure(ConnectionDone()))
    assert site.results == [("big", BLOCK, "client went away", "GET", 200)]
    assert site.core.downloads == 0


def test_a_server_without_a_place_for_another_download_says_when_to_try_again(tmp_path: Path) -> None:
    site = FilesSite(tmp_path, downloads=1)
    site.write("big", pattern(3 * BLOCK))
    first = connect(site.factory, Transport())
    first.reads_nothing = True
    first.protocol.dataReceived(request("/big"))
    reply = site.ask("/big")
    assert (reply.code, int(reply.headers["retry-after"]) > 0) == (503, True)
    first.protocol.abort()
    producer_of(first).stopProducing()
    site.core.stop()


def test_a_drain_ends_idle_connections_and_lets_downloads_end(site: FilesSite) -> None:
    site.write("big", pattern(3 * BLOCK))
    idle, busy = site.send(request("/f.txt")), connect(site.factory, Transport())
    busy.reads_nothing = True
    busy.protocol.dataReceived(request("/big"))
    done = site.core.drain()
    assert done is not None
    site.clock.advance(ON_ITS_WAY)
    assert (idle.gone, busy.gone) == (True, False)
    producer = producer_of(busy)
    while producer_of(busy) is producer:
        producer.resumeProducing()
    assert done.called
    [reply] = read_replies(busy.value())
    assert reply.body == pattern(3 * BLOCK)
    assert busy.gone


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    st.text(max_size=20), st.lists(st.tuples(st.sampled_from(["Range", "If-Range", "If-Match"]), st.text(max_size=30)))
)
def test_any_target_and_header_get_one_answer(site: FilesSite, target: str, headers: list[tuple[str, str]]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers if value.isprintable())
    path = "".join(each for each in target if each.isprintable() and each not in " #")
    transport = site.send(f"GET /{path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode()[: LIMITS.head])
    [reply] = read_replies(transport.value())
    assert reply.code in (200, 206, 301, 304, 400, 404, 412, 416)
    transport.end()
