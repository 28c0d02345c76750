"""A reload runs another plan, or leaves everything as it was; nobody notices whom it does not concern."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from netsvc.base.errors import UserError
from tests.builders.facts import counted, lacks, states
from tests.builders.logs import Lines, collected
from tests.builders.processes import free_port
from tests.builders.reloaded import ONE, TWO, plan, world
from tests.conftest import LoggedErrors


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def test_the_same_plan_changes_nothing_and_keeps_every_connection() -> None:
    same = plan(ONE, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0")
    with world(same) as made:
        port = made.port()
        client, _ = made.greeting(port)
        assert counted(made.reload(same)) == {"kept": 2}
        assert made.port() == port
        assert made.echoes(client)
        assert made.core("one").calls == ["check", "start"]


def test_a_listener_that_is_added_serves_and_is_told_of(lines: Lines) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        client, _ = made.greeting(made.port())
        summary = made.reload(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        assert counted(summary) == {"kept": 1, "opened": 1}
        assert "changed" not in summary
        assert made.greeting(made.port(1))[1] == b"two"
        assert made.echoes(client)
        assert states(lines[-1], "two tcp", f" 127.0.0.1:{made.port(1)}")


def test_debug_applies_from_the_start_and_after_a_reload() -> None:
    listeners = plan(ONE, "one tcp 127.0.0.1:0")
    with world(replace(listeners, debug=True)) as made:
        assert made.host.guard.faults.debug
        assert states(made.reload(listeners), "changed: ", "debug off")
        assert not made.host.guard.faults.debug


def test_a_service_that_is_gone_is_asked_drains_and_is_stopped(lines: Lines) -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        gone = made.port(1)
        core = made.core("two")
        (kept, _), (client, _) = made.greeting(made.port()), made.greeting(gone)
        summary = made.reload(plan(ONE, "one tcp 127.0.0.1:0", drain=2))
        assert counted(summary) == {"kept": 1, "closed": 1}
        assert states(summary, "changed: ", "drain 2 s")
        assert made.refused(gone)
        assert core.calls == ["check", "start", "drain"]
        assert made.echoes(client)
        made.advance(2)
        assert made.receive(client) == b""
        client.close()
        made.turn()
        assert core.calls[-1] == "stop"
        assert made.echoes(kept)
        assert states(lines[-2], "drained: ", "0 ", " 2 s: 1 two tcp")
        assert states(lines[-1], "two tcp", " 127.0.0.1:", " 2 s)")


def test_who_does_not_close_its_end_is_aborted_after_the_drain() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        client, _ = made.greeting(made.port(1))
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        made.advance(4)
        assert made.core("two").calls[-1] == "drain"
        made.advance(0.5)
        made.advance(0.1)
        assert made.core("two").calls[-1] == "stop"
        client.setblocking(True)
        assert client.recv(10) == b""


def test_a_service_without_connections_is_stopped_at_once() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two udp 127.0.0.1:0")) as made:
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.core("two").calls == ["check", "start", "drain", "stop"]


def test_what_waits_at_a_port_that_goes_is_taken_before_it_is_closed() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        client = made.connect(made.port(1))
        made.host.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.receive(client) == b"two\n"


def test_of_a_service_that_stays_a_listener_that_is_gone_drains_alone() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0", "one loud 127.0.0.1:0")) as made:
        (kept, _), (client, _) = made.greeting(made.port()), made.greeting(made.port(1))
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        made.advance(4)
        assert made.receive(client) == b""
        client.close()
        made.turn()
        assert made.echoes(kept)
        assert made.core("one").calls == ["check", "start"]


@pytest.mark.parametrize("step", ["check", "start", "startProtocol"])
def test_a_service_that_fails_at_any_step_leaves_everything_as_it_was(step: str) -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        ports = [made.port(place) for place in range(3)]
        client, _ = made.greeting(ports[2])
        free = free_port()
        new = plan(
            {"one": {"text": "new"}, "three": {"text": "three"}, "one-more": {"text": "more", "fail": step}},
            f"three tcp 127.0.0.1:{free}",
            "one tcp 127.0.0.1:0",
            "one-more udp 127.0.0.1:0",
            perip=1,
        )
        [line] = made.errors(new)
        assert "fails" in line or lacks(line, "one-more udp", "RuntimeError: no") == []
        assert made.refused(free)
        assert [made.port(place) for place in range(3)] == ports
        assert made.greeting(ports[0])[1] == b"one"
        assert made.ask(ports[1]) == b"one"
        assert made.greeting(ports[2])[1] == b"two"
        assert made.echoes(client)
        assert made.core("one").calls == made.core("two").calls == ["check", "start"]
        for text in ("new", "three"):
            assert made.core(text).calls in (["check"], ["check", "start", "stop"])
        assert "perip" not in made.host.plan.limits
        assert made.host.guard.process.limits["perip"] == 256


def test_every_mistake_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        number = taken.getsockname()[1]
        new = plan(
            {"one": {"text": "one", "limits": {"deny": f"@{tmp_path}/one"}}, "two": {"text": "two", "fail": "check"}},
            f"one tcp 127.0.0.1:0 allow=@{tmp_path}/two",
            f"one tcp 127.0.0.1:{number} allow=@{tmp_path}/three",
            f"one tcp 127.0.0.1:{number}",
            "two tcp 127.0.0.1:0",
            deny=f"@{tmp_path}/four",
        )
        lines = made.errors(new)
        for name in ("one", "two", "three", "four"):
            assert [line for line in lines if f"{tmp_path}/{name}" in line], (name, lines)
        assert "check fails" in lines
        assert [line for line in lines if states(line, "one tcp", f"127.0.0.1:{number}", f"port {number}")]
        assert len(lines) == 6


def test_a_place_in_a_file_begins_the_line_about_it() -> None:
    from dataclasses import replace

    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made, socket.create_server(("127.0.0.1", 0)) as taken:
        new = plan({"one": {"text": "new", "fail": "start"}}, f"one tcp 127.0.0.1:{taken.getsockname()[1]}")
        listener = replace(new.listeners[0], origin="n.toml:4: ")
        use = replace(new.uses["one"], origin="n.toml:2: ")
        [line] = made.errors(replace(new, uses={"one": use}, listeners=(listener,)))
        assert states(line, "n.toml:4: ", "one tcp", "127.0.0.1:")
        taken.close()
        [line] = made.errors(replace(new, uses={"one": use}, listeners=(listener,)))
        assert line == "n.toml:2: start fails"


def test_two_drains_at_once_and_a_stop_in_the_middle_of_them() -> None:
    three = {**TWO, "three": {"text": "three"}}
    listeners = ["one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0", "three tcp 127.0.0.1:0"]
    with world(plan(three, *listeners, drain=10)) as made:
        clients = [made.greeting(made.port(place))[0] for place in range(3)]
        made.reload(plan(TWO, *listeners[:2], drain=10))
        made.advance(1)
        made.reload(plan(ONE, *listeners[:1], drain=3))
        assert all(map(made.echoes, clients))
        stopped: list[object] = []
        made.host.stopService().addCallback(stopped.append)
        assert [made.core(text).calls.count("drain") for text in three] == [1, 1, 1]
        assert made.errors(plan(ONE, *listeners[:1])) == (made.host.occupied("reloaded"),)
        clients[0].close()
        clients[1].close()
        made.turn()
        assert stopped == []
        made.advance(3)
        assert made.receive(clients[2]) == b""
        clients[2].close()
        made.turn(5)
        assert stopped == [None]
        assert [made.core(text).calls[-1] for text in three] == ["stop"] * 3


def test_an_answer_to_a_drain_is_asked_for_once_and_waited_for_by_the_stop() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two udp 127.0.0.1:0")) as made:
        made.core("two").draining = answer = Deferred[None]()
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        stopped: list[object] = []
        made.host.stopService().addCallback(stopped.append)
        made.turn(5)
        assert stopped == []
        answer.callback(None)
        made.turn(5)
        assert stopped == [None]
        assert made.core("two").calls == ["check", "start", "drain", "stop"]


def test_one_process_does_not_become_several() -> None:
    from dataclasses import replace

    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        [line] = made.errors(replace(plan(ONE, "one tcp 127.0.0.1:0"), workers=2))
        assert line.startswith("workers 2: ")


def test_what_an_author_did_not_expect_is_one_line_and_changes_nothing(logged_errors: LoggedErrors) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        load = made.load

        def broken(use: Any) -> Any:
            if use.service == "bad":
                raise ZeroDivisionError("oops")
            return load(use)

        results: list[Any] = []
        bad = plan({**ONE, "bad": {"service": "bad"}}, "one tcp 127.0.0.1:0", "bad tcp 127.0.0.1:0")
        made.host.reload(bad, broken).addBoth(results.append)
        assert results[0].value.errors[0].startswith("ZeroDivisionError: oops")
        assert logged_errors.flush(ZeroDivisionError)
        assert counted(made.reload(plan(ONE, "one tcp 127.0.0.1:0"))) == {"kept": 1}


def test_a_worker_that_retires_serves_to_the_end_what_is_there_and_lets_go_of_the_rest() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "one loud 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        clients = [made.greeting(made.port(place))[0] for place in range(3)]
        waiting = made.connect(made.port(2))
        ports = [made.port(place) for place in range(3)]
        retired: list[object] = []
        made.host.retire([2], [1, 2], 3).addCallback(retired.append)
        assert made.receive(waiting) == b"two\n"
        assert all(made.refused(port) for port in ports)
        assert made.core("two").calls[-1] == "drain"
        assert made.core("one").calls[-1] == "start"
        made.advance(3)
        assert [made.receive(client) for client in (*clients[1:], waiting)] == [b""] * 3
        for client in (*clients[1:], waiting):
            client.close()
        made.advance(100)
        assert made.core("two").calls[-1] == "stop"
        assert made.echoes(clients[0])
        assert retired == []
        clients[0].close()
        made.turn()
        assert retired == [None]
        made.host.stopService()


def test_one_that_is_held_takes_nothing_before_it_is_told_to() -> None:
    from netsvc.server.server import Server

    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        held = Server(plan(ONE, "one tcp 127.0.0.1:0"), made.load, made.reactor, held=True)
        held.privilegedStartService()
        held.startService()
        client = made.connect(held.running_plan.listeners[0].port_number())
        made.turn(5)
        assert made.core("one").calls == ["check", "start"]
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(10)
        held.serve(0, 1)
        assert made.receive(client) == b"one\n"
        client.close()
        made.turn()
        held.stopService()
        made.turn()


def test_a_service_that_fails_to_drain_is_logged_and_stopped(logged_errors: LoggedErrors) -> None:
    with world(plan({**ONE, "two": {"text": "two", "fail": "drain"}}, "one tcp 127.0.0.1:0", "two udp 0")) as made:
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.core("two").calls[-1] == "stop"
        assert logged_errors.flush(UserError)
