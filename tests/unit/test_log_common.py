"""Requests of HTTP in the Common Log Format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from netsvc.config.settings import SETTINGS
from netsvc.guard.counters import Book, Tally
from netsvc.log.common import CommonLines, record_line
from netsvc.log.formats import TextLines
from netsvc.plan.plan import access_form
from netsvc.plan.record import RequestRecord
from netsvc.server.requests import LEFT, record_requests
from netsvc.services.files.download import BLOCK
from tests.builders.files import pattern
from tests.builders.files_http import FilesSite, producer_of
from tests.builders.http import Transport, connect, request

RECORD = RequestRecord(784111777.5, "192.0.2.7", "", b"GET /f HTTP/1.1", 200, 10, b"", b"curl/8")
_FIELD = r'"(?:[^"\\\x00-\x1f\x7f-\xff]|\\x[0-9A-F]{2})+"'
COMMON = re.compile(
    rf"(\S+) - (\S+) \[(\d\d/[A-Z][a-z]{{2}}/\d{{4}}:\d\d:\d\d:\d\d [+-]\d{{4}})\] ({_FIELD}) (\d{{3}}) (\d+|-)"
)
COMBINED = re.compile(rf"{COMMON.pattern} ({_FIELD}) ({_FIELD})")


def test_a_request_is_a_line_of_either_format(monkeypatch: pytest.MonkeyPatch) -> None:
    common = '192.0.2.7 - - [06/Nov/1994:08:49:37 +0000] "GET /f HTTP/1.1" 200 10'
    combined = f'{common} "-" "curl/8"'
    for form, line in (("common", common), ("combined", combined)):
        made = record_line(TextLines(), form)(RECORD)
        # Whatever the time zone of the machine is.
        assert re.sub(r"\[.*\]", "", made) == re.sub(r"\[.*\]", "", line) + "\n"
        assert COMBINED.fullmatch(made[:-1]) or COMMON.fullmatch(made[:-1])
    assert '" 304 - "' in CommonLines(combined=True).record(RECORD._replace(status=304, size=0))


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        (b'GET /"x\\ HTTP/1.1', r'"GET /\x22x\x5C HTTP/1.1"'),
        (b"GET /\xe5\x1b HTTP/1.1", r'"GET /\xE5\x1B HTTP/1.1"'),
        (b"", '"-"'),
    ],
)
def test_what_the_client_sent_is_escaped_as_nginx_does(sent: bytes, written: str) -> None:
    assert f"] {written} 200" in CommonLines(combined=False).record(RECORD._replace(line=sent))


@given(st.text(), st.text(), st.binary(), st.binary(), st.binary())
def test_any_request_is_one_line(host: str, user: str, line: bytes, referer: bytes, agent: bytes) -> None:
    record = RECORD._replace(host=host, user=user, line=line, referer=referer, agent=agent)
    written = CommonLines(combined=True).record(record)
    assert written.isascii()
    assert COMBINED.fullmatch(written.removesuffix("\n"))


def test_the_setting_names_a_form_and_a_file(tmp_path: Path) -> None:
    setting = SETTINGS["access"]
    assert access_form(setting.parse(f"combined:{tmp_path}/a")) == ("combined", f"{tmp_path}/a")
    assert access_form(setting.parse("common:a")) == ("common", str(Path("a").resolve()))
    assert access_form(setting.parse("other:a")) == ("", str(Path("other:a").resolve()))
    assert access_form("log") == ("", "log")
    for wrong in ("combined:", "common:a\0b"):
        with pytest.raises(ValueError, match="combined:"):
            setting.parse(wrong)


class Site(FilesSite):
    """Files whose requests are recorded."""

    def __init__(self, root: Path, *, has_requests: bool = True) -> None:
        super().__init__(root)
        self.records: list[RequestRecord] = []
        self.book = Book()
        self.book.record = self.records.append
        self.book.has_requests = has_requests
        record_requests(self.factory, self.book)


def test_each_request_is_recorded_when_it_has_ended(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("f", b"0123456789")
    for _ in range(2):
        site.ask("/f?a", Referer="http://a.example/", User_Agent="browser")
    site.ask("/missing")
    site.send(b"nonsense\r\n\r\n").end()
    whole, again, missing, nonsense = site.records
    assert whole[1:] == ("127.0.0.1", "", b"GET /f?a HTTP/1.1", 200, 10, b"http://a.example/", b"browser")
    assert again[1:] == whole[1:]
    assert (missing.status, missing.size) == (404, 14)
    assert (nonsense.line, nonsense.status) == (b"", 501)
    site.factory.close()
    site.core.stop()


def test_a_download_that_is_cut_off_has_the_bytes_so_far(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("big", pattern(3 * BLOCK))
    transport = connect(site.factory, Transport())
    transport.reads_nothing = True
    transport.protocol.dataReceived(request("/big"))
    producer_of(transport).resumeProducing()
    producer_of(transport).stopProducing()
    transport.protocol.connectionLost(Failure(ConnectionDone()))
    [record] = site.records
    assert (record.status, record.size) == (200, BLOCK)
    waiting = site.send(request("/big?sha256"))
    waiting.protocol.connectionLost(Failure(ConnectionDone()))
    assert site.records[-1].status == LEFT
    site.factory.close()
    site.core.stop()


def test_where_connections_are_recorded_requests_are_not(tmp_path: Path) -> None:
    site = Site(tmp_path, has_requests=False)
    site.ask("/missing")
    assert site.records == []
    site.factory.close()
    site.core.stop()
    other = Factory()
    site.book.has_requests = True
    record_requests(other, site.book)
    assert not hasattr(other, "request_ended")
    # And the other way round.
    Tally("files", "http", "stream", site.book).ended(("127.0.0.1", 1), (0, 0, None, None), 0.0, ("peer", None))
    assert site.records == []
