"""What a reload does where ports are in the way of each other, or take their time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from netsvc.plan.plan import Plan
from netsvc.server.server import OPENING_LIMIT
from tests.builders.facts import counted, lacks, states
from tests.builders.logs import Lines, collected
from tests.builders.processes import free_port
from tests.builders.reloaded import ONE, TWO, RunningServer, plan, world


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("127.0.0.1:{}", "{}"),
        ("{}", "127.0.0.1:{}"),
        ("0.0.0.0:{}", "127.0.0.1:{}"),
        ("127.0.0.1:{}", "tcp:{}:interface=127.0.0.1"),
        ("tcp:{}", "{}"),
        ("tcp:{}", "tcp:{}:backlog=10"),
        ("localhost:{}", "127.0.0.1:{}"),
        ("127.0.0.1:{}", "proxy:trust=192.0.2.1:127.0.0.1:{}"),
    ],
)
def test_a_port_that_is_given_up_is_not_in_the_way_of_one_that_overlaps(old: str, new: str) -> None:
    number = free_port()
    with world(plan(ONE, f"one tcp {old.format(number)}")) as made:
        client, _ = made.greeting(number)
        # It is in the queue of the old port, or of the one that both have.
        waiting = made.connect(number)
        before = len(os.listdir("/proc/self/fd"))
        assert counted(made.reload(plan(ONE, f"one tcp {new.format(number)}"))) == {"opened": 1, "closed": 1}
        if "proxy" in new:
            # It is the first thing that the new one hears, and nobody here is trusted.
            assert made.receive(waiting) == b""
        else:
            assert made.receive(waiting) == b"one\n"
            assert made.greeting(number)[1] == b"one"
        assert made.echoes(client)
        assert len(os.listdir("/proc/self/fd")) <= before + 4
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", number))


@pytest.mark.parametrize(("old", "new"), [("127.0.0.1:{}", "{}"), ("0.0.0.0:{}", "127.0.0.1:{}"), ("0.0.0.0:{}", "{}")])
def test_so_it_is_with_datagrams(old: str, new: str) -> None:
    number = free_port()
    with world(plan(ONE, f"one udp {old.format(number)}")) as made:
        assert made.ask(number) == b"one"
        made.reload(plan({"one": {"text": "new"}}, f"one udp {new.format(number)}"))
        assert made.ask(number) == b"new"


def test_an_overlapping_port_that_fails_gives_the_old_one_back() -> None:
    number = free_port()
    with world(plan(ONE, f"one tcp 127.0.0.1:{number}")) as made:
        waiting = made.connect(number)
        new = plan({"one": {"text": "new", "fail": "start"}}, f"one tcp {number}")
        assert made.errors(new) == ("start fails",)
        assert made.receive(waiting) == b"one\n"
        assert made.greeting(number)[1] == b"one"
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", number))


def test_a_port_that_is_given_up_and_one_of_somebody_else_that_is_not() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        number = other.getsockname()[1]
        with world(plan(ONE, f"one tcp 127.0.0.1:{number}")) as made:
            [line] = made.errors(plan(ONE, f"one tcp 0.0.0.0:{number}"))
            assert states(line, "one tcp", f"0.0.0.0:{number}", f"port {number}")
            assert made.greeting(number)[1] == b"one"


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_a_socket_file_whose_mode_changes_is_made_anew(scheme: str, tmp_path: Path) -> None:
    protocol = "tcp" if scheme == "unix" else "udp"
    path = tmp_path / "sock"
    with world(plan(ONE, f"one {protocol} {scheme}:{path}:mode=600")) as made:
        summary = made.reload(plan(ONE, f"one {protocol} {scheme}:{path}:mode=660"))
        assert counted(summary) == {"opened": 1, "closed": 1}
        assert path.stat().st_mode & 0o777 == 0o660
        # It fails after the old one was closed, which is opened again.
        failing = plan(ONE, f"one {protocol} {scheme}:{path}:mode=600", f"one {protocol} {scheme}:{path}:mode=666")
        [line] = made.errors(failing)
        assert lacks(line, f"one {protocol}", f"{scheme}:{path}:mode=666") == []
        assert path.stat().st_mode & 0o777 == 0o660
        if scheme == "unix":
            client = socket.socket(socket.AF_UNIX)
            made.clients.append(client)
            client.connect(str(path))
            assert made.receive(client) == b"one\n"


class Slow:
    """An endpoint that opens when it is told to."""

    def __init__(self, made: RunningServer) -> None:
        self.made = made
        self.listening: Deferred[Any] = Deferred()
        self.factory: Any = None

    def listen(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        return self.listening

    def open(self) -> Any:
        port = self.made.reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.listening.callback(port)
        return port


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[Slow]:
    """Have endpoints `slow:…`, which are collected."""
    from netsvc.listen import opening

    made: list[Slow] = []
    original: Any = vars(opening)["_endpoint"]

    def endpoint(address: Any, reactor: Any) -> Any:
        if address.scheme != "slow":
            return original(address, reactor)
        return made[-1]

    monkeypatch.setattr(opening, "_endpoint", endpoint)
    return made


def begin(made: RunningServer, then: Plan) -> list[Any]:
    results: list[Any] = []
    made.host.reload(then).addBoth(results.append)
    made.turn()
    return results


def test_a_reload_waits_for_an_endpoint_that_takes_its_time_and_meanwhile_nothing_changes(slow: list[Slow]) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        slow.append(Slow(made))
        free = free_port()
        then = plan(TWO, "one tcp 127.0.0.1:0", "two tcp slow:x", f"two tcp 127.0.0.1:{free}")
        results = begin(made, then)
        assert results == []
        waiting = made.connect(free)
        made.turn()
        assert made.greeting(made.port())[1] == b"one"
        assert made.core("two").calls == ["check"]
        assert made.errors(then) == (made.host.occupied("reloaded"),)
        port = slow[0].open()
        assert list(map(counted, results)) == [{"kept": 1, "opened": 2}]
        assert made.receive(waiting) == b"two\n"
        assert made.greeting(port.getHost().port)[1] == b"two"


def test_an_endpoint_that_does_not_open_in_time_fails_the_reload_and_is_closed_when_it_does(slow: list[Slow]) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        slow.append(Slow(made))
        free = free_port()
        results = begin(made, plan(TWO, "one tcp 127.0.0.1:0", "two tcp slow:x", f"two tcp 127.0.0.1:{free}"))
        made.advance(OPENING_LIMIT)
        [line] = results[0].value.errors
        assert states(line, "two tcp", "slow:x", f" {OPENING_LIMIT:g} s")
        assert made.refused(free)
        number = slow[0].open().getHost().port
        made.turn()
        assert made.refused(number)
        assert counted(made.reload(plan(ONE, "one tcp 127.0.0.1:0"))) == {"kept": 1}


def test_an_endpoint_that_fails_late_fails_the_reload(slow: list[Slow]) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        slow.append(Slow(made))
        results = begin(made, plan(ONE, "one tcp 127.0.0.1:0", "one tcp slow:x"))
        slow[0].listening.errback(OSError(5, "the daemon is gone"))
        [line] = results[0].value.errors
        assert states(line, "one tcp", "slow:x", "the daemon is gone")
        assert made.deaths == []


def test_a_stop_while_a_reload_waits_ends_the_reload(slow: list[Slow]) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        slow.append(Slow(made))
        results = begin(made, plan(ONE, "one tcp 127.0.0.1:0", "one tcp slow:x"))
        stopped: list[object] = []
        made.host.stopService().addCallback(stopped.append)
        assert results[0].value.errors == ("it is stopping",)
        made.turn(5)
        assert stopped == [None]


def test_an_endpoint_that_takes_its_time_cannot_replace_a_port_that_is_in_its_way(
    slow: list[Slow], tmp_path: Path
) -> None:
    with world(plan(ONE, f"one tcp unix:{tmp_path}/sock")) as made:
        slow.append(Slow(made))
        [line] = made.errors(plan(ONE, f"one tcp slow:{tmp_path}/sock"))
        assert "slow:" in line and "another port" in line
        client = socket.socket(socket.AF_UNIX)
        made.clients.append(client)
        client.connect(f"{tmp_path}/sock")
        assert made.receive(client) == b"one\n"
        slow[0].listening.errback(OSError(5, "late"))


def test_before_it_is_ready_it_is_not_reloaded(slow: list[Slow]) -> None:
    class Late:
        reactor: Any = None

    late: Any = Late()
    slow.append(Slow(late))
    with world(plan(ONE, "one tcp slow:x")) as made:
        late.reactor = made.reactor
        [line] = made.errors(plan(ONE, "one tcp 127.0.0.1:0"))
        assert line == made.host.occupied("reloaded")
        slow[0].open()
        assert counted(made.reload(plan(ONE, "one tcp 127.0.0.1:0"))) == {"opened": 1, "closed": 1}


def test_a_listener_that_waits_for_a_port_to_be_closed_gets_the_core_that_took_the_new_options(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with world(plan({"one": {"service": "adapts", "text": "one"}}, f"one tcp unix:{path}:mode=600")) as made:
        made.reload(plan({"one": {"service": "adapts", "text": "new"}}, f"one tcp unix:{path}:mode=660"))
        made.core("one").options["text"] = "same"
        client = socket.socket(socket.AF_UNIX)
        made.clients.append(client)
        client.connect(str(path))
        assert made.receive(client) == b"same\n"
