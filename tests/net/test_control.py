"""A command is a line, from the same user alone, and its answer is lines of JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from netsvc.control.protocol import LONGEST_ANSWER, LONGEST_REQUEST, answer_bytes, peer_process, read_answer
from netsvc.control.server import MOST_CONNECTIONS, MOST_REQUESTS, PATIENCE, Control
from netsvc.plan.answer import Answer
from tests.builders.looks import control_names
from tests.conftest import LoggedErrors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


class Socket:
    """Stands in for the socket of a connection, at whose other end is a user."""

    def __init__(self, user: int | None) -> None:
        self._user = user

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        if self._user is None:
            raise OSError(errno.ENOTCONN, "gone")
        return b"".join(number.to_bytes(4, sys.byteorder) for number in (1, self._user, 2))


class Transport(StringTransport):
    aborted = False

    def __init__(self, user: int | None) -> None:
        super().__init__()
        self.socket = Socket(user)

    def abortConnection(self) -> None:
        self.aborted = True


class Asked:
    """A control with two commands, and connections to it in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.words: list[Sequence[str]] = []
        self.later: Deferred[Answer] = Deferred()
        commands: Any = {"now": self.now, "later": lambda words: self.later, "fail": lambda words: 1 / 0}
        self.control = Control(self.clock, "/etc/netsvc.toml", commands, 1)

    def now(self, words: Sequence[str]) -> Answer:
        self.words.append(words)
        return Answer(0, ["done"])

    def connect(self, user: int | None = None, *, gone: bool = False) -> tuple[Any, Transport]:
        protocol: Any = self.control._factory.buildProtocol(None)
        transport = Transport(None if gone else os.geteuid() if user is None else user)
        protocol.makeConnection(transport)
        return protocol, transport

    def end(self, protocol: Any) -> None:
        from twisted.internet.error import ConnectionDone
        from twisted.python.failure import Failure

        protocol.connectionLost(Failure(ConnectionDone()))
        assert self.clock.getDelayedCalls() == []


@pytest.mark.parametrize("parts", [[b"now a  b\n"], [bytes([each]) for each in b"now a  b\n"], [b"now a  b\nmore"]])
def test_a_request_is_a_line_with_the_command_and_its_words(parts: list[bytes]) -> None:
    asked = Asked()
    protocol, transport = asked.connect()
    for part in parts:
        protocol.dataReceived(part)
    assert transport.value() == b'{"out": "done"}\n{"status": 0}\n'
    assert transport.disconnecting
    assert asked.words == [["a", "b"]]
    protocol.dataReceived(b"now\n")
    assert len(asked.words) == 1
    asked.end(protocol)


def test_a_command_may_take_its_time() -> None:
    asked = Asked()
    protocol, transport = asked.connect()
    protocol.dataReceived(b"later\n")
    asked.clock.advance(10 * PATIENCE)
    assert transport.value() == b""
    asked.later.callback(Answer(1, ["no", "and no"]))
    assert read_answer(transport.value()) == Answer(1, ["no", "and no"])
    asked.clock.advance(PATIENCE)
    assert transport.aborted
    asked.end(protocol)


def test_whoever_leaves_before_the_answer_gets_none() -> None:
    asked = Asked()
    protocol, transport = asked.connect()
    protocol.dataReceived(b"later\n")
    asked.end(protocol)
    asked.later.callback(Answer(0, ["done"]))
    assert transport.value() == b""
    assert asked.clock.getDelayedCalls() == []


@pytest.mark.parametrize(("request_", "shown"), [(b"\x1b[2J x\n", r"\x1b[2J"), (b"\n", ""), (b"x\xffy\n", r"x\\xffy")])
def test_an_unknown_command_and_none_are_refused_and_shown_safely(request_: bytes, shown: str) -> None:
    asked = Asked()
    protocol, transport = asked.connect()
    protocol.dataReceived(request_)
    answer = read_answer(transport.value())
    assert answer.status == 1
    assert answer.lines[0].startswith(shown)
    assert answer.lines[0].endswith("now, later, fail")
    asked.end(protocol)


def test_a_command_that_fails_is_logged_and_answered(logged_errors: LoggedErrors) -> None:
    asked = Asked()
    protocol, transport = asked.connect()
    protocol.dataReceived(b"fail\n")
    answer = read_answer(transport.value())
    assert answer.status == 1
    assert "ZeroDivisionError" in answer.lines[0]
    assert logged_errors.flush(ZeroDivisionError)
    asked.end(protocol)


@pytest.mark.parametrize("size", [LONGEST_REQUEST - 1, LONGEST_REQUEST, LONGEST_REQUEST + 1, 1 << 20])
def test_a_request_is_bounded(size: int) -> None:
    asked = Asked()
    protocol, transport = asked.connect()
    protocol.dataReceived(b"x" * size)
    assert bool(transport.value()) is (size > LONGEST_REQUEST)
    protocol.dataReceived(b"\n")
    assert read_answer(transport.value()).status == 1
    asked.end(protocol)


def test_a_request_that_does_not_come_is_not_waited_for() -> None:
    asked = Asked()
    protocol, transport = asked.connect()
    protocol.dataReceived(b"no")
    asked.clock.advance(PATIENCE)
    assert transport.aborted
    asked.end(protocol)


def test_only_the_same_user_and_root_are_answered() -> None:
    asked = Asked()
    for user, gone, answered in ((os.geteuid(), False, True), (0, False, True), (4242, False, False), (0, True, False)):
        protocol, transport = asked.connect(user, gone=gone)
        protocol.dataReceived(b"now\n")
        assert bool(transport.value()) is answered is not transport.aborted
        asked.end(protocol)


def test_so_many_requests_at_a_time() -> None:
    asked = Asked()
    connections = [asked.connect() for _ in range(MOST_REQUESTS)]
    protocol, transport = asked.connect()
    # Not before it has asked: the answer could be lost.
    assert transport.value() == b""
    protocol.dataReceived(b"now\n")
    answer = read_answer(transport.value())
    assert answer.status == 1
    assert re.search(r"\b8\b.*try again", answer.lines[0])
    connections[0][0].dataReceived(b"now\n")
    assert read_answer(connections[0][1].value()).status == 0
    for each in (*connections, (protocol, transport)):
        each[0].connectionLost(None)
    protocol, transport = asked.connect()
    protocol.dataReceived(b"now\n")
    assert read_answer(transport.value()).status == 0


def test_so_many_connections_at_a_time() -> None:
    asked = Asked()
    connections = [asked.connect() for _ in range(MOST_CONNECTIONS)]
    assert not any(transport.aborted for _, transport in connections)
    assert asked.connect()[1].aborted


def test_those_who_may_not_ask_take_no_place() -> None:
    asked = Asked()
    others = [asked.connect(4242) for _ in range(2 * MOST_REQUESTS)]
    assert all(transport.aborted for _, transport in others)
    protocol, transport = asked.connect()
    protocol.dataReceived(b"now\n")
    assert read_answer(transport.value()).status == 0


def test_an_answer_is_bounded() -> None:
    sent = answer_bytes(Answer(1, ["x" * 1000] * 5000))
    assert LONGEST_ANSWER - 2000 < len(sent) <= LONGEST_ANSWER
    read = read_answer(sent)
    assert read.status == 1
    assert read.lines[-1] == f"{5000 - len(read.lines) + 1} more lines"


@given(st.integers(0, 255), st.lists(st.text(st.characters(codec="utf-8")), max_size=5))
def test_an_answer_is_read_as_it_was_written(status: int, texts: list[str]) -> None:
    assert read_answer(answer_bytes(Answer(status, texts))) == Answer(status, texts)


@given(
    st.one_of(
        st.binary(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
    )
)
def test_what_is_no_answer_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="answer"):
        read_answer(data)


def test_part_of_an_answer_is_none() -> None:
    whole = answer_bytes(Answer(0, ["one"]))
    for size in range(len(whole) - 1):
        with pytest.raises(ValueError, match="answer"):
            read_answer(whole[:size])


def test_a_file_is_known_by_its_path_and_by_what_it_links_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real, link = f"{tmp_path}/real/n.toml", f"{tmp_path}/link/n.toml"
    assert len(control_names(real)) == 1
    assert control_names(link)[1:] == control_names(real)
    assert control_names(link)[0] not in control_names(real)
    monkeypatch.chdir(tmp_path / "real")
    assert control_names("n.toml") == control_names(real)


def test_the_process_and_the_user_at_the_other_end_are_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_process(one) == (os.getpid(), os.geteuid())
