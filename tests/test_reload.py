"""A reload runs another plan, or leaves everything as it was; nobody notices whom it does not concern."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from netsvc.errors import MistakeError
from netsvc.host import OPENING_LIMIT
from netsvc.plan import Plan
from tests.conftest import LoggedErrors
from tests.logs import Lines, collected
from tests.processes import free_port
from tests.reloaded import World, plan, world

ONE = {"one": {"text": "one"}}
TWO = {"one": {"text": "one"}, "two": {"text": "two"}}


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def refused(made: World, port: int) -> bool:
    try:
        made.connect(port)
    except ConnectionRefusedError:
        return True
    return False


def mistakes(made: World, then: Plan) -> tuple[str, ...]:
    with pytest.raises(MistakeError) as raised:
        made.reload(then)
    error: Any = raised.value
    return tuple(error.mistakes)


def test_the_same_plan_changes_nothing_and_keeps_every_connection() -> None:
    same = plan(ONE, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0")
    with world(same) as made:
        port = made.port()
        client, _ = made.greeting(port)
        assert made.reload(same) == "2 listeners kept"
        assert made.port() == port
        assert made.echoes(client)
        assert made.core("one").calls == ["check", "start"]


def test_a_listener_that_is_added_serves_and_is_told_of(lines: Lines) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        client, _ = made.greeting(made.port())
        summary = made.reload(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        assert summary == "1 listener kept, 1 opened"
        assert made.greeting(made.port(1))[1] == b"two"
        assert made.echoes(client)
        assert lines[-1] == f"two tcp listens on 127.0.0.1:{made.port(1)}"


def test_a_service_that_is_gone_is_asked_drains_and_is_stopped(lines: Lines) -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        gone = made.port(1)
        core = made.core("two")
        (kept, _), (client, _) = made.greeting(made.port()), made.greeting(gone)
        assert made.reload(plan(ONE, "one tcp 127.0.0.1:0", drain=2)) == "1 listener kept, 1 closed; changed: drain 2 s"
        assert refused(made, gone)
        assert core.calls == ["check", "start", "drain"]
        assert made.echoes(client)
        made.advance(2)
        assert made.receive(client) == b""
        client.close()
        made.turn()
        assert core.calls[-1] == "stop"
        assert made.echoes(kept)
        assert lines[-1] == "drained: 0 connections ended by themselves; closed at the end of 2 s: 1 two tcp"


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


def test_changed_options_hold_for_new_connections_and_the_old_core_serves_the_old_ones_to_their_end() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0")) as made:
        tcp, udp = made.port(), made.port(1)
        assert made.ask(udp) == b"one"
        client, _ = made.greeting(tcp)
        assert made.echoes(client)
        summary = made.reload(plan({"one": {"text": "new"}}, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0"))
        assert summary == "2 listeners kept; changed: options of one"
        assert (made.port(), made.port(1)) == (tcp, udp)
        assert made.ask(udp) == b"new"
        assert made.greeting(tcp)[1] == b"new"
        made.advance(1000)
        assert made.echoes(client)
        assert made.core("one").calls == ["check", "start"]
        client.close()
        made.turn()
        assert made.core("one").calls == ["check", "start", "stop"]
        assert made.core("new").calls == ["check", "start"]


def test_a_peer_of_datagrams_that_is_known_is_answered_by_the_new_core() -> None:
    with world(plan(ONE, "one udp 127.0.0.1:0")) as made:
        peer = socket.socket(type=socket.SOCK_DGRAM)
        made.clients.append(peer)
        port = made.port()
        assert made.ask(port, client=peer) == b"one"
        made.reload(plan({"one": {"text": "new"}}, "one udp 127.0.0.1:0"))
        assert made.ask(port, client=peer) == b"new"
        made.reload(plan({"one": {"text": "new"}, "two": {"text": "two"}}, "two udp 127.0.0.1:0"))
        assert made.ask(port, client=peer) == b"two"


def test_a_core_that_takes_new_options_in_place_is_not_replaced() -> None:
    adapts = {"one": {"service": "adapts", "text": "one"}}
    with world(plan(adapts, "one tcp 127.0.0.1:0")) as made:
        core = made.core("one")
        client, _ = made.greeting(made.port())
        adapts = {"one": {"service": "adapts", "text": "new"}}
        made.reload(plan(adapts, "one tcp 127.0.0.1:0", "one loud 127.0.0.1:0", "one udp 127.0.0.1:0"))
        assert made.greeting(made.port())[1] == b"new"
        # A listener that is opened in the same reload is on the same core.
        assert made.greeting(made.port(1))[1] == b"NEW"
        assert made.ask(made.port(2)) == b"new"
        core.options = {"text": "same", "fail": ""}
        assert made.greeting(made.port())[1] == made.ask(made.port(2)) == b"same"
        assert made.echoes(client)
        assert core.calls == ["check", "start", "reconfigure"]
        assert made.core("new").calls == ["check"]


def test_a_core_that_does_not_take_them_is_replaced() -> None:
    with world(plan({"one": {"service": "adapts", "text": "one"}}, "one tcp 127.0.0.1:0")) as made:
        made.reload(plan({"one": {"service": "adapts", "text": "new", "fail": "adapt"}}, "one tcp 127.0.0.1:0"))
        assert made.greeting(made.port())[1] == b"new"
        assert made.core("one").calls == ["check", "start", "reconfigure", "stop"]


def test_a_core_that_has_taken_them_takes_the_old_ones_back_if_the_reload_fails() -> None:
    uses = {"one": {"service": "adapts", "text": "one"}, "two": {"service": "adapts", "text": "two"}}
    with world(plan(uses, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        uses = {
            "one": {"service": "adapts", "text": "new"},
            "two": {"service": "adapts", "text": "two", "fail": "reconfigure"},
        }
        [line] = mistakes(made, plan(uses, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        assert line.startswith("service two cannot take its options: RuntimeError: no")
        assert made.core("one").calls[-2:] == ["reconfigure", "reconfigure"]
        assert made.greeting(made.port())[1] == b"one"


def test_a_listener_may_be_given_another_protocol_or_another_service() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        port, client = made.port(), made.greeting(made.port())[0]
        summary = made.reload(plan(TWO, "one loud 127.0.0.1:0", "two tcp 127.0.0.1:0"))
        assert summary == "2 listeners kept; changed: what listens on 127.0.0.1:0"
        assert made.greeting(port)[1] == b"ONE"
        made.reload(plan({"two": {"text": "two"}}, "two tcp 127.0.0.1:0", "two loud 127.0.0.1:0"))
        greetings = {made.greeting(made.port(place))[1] for place in (0, 1)}
        assert greetings == {b"two", b"TWO"}
        # Its service is gone, and so it drains.
        assert made.core("one").calls[-1] == "drain"
        assert made.echoes(client)
        made.advance(4)
        assert made.receive(client) == b""


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
        [line] = mistakes(made, new)
        assert "fails" in line or "cannot start" in line
        assert refused(made, free)
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
        lines = mistakes(made, new)
        for name in ("one", "two", "three", "four"):
            assert [line for line in lines if f"{tmp_path}/{name}" in line], (name, lines)
        assert "check fails" in lines
        assert [line for line in lines if line.startswith(f"one tcp cannot listen on 127.0.0.1:{number}: port")]
        assert len(lines) == 6


def test_a_place_in_a_file_begins_the_line_about_it() -> None:
    from dataclasses import replace

    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made, socket.create_server(("127.0.0.1", 0)) as taken:
        new = plan({"one": {"text": "new", "fail": "start"}}, f"one tcp 127.0.0.1:{taken.getsockname()[1]}")
        listener = replace(new.listeners[0], place="n.toml:4: ")
        use = replace(new.uses["one"], place="n.toml:2: ")
        [line] = mistakes(made, replace(new, uses={"one": use}, listeners=(listener,)))
        assert line.startswith("n.toml:4: one tcp cannot listen on")
        taken.close()
        [line] = mistakes(made, replace(new, uses={"one": use}, listeners=(listener,)))
        assert line == "n.toml:2: start fails"


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
        assert made.reload(plan(ONE, f"one tcp {new.format(number)}")) == "1 listener opened, 1 closed"
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
        assert mistakes(made, new) == ("start fails",)
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
            [line] = mistakes(made, plan(ONE, f"one tcp 0.0.0.0:{number}"))
            assert line.startswith(f"one tcp cannot listen on 0.0.0.0:{number}: port {number} is in use")
            assert made.greeting(number)[1] == b"one"


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_a_socket_file_whose_mode_changes_is_made_anew(scheme: str, tmp_path: Path) -> None:
    protocol = "tcp" if scheme == "unix" else "udp"
    path = tmp_path / "sock"
    with world(plan(ONE, f"one {protocol} {scheme}:{path}:mode=600")) as made:
        assert made.reload(plan(ONE, f"one {protocol} {scheme}:{path}:mode=660")) == "1 listener opened, 1 closed"
        assert path.stat().st_mode & 0o777 == 0o660
        # It fails after the old one was closed, which is opened again.
        failing = plan(ONE, f"one {protocol} {scheme}:{path}:mode=600", f"one {protocol} {scheme}:{path}:mode=666")
        [line] = mistakes(made, failing)
        assert f"one {protocol} cannot listen on {scheme}:{path}:mode=666: " in line
        assert path.stat().st_mode & 0o777 == 0o660
        if scheme == "unix":
            client = socket.socket(socket.AF_UNIX)
            made.clients.append(client)
            client.connect(str(path))
            assert made.receive(client) == b"one\n"


def test_limits_hold_for_new_connections_and_those_that_are_there_are_counted() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        clients = [made.greeting(made.port())[0] for _ in range(3)]
        limits = plan(ONE, "one tcp 127.0.0.1:0", connections=3)
        assert made.reload(limits) == "1 listener kept; changed: limits of the process"
        assert made.receive(made.connect(made.port())) == b""
        assert all(map(made.echoes, clients))
        clients[0].close()
        made.turn()
        assert made.greeting(made.port())[1] == b"one"
        use = plan({"one": {"text": "one", "limits": {"connections": 2}}}, "one tcp 127.0.0.1:0")
        assert made.reload(use) == "1 listener kept; changed: limits of one, limits of the process"
        assert made.receive(made.connect(made.port())) == b""
        clients[1].close()
        made.turn()
        assert made.receive(made.connect(made.port())) == b""
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.greeting(made.port())[1] == b"one"


def test_a_listeners_own_limits_keep_their_count_while_there_are_any() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0 connections=5")) as made:
        for _ in range(3):
            made.greeting(made.port())
        assert made.reload(plan(ONE, "one tcp 127.0.0.1:0 connections=3")) == "1 listener kept; changed: limits of one"
        assert made.receive(made.connect(made.port())) == b""
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.greeting(made.port())[1] == b"one"


def test_connections_are_watched_by_the_limit_they_came_by() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        before, _ = made.greeting(made.port())
        assert made.echoes(before)
        made.reload(plan(ONE, "one tcp 127.0.0.1:0", life=10))
        after, _ = made.greeting(made.port())
        assert made.echoes(after)
        for _ in range(4):
            made.advance(5)
        assert made.receive(after) == b""
        assert made.echoes(before)


def test_limits_of_datagrams_change() -> None:
    with world(plan(ONE, "one udp 127.0.0.1:0")) as made:
        assert made.ask(made.port()) == b"one"
        made.reload(plan(ONE, "one udp 127.0.0.1:0 deny=127.0.0.0/8"))
        assert made.ask(made.port()) == b""
        made.reload(plan(ONE, "one udp 127.0.0.1:0", amplify=0))
        assert made.ask(made.port()) == b""
        made.reload(plan(ONE, "one udp 127.0.0.1:0"))
        assert made.ask(made.port()) == b"one"


def test_a_file_of_networks_is_read_again_though_the_plan_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "deny"
    file.write_text("192.0.2.0/24\n")
    same = plan(ONE, f"one tcp 127.0.0.1:0 deny=@{file}")
    with world(same) as made:
        assert made.greeting(made.port())[1] == b"one"
        file.write_text("127.0.0.0/8\n")
        made.reload(same)
        assert made.receive(made.connect(made.port())) == b""
        file.write_text("neither\n")
        assert str(file) in mistakes(made, same)[0]
        assert made.receive(made.connect(made.port())) == b""


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
        assert mistakes(made, plan(ONE, *listeners[:1])) == ("it is stopping, and cannot be reloaded",)
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


def test_a_service_that_was_replaced_is_drained_when_the_process_stops() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        client, _ = made.greeting(made.port())
        made.reload(plan({"one": {"text": "new"}}, "one tcp 127.0.0.1:0"))
        assert made.core("one").calls == ["check", "start"]
        made.host.stopService()
        assert made.core("one").calls == ["check", "start", "drain"]
        client.close()
        made.turn(5)
        assert made.core("one").calls[-1] == made.core("new").calls[-1] == "stop"


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


def test_it_does_not_grow_with_the_number_of_reloads() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0")) as made:
        client, _ = made.greeting(made.port())
        for number in range(20):
            text = f"text{number % 2}"
            made.reload(plan({"one": {"text": text}}, "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0"))
        running = made.host.running_plan
        assert [len(listener.gates) for listener in running.listeners] == [2, 0]
        assert [len(service.gates) for service in running.services.values()] == [1]
        assert len(running.departures.retiring) == 1
        client.close()
        made.turn()
        assert running.departures.retiring == {}


def test_ports_for_datagrams_are_known_to_all_services_while_they_are_open() -> None:
    with world(plan(TWO, "one udp 127.0.0.1:0", "two udp 127.0.0.1:0")) as made:
        one, two = made.port(), made.port(1)
        own = made.core("one").context.own_ports
        assert own == {one, two}
        made.reload(plan(ONE, "one udp 127.0.0.1:0"))
        assert own == {one}
        made.reload(plan(TWO, "one udp 127.0.0.1:0", "two udp 127.0.0.1:0"))
        assert own == {one, made.port(1)}
        assert made.core("two").context.own_ports is own


def test_one_process_does_not_become_several() -> None:
    from dataclasses import replace

    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        [line] = mistakes(made, replace(plan(ONE, "one tcp 127.0.0.1:0"), workers=2))
        assert line == "workers 2: one process does not become several by a reload; start it anew"


class Slow:
    """An endpoint that opens when it is told to."""

    def __init__(self, made: World) -> None:
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
    from netsvc import listeners

    made: list[Slow] = []
    original: Any = vars(listeners)["_endpoint"]

    def endpoint(address: Any, reactor: Any) -> Any:
        if address.scheme != "slow":
            return original(address, reactor)
        return made[-1]

    monkeypatch.setattr(listeners, "_endpoint", endpoint)
    return made


def begin(made: World, then: Plan) -> list[Any]:
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
        assert mistakes(made, then) == ("a reload is under way; wait until it is over",)
        port = slow[0].open()
        assert results == ["1 listener kept, 2 opened"]
        assert made.receive(waiting) == b"two\n"
        assert made.greeting(port.getHost().port)[1] == b"two"


def test_an_endpoint_that_does_not_open_in_time_fails_the_reload_and_is_closed_when_it_does(slow: list[Slow]) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        slow.append(Slow(made))
        free = free_port()
        results = begin(made, plan(TWO, "one tcp 127.0.0.1:0", "two tcp slow:x", f"two tcp 127.0.0.1:{free}"))
        made.advance(OPENING_LIMIT)
        assert results[0].value.mistakes == (
            f"two tcp cannot listen on slow:x: it is not open after {OPENING_LIMIT:g} s",
        )
        assert refused(made, free)
        number = slow[0].open().getHost().port
        made.turn()
        assert refused(made, number)
        assert made.reload(plan(ONE, "one tcp 127.0.0.1:0")) == "1 listener kept"


def test_an_endpoint_that_fails_late_fails_the_reload(slow: list[Slow]) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        slow.append(Slow(made))
        results = begin(made, plan(ONE, "one tcp 127.0.0.1:0", "one tcp slow:x"))
        slow[0].listening.errback(OSError(5, "the daemon is gone"))
        assert results[0].value.mistakes == ("one tcp cannot listen on slow:x: the daemon is gone",)
        assert made.deaths == []


def test_a_stop_while_a_reload_waits_ends_the_reload(slow: list[Slow]) -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        slow.append(Slow(made))
        results = begin(made, plan(ONE, "one tcp 127.0.0.1:0", "one tcp slow:x"))
        stopped: list[object] = []
        made.host.stopService().addCallback(stopped.append)
        assert results[0].value.mistakes == ("it is stopping",)
        made.turn(5)
        assert stopped == [None]


def test_an_endpoint_that_takes_its_time_cannot_replace_a_port_that_is_in_its_way(
    slow: list[Slow], tmp_path: Path
) -> None:
    with world(plan(ONE, f"one tcp unix:{tmp_path}/sock")) as made:
        slow.append(Slow(made))
        [line] = mistakes(made, plan(ONE, f"one tcp slow:{tmp_path}/sock"))
        assert line.endswith("it takes its time, and another port is in its way")
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
        [line] = mistakes(made, plan(ONE, "one tcp 127.0.0.1:0"))
        assert line == "it is still starting, and cannot be reloaded before it is ready"
        slow[0].open()
        assert made.reload(plan(ONE, "one tcp 127.0.0.1:0")) == "1 listener opened, 1 closed"


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
        assert results[0].value.mistakes[0].startswith("ZeroDivisionError: oops")
        assert logged_errors.flush(ZeroDivisionError)
        assert made.reload(plan(ONE, "one tcp 127.0.0.1:0")) == "1 listener kept"


def test_a_worker_that_retires_serves_to_the_end_what_is_there_and_lets_go_of_the_rest() -> None:
    with world(plan(TWO, "one tcp 127.0.0.1:0", "one loud 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
        clients = [made.greeting(made.port(place))[0] for place in range(3)]
        waiting = made.connect(made.port(2))
        ports = [made.port(place) for place in range(3)]
        retired: list[object] = []
        made.host.retire([2], [1, 2], 3).addCallback(retired.append)
        assert made.receive(waiting) == b"two\n"
        assert all(refused(made, port) for port in ports)
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
    from netsvc.host import Host

    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        held = Host(plan(ONE, "one tcp 127.0.0.1:0"), made.load, made.reactor, held=True)
        held.privilegedStartService()
        held.startService()
        client = made.connect(held.running_plan.listeners[0].port_number())
        made.turn(5)
        assert made.core("one").calls == ["check", "start"]
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(10)
        held.serve()
        assert made.receive(client) == b"one\n"
        client.close()
        made.turn()
        held.stopService()
        made.turn()
