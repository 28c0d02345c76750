"""A failing test shows its own line and the code of the service, and nothing of netsvc between them."""

from __future__ import annotations

import re
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netsvc.coroutine import Stream
from netsvc.stream import StreamProtocol
from netsvc.testing import check_service, connect, connect_datagram, serve


class Fails(StreamProtocol):
    def dataReceived(self, data: bytes) -> None:
        raise ZeroDivisionError


async def fails(stream: Stream) -> None:
    with stream.timeout(5):
        await stream.read()
    raise ZeroDivisionError


def fails_to_answer(data: bytes, peer: Any) -> bytes:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: connect("echo").expect(b"x"), []),
        (lambda: connect("echo").expect_end(), []),
        (lambda: connect("no-such-service"), []),
        (lambda: connect("echo", "udp"), []),
        (lambda: connect(5), []),
        (lambda: serve("reply", other=1), []),
        (lambda: check_service(Fails), []),
        (lambda: connect(Fails).send(b"x"), ["dataReceived"]),
        (lambda: connect(fails).send(b"x"), ["fails"]),
        (lambda: connect_datagram(fails_to_answer).send(b"x"), ["fails_to_answer"]),
    ],
)
def test_the_line_of_the_test_and_the_code_that_failed_are_shown(call: Callable[[], object], names: list[str]) -> None:
    with pytest.raises((AssertionError, ValueError, TypeError, ZeroDivisionError)) as raised:
        call()
    shown = [entry.name for entry in raised.traceback if not entry.ishidden(raised)]
    assert shown[2:] == names
    assert all(Path(entry.path).name == "frames.py" for entry in raised.traceback if entry.ishidden(raised))


def test_an_exception_after_a_pause_shows_the_same() -> None:
    async def late(stream: Stream) -> None:
        try:
            with stream.timeout(5):
                await stream.read()
        except TimeoutError:
            raise ZeroDivisionError from None

    client = connect(late)
    client.served.clock.advance(5)
    with pytest.raises(ZeroDivisionError) as raised:
        client.expect_end()
    assert [entry.name for entry in raised.traceback if not entry.ishidden(raised)][1:] == ["late"]


def test_a_fault_of_netsvc_itself_keeps_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("in netsvc")

    client = connect_datagram("echo")
    monkeypatch.setattr(type(client.port), "read_batch", broken)
    with pytest.raises(RuntimeError) as raised:
        client.send(b"x")
    assert [each.name for each in raised.traceback][-1] == "broken"


def test_unittest_shows_the_line_of_the_test_last() -> None:
    class Case(unittest.TestCase):
        def runTest(self) -> None:
            connect("echo").expect(b"x")

    result = unittest.TestResult()
    Case().run(result)
    [(_, text)] = result.failures
    assert re.findall(r'File "(.*)", line', text) == [__file__]
