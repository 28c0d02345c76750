"""Of what has ended, nothing is left: no account, no call, no reference, and no number that does not add up."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory

from netsvc.guard import Guard
from netsvc.plan.status import ConnectionQuery
from tests.builders.accounted import TCP, UDP, Accounts, accounts
from tests.builders.processes import PATIENCE
from tests.builders.reloaded import ONE, TWO, RunningServer, plan, world
from tests.conftest import LoggedErrors


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Let nothing go by the cyclic garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("limits", [{}, {"idle": "60"}, {"write": "1M"}])
@pytest.mark.parametrize("unix", [False, True])
def test_a_connection_that_has_ended_is_gone_without_a_garbage_collection(
    unix: bool, limits: dict[str, str], tmp_path: Path, no_collection: None
) -> None:
    path = str(tmp_path / "s")
    with accounts(f"one tcp unix:{path}" if unix else TCP, **limits) as made:
        client = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        client.settimeout(PATIENCE)
        client.connect(path if unix else ("127.0.0.1", made.world.port()))
        made.world.receive(client)
        [connection] = made.world.host.guard.live
        left = [weakref.ref(connection.transport), weakref.ref(connection.protocol)]
        del connection
        client.close()
        assert made.last().reason == "peer"
        made.world.turn()
        assert [each() for each in left] == [None, None]


def counts_add_up(made: Accounts) -> dict[str, int]:
    """See that whoever has come is there or has ended, and has a record if so; return how they have ended."""
    [listener] = made.status().listeners
    counts = listener.counts
    assert counts.accepted == counts.open + counts.ended.total() and counts.ended.total() == len(made.records)
    return dict(counts.ended)


def test_who_was_let_in_and_never_served_has_ended_as_well(logged_errors: LoggedErrors) -> None:
    with accounts(TCP) as made:
        front = made.world.host.running_plan.listeners[0]._factory_or_protocol
        built: Factory = front.factory

        class Odd(Factory):
            noisy = False
            answers: list[Any] = [None, ZeroDivisionError]

            def buildProtocol(self, addr: Any) -> Any:
                answer = self.answers.pop()
                if answer is not None:
                    raise answer
                return None

        front.factory = Odd()
        for _ in range(2):
            client = made.world.connect(made.world.port())
            assert made.world.receive(client) == b""
        assert counts_add_up(made) == {"error": 1, "server": 1}
        assert {record.peer for record in made.records} == {"127.0.0.1"}
        assert len(logged_errors.flush(ZeroDivisionError)) == 1
        front.factory = built


def test_what_cannot_be_recorded_is_counted_and_let_go_all_the_same(logged_errors: LoggedErrors) -> None:
    with accounts(TCP) as made:

        def record(_: object) -> None:
            raise LookupError

        made.world.host.guard.book.record = record
        for _ in range(3):
            client, _ = made.world.greeting(made.world.port())
            client.close()
        while made.world.host.guard.live:
            made.world.turn()
        [listener] = made.status().listeners
        assert (listener.counts.open, listener.counts.ended.total()) == (0, 3)
        assert len(logged_errors.flush(LookupError)) == 1


def test_reloads_that_nobody_looks_at_leave_no_accounts() -> None:
    with world(plan(ONE, TCP)) as made:
        tallies = made.host.guard.book.tallies
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = f"one tcp 127.0.0.1:{other.getsockname()[1]}"
            for _ in range(3):
                made.reload(plan(TWO, TCP, UDP))
                made.reload(plan(ONE, TCP))
                assert made.errors(plan(ONE, TCP, UDP, taken))
        assert len(tallies) == 1


def test_what_is_not_open_yet_is_no_listener_that_is_up() -> None:
    with accounts(TCP) as made:
        made.world.host.guard.book.open("one", "late", "stream")
        assert [listener.protocol for listener in made.status().listeners] == ["tcp"]


def test_a_session_is_listed_once_whatever_its_port_has_served() -> None:
    with accounts(UDP) as made:
        made.world.ask(made.world.port())
        guard: Guard = made.world.host.guard
        [old] = guard.book.tallies
        # As when a port serves another protocol of the same service.
        guard.book.open("one", "other", "datagram").sessions = old.sessions
        [session] = made.connections()
        assert made.world.host.overview.close_connection(session.id)
        assert not made.world.host.overview.close_connection(session.id)


def test_who_looks_at_a_process_that_has_stopped_leaves_no_call_behind() -> None:
    made = RunningServer(plan(ONE, TCP))
    overview = made.host.overview
    waiting: list[Any] = []
    overview.status(ConnectionQuery()).addCallback(waiting.append)
    overview.close()
    overview.status(ConnectionQuery()).addCallback(waiting.append)
    overview.last()
    assert len(waiting) == 2
    # It sees that no call is left.
    made.close()
