"""What is to be seen of a running process: its listeners with their counts and limits, and its connections."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from netsvc.plan.status import ConnectionQuery
from tests.builders.accounted import TCP, UDP, Accounts, accounts
from tests.builders.reloaded import ONE, plan


def test_bytes_of_live_connections_are_in_the_counts_once() -> None:
    with accounts(TCP, UDP) as made:
        client, _ = made.world.greeting(made.world.port())
        peer = socket.socket(type=socket.SOCK_DGRAM)
        made.world.clients.append(peer)
        for _ in range(3):
            assert made.world.echoes(client)
            made.world.ask(made.world.port(1), client=peer)
            made.world.advance(60)
            stream, datagrams = made.status().listeners
        assert (stream.counts.bytes_in, stream.counts.bytes_out) == (12, 16)
        assert (datagrams.counts.bytes_in, datagrams.counts.bytes_out) == (300, 9)
        assert (datagrams.counts.datagrams_in, datagrams.counts.datagrams_out) == (3, 3)
        client.close()
        made.last()
        counts = made.status().listeners[0].counts
    assert (counts.bytes_in, counts.bytes_out, counts.open, counts.ended) == (12, 16, 0, {"peer": 1})
    assert sum(counts.durations) == 1 and counts.seconds == 180


def test_connections_are_listed_in_the_order_that_is_asked_for() -> None:
    with accounts(TCP) as made:
        old, _ = made.world.greeting(made.world.port())
        made.world.advance(10)
        young, _ = made.world.greeting(made.world.port())
        names = {f"127.0.0.1:{client.getsockname()[1]}": name for client, name in ((old, "old"), (young, "young"))}
        made.status()
        made.world.advance(60)
        young.send(b"x" * 1000)
        made.world.turn()
        for order, expected in {"age": "old", "new": "young", "bytes": "young", "rate": "young"}.items():
            first, second = made.connections(order)
            assert names[first.peer] == expected, order
        assert first.rate_in == pytest.approx(1000 / 60) and second.rate_in == 0
        assert (first.age, second.age) == (60, 70)


def test_a_status_shows_what_happened_before_it_and_rates_are_those_of_half_a_second() -> None:
    with accounts(TCP, UDP) as made:
        client, _ = made.world.greeting(made.world.port())
        peer = socket.socket(type=socket.SOCK_DGRAM)
        made.world.clients.append(peer)
        made.world.ask(made.world.port(1), client=peer)
        made.status()
        made.world.advance(1)
        made.status()
        rates = []
        for count in range(1, 11):
            assert made.world.echoes(client)
            made.world.ask(made.world.port(1), client=peer)
            made.world.advance(0.1)
            stream, datagrams = made.status().listeners
            assert (stream.counts.bytes_in, datagrams.counts.datagrams_in) == (4 * count, 1 + count)
            rates.append(round(next(each.rate_in for each in made.connections() if each.protocol == "tcp")))
        assert (set(rates), rates.index(40) in (4, 5)) == ({0, 40}, True)


def test_words_are_looked_for_in_what_is_shown() -> None:
    with accounts(TCP, UDP) as made:
        client, _ = made.world.greeting(made.world.port())
        made.world.ask(made.world.port(1))
        port = client.getsockname()[1]
        assert len(made.connections()) == 2
        assert [each.protocol for each in made.connections("rate", "ONE", str(port))] == ["tcp"]
        assert made.connections("rate", "nobody") == []
        assert len(made.status(1).connections) == 1
        assert made.status(0).connections == []


def test_a_connection_is_closed_by_its_number_and_a_session_forgotten() -> None:
    with accounts(TCP, UDP) as made:
        client, _ = made.world.greeting(made.world.port())
        made.world.ask(made.world.port(1))
        for each in made.connections():
            assert _close(made, each.id) is True
        assert made.world.receive(client) == b""
        client.close()
        assert {made.last().reason, made.last().reason} == {"admin"}
        for wrong in (each.id, "1-1", "", "-", f"{os.getpid()}-x", "\0" * 100):
            assert _close(made, wrong) is False


def _close(made: Accounts, connection: str) -> bool:
    [closed] = [made.world.host.close_connection(connection)]
    return bool(closed.result)


def test_many_who_ask_at_once_are_answered_by_one_look() -> None:
    with accounts(TCP) as made:
        for _ in range(3):
            made.world.greeting(made.world.port())
        answers: list[Any] = []
        for _ in range(100):
            made.world.host.status(ConnectionQuery()).addCallback(answers.append)
        assert answers == []
        made.world.turn(1)
        assert len(answers) == 100
        # What is new enough is not looked for again.
        made.world.host.status(ConnectionQuery()).addCallback(answers.append)
        assert len(answers) == 101


def test_a_look_at_many_gives_others_their_turn() -> None:
    with accounts(UDP) as made:
        sessions: Any = made.world.host.running_plan.listeners[0].port.sessions
        for number in range(2000):
            peer = (f"10.1.{number // 250}.{number % 250}", 1)
            sessions.find(peer, peer)
        answers: list[Any] = []
        made.world.host.status(ConnectionQuery()).addCallback(answers.append)
        turns = 0
        while not answers:
            made.world.turn(1)
            turns += 1
        assert turns >= 8
        assert len(answers[0][0].connections) == 100 and answers[0][0].open == 2000


def test_what_was_seen_is_forgotten_when_nobody_asks_any_more() -> None:
    with accounts(TCP) as made:
        made.world.greeting(made.world.port())
        made.status()
        assert made.world.host.overview._seen
        for _ in range(100):
            made.world.advance(1)
        assert not made.world.host.overview._seen
        assert made.status().vitals.descriptors > 3


def test_the_account_of_a_listener_that_is_gone_stays_until_its_last_connection_has_ended() -> None:
    with accounts(TCP, UDP) as made:
        client, _ = made.world.greeting(made.world.port())
        made.world.reload(plan(ONE, UDP))
        listeners = made.status().listeners
        assert [(each.protocol, each.up, each.counts.open) for each in listeners] == [
            ("tcp", False, 1),
            ("udp", True, 0),
        ]
        client.close()
        made.last()
        made.world.advance(60)
        made.status()
        assert [each.protocol for each in made.status().listeners] == ["udp"]


def test_a_port_that_serves_another_service_has_another_account() -> None:
    with accounts(TCP) as made:
        made.world.greeting(made.world.port())
        number = made.world.port()
        made.world.reload(plan({"two": {"text": "two"}}, f"two loud 127.0.0.1:{number}", drain=100))
        made.world.greeting(number)
        listeners = made.status().listeners
    assert {(each.service, each.protocol, each.place, each.counts.accepted) for each in listeners} == {
        ("one", "tcp", f"127.0.0.1:{number}", 1),
        ("two", "loud", f"127.0.0.1:{number}", 1),
    }


def test_the_limits_in_force_are_told_with_their_level() -> None:
    with accounts(
        "one tcp 127.0.0.1:0 idle=5", "one udp 127.0.0.1:0", connections=7, idle=9, dryrun="connections"
    ) as made:
        stream, datagrams = made.status().listeners
    limits = {each.name: each for each in stream.limits}
    assert (limits["idle"].value, limits["idle"].level, limits["idle"].chosen) == ("5", "one tcp", True)
    assert (limits["connections"].value, limits["connections"].level, limits["connections"].reports) == (
        "7",
        "process",
        True,
    )
    assert not limits["perip"].chosen
    assert "amplify" not in limits and "amplify" in {each.name for each in datagrams.limits}
