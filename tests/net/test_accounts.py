"""Every connection and session is accounted for: how many bytes came and went, how long it lasted, and why it ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from netsvc.plan.record import REASONS
from tests.builders.accounted import TCP, UDP, Accounts, accounts, reset
from tests.builders.reloaded import ONE, plan, world


def test_a_connection_is_recorded_with_what_came_and_went_to_the_byte() -> None:
    with accounts(TCP) as made:
        client, _ = made.world.greeting(made.world.port())
        assert made.world.echoes(client)
        made.world.clock.advance(2.5)
        port = client.getsockname()[1]
        client.close()
        record = made.last()
        listener = f"127.0.0.1:{made.world.port()}"
    assert record[1:] == ("one", "tcp", "stream", listener, "127.0.0.1", port, 4, 8, None, None, 2.5, "peer", None)


def test_a_unix_connection_is_recorded_with_its_user_and_all_bytes(tmp_path: Path) -> None:
    with accounts(f"one tcp unix:{tmp_path}/socket") as made:
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{tmp_path}/socket")
        assert made.world.receive(client) == b"one\n"
        assert made.world.echoes(client)
        [shown] = made.connections()
        client.close()
        record = made.last()
    user = f"uid {os.getuid()}"
    assert record[1:7] == ("one", "tcp", "stream", f"{tmp_path}/socket", user, None)
    assert (record.bytes_in, record.bytes_out, record.reason) == (4, 8, "peer")
    assert (shown.peer, shown.bytes_in, shown.bytes_out) == (user, 4, 8)


def test_a_reset_is_told_from_an_orderly_end() -> None:
    with accounts(TCP) as made:
        client, _ = made.world.greeting(made.world.port())
        reset(client)
        assert made.last().reason == "reset"


@pytest.mark.parametrize(
    ("word", "reason"), [("loseConnection", "server"), ("abortConnection", "abort"), ("loseWriteConnection", "server")]
)
def test_what_the_service_ends_is_told_from_what_the_peer_ends(word: str, reason: str) -> None:
    with accounts(TCP) as made:
        client, _ = made.world.greeting(made.world.port())
        [connection] = made.world.host.guard.live
        getattr(connection.transport, word)()
        assert made.world.receive(client) == b""
        client.close()
        assert made.last().reason == reason


def test_a_peer_that_half_closes_first_has_ended_it() -> None:
    with accounts(TCP) as made:
        client, _ = made.world.greeting(made.world.port())
        client.send(b"bye")
        client.shutdown(socket.SHUT_WR)
        record = made.last()
    assert (record.reason, record.bytes_in) == ("peer", 3)


@pytest.mark.parametrize(("limit", "seconds"), [("life", 20), ("handshake", 20)])
def test_the_limit_that_ended_a_connection_is_named(limit: str, seconds: int) -> None:
    with accounts(TCP, **{limit: 10}) as made:
        client, _ = made.world.greeting(made.world.port())
        for _ in range(seconds):
            made.world.advance(1)
        made.world.receive(client)
        client.close()
        record = made.last()
        assert (record.reason, record.limit) == ("limit", limit)
        status = made.status()
    assert status.listeners[0].counts.ended == {"limit": 1}
    assert [(each.limit, each.action, each.service, each.peer) for each in status.refusals] == [
        (limit, "ended", "one", "127.0.0.1")
    ]


def test_who_is_refused_is_counted_by_limit_and_has_no_record() -> None:
    with accounts(TCP, connections=1) as made:
        made.world.greeting(made.world.port())
        for _ in range(3):
            assert made.world.receive(made.world.connect(made.world.port())) == b""
        status = made.status()
        assert made.records == []
    counts = status.listeners[0].counts
    assert (counts.accepted, counts.open, counts.refused, counts.reported) == (1, 1, {"connections": 3}, {})


def test_a_limit_that_only_reports_is_counted_apart() -> None:
    with accounts(TCP, connections=1, dryrun="all") as made:
        for _ in range(3):
            made.world.greeting(made.world.port())
        counts = made.status().listeners[0].counts
    assert (counts.accepted, counts.refused, counts.reported) == (3, {}, {"connections": 2})


def test_what_is_still_there_at_the_deadline_of_a_drain_was_ended_by_it() -> None:
    with accounts(TCP) as made:
        made.world.greeting(made.world.port())
        made.world.host.stopService()
        for _ in range(5):
            made.world.advance(1)
        record = made.last()
    assert (record.reason, record.seconds >= 4) == ("drain", True)


def test_a_session_is_recorded_when_its_peer_has_been_silent() -> None:
    with accounts(UDP, sessionidle=10) as made:
        peer = socket.socket(type=socket.SOCK_DGRAM)
        made.world.clients.append(peer)
        for size in (100, 50):
            assert made.world.ask(made.world.port(), b"?" * size, peer) == b"one"
        port = peer.getsockname()[1]
        for _ in range(20):
            made.world.advance(1)
        record = made.last()
    assert record[1:4] == ("one", "udp", "datagram")
    assert record[5:11] == ("127.0.0.1", port, 150, 6, 2, 2)
    assert 10 <= record.seconds <= 15 and record[12:] == ("silent", None)


def test_a_session_over_its_life_and_one_that_gives_way_say_so() -> None:
    with accounts(UDP, life=10, sessions=1) as made:
        made.world.ask(made.world.port())
        assert made.world.ask(made.world.port()) == b"one"
        assert made.last().reason == "full"
        made.world.advance(11)
        peer = made.world.clients[-1]
        made.world.ask(made.world.port(), client=peer)
        record = made.last()
    assert (record.reason, record.limit) == ("limit", "life")


def test_sessions_of_a_port_that_is_closed_are_recorded() -> None:
    with accounts(UDP, TCP) as made:
        made.world.ask(made.world.port())
        made.world.reload(plan(ONE, TCP))
        assert made.last().reason == "closed"


def test_thousands_of_sessions_that_end_at_once_are_recorded_over_many_turns() -> None:
    with accounts(UDP, sessionidle=10) as made:
        sessions: Any = made.world.host.running_plan.listeners[0].port.sessions
        for number in range(1000):
            peer = (f"10.0.{number // 250}.{number % 250}", 1)
            sessions.find(peer, peer)
        for _ in range(2):
            made.world.advance(5)
        made.world.clock.advance(5)
        made.world.turn(2)
        assert len(sessions) == 0
        assert 0 < len(made.records) < 1000
        made.world.turn(10)
        assert len(made.records) == 1000


def test_sessions_that_wait_to_be_recorded_are_so_when_the_port_closes() -> None:
    with accounts(UDP, TCP, sessionidle=10) as made:
        sessions: Any = made.world.host.running_plan.listeners[0].port.sessions
        for number in range(1000):
            peer = (f"10.0.{number // 250}.{number % 250}", 1)
            sessions.find(peer, peer)
        for _ in range(2):
            made.world.advance(5)
        made.world.clock.advance(5)
        made.world.reactor.runUntilCurrent()
        assert made.records == []
        made.world.reload(plan(ONE, TCP))
        assert len(made.records) == 1000


def test_every_reason_is_one_that_is_documented() -> None:
    told = {"peer", "server", "reset", "abort", "error", "tls", "stalled", "limit", "drain", "admin", "silent", "full"}
    assert told | {"closed"} == set(REASONS)


@pytest.mark.parametrize("half", [False, True])
def test_a_unix_peer_that_closes_has_ended_it_in_order(half: bool, tmp_path: Path) -> None:
    # To a stream that goes on when its peer has ended its side, as echo's does.
    with world(plan({"one": {"text": "one", "service": "halves"}}, f"one tcp unix:{tmp_path}/socket")) as made:
        counted = Accounts(made)
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{tmp_path}/socket")
        assert made.receive(client) == b"one\n"
        if half:
            client.shutdown(socket.SHUT_WR)
            assert made.receive(client) == b""
        client.close()
        assert counted.last().reason == "peer"


def test_the_end_of_the_stream_is_no_byte_whoever_ends_first() -> None:
    with accounts(TCP) as made:
        for word in ("loseWriteConnection", "loseConnection"):
            client, _ = made.world.greeting(made.world.port())
            [connection] = made.world.host.guard.live
            getattr(connection.transport, word)()
            assert made.world.receive(client) == b""
            client.close()
            made.world.turn()
            record = made.last()
            assert (record.bytes_in, record.bytes_out) == (0, 4), word
