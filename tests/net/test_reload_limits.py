"""What a reload does to limits, to files of networks and to certificates."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from netsvc.base.errors import StartError
from netsvc.plan.limits import LIMITS
from tests.builders.facts import counted, states
from tests.builders.logs import Lines, collected
from tests.builders.reloaded import ONE, TWO, RunningServer, plan, world


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def test_limits_hold_for_new_connections_and_those_that_are_there_are_counted() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        clients = [made.greeting(made.port())[0] for _ in range(3)]
        limits = plan(ONE, "one tcp 127.0.0.1:0", connections=3)
        summary = made.reload(limits)
        assert counted(summary) == {"kept": 1}
        assert states(summary, "changed: ", "limits", "process")
        assert made.receive(made.connect(made.port())) == b""
        assert all(map(made.echoes, clients))
        clients[0].close()
        made.turn()
        assert made.greeting(made.port())[1] == b"one"
        use = plan({"one": {"text": "one", "limits": {"connections": 2}}}, "one tcp 127.0.0.1:0")
        summary = made.reload(use)
        assert counted(summary) == {"kept": 1}
        assert states(summary, "changed: ", "limits", " one", "limits", "process")
        assert made.receive(made.connect(made.port())) == b""
        clients[1].close()
        made.turn()
        assert made.receive(made.connect(made.port())) == b""
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.greeting(made.port())[1] == b"one"


def probing(made: RunningServer) -> int:
    """Return after how many seconds a new connection is probed; 0 if it is not."""
    made.greeting(made.port())
    [newest] = sorted(made.host.guard.live, key=lambda each: each.number)[-1:]
    accepted = newest.hooks.socket
    on = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) if on else 0


def test_new_connections_are_probed_after_the_time_of_their_limit() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        assert probing(made) == LIMITS["keepalive"].default
        made.reload(plan(ONE, "one tcp 127.0.0.1:0", keepalive=30))
        assert probing(made) == 30
        made.reload(plan(ONE, "one tcp 127.0.0.1:0 keepalive=1.5", keepalive=30))
        assert probing(made) == 2
        made.reload(plan({"one": {"text": "one", "limits": {"keepalive": "none"}}}, "one tcp 127.0.0.1:0"))
        assert probing(made) == 0
        made.reload(plan(ONE, "one tcp 127.0.0.1:0", dryrun="keepalive"))
        assert probing(made) == 0
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert probing(made) == LIMITS["keepalive"].default


def test_a_listeners_own_limits_keep_their_count_while_there_are_any() -> None:
    with world(plan(ONE, "one tcp 127.0.0.1:0 connections=5")) as made:
        for _ in range(3):
            made.greeting(made.port())
        summary = made.reload(plan(ONE, "one tcp 127.0.0.1:0 connections=3"))
        assert counted(summary) == {"kept": 1}
        assert states(summary, "changed: ", "limits", " one")
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
        assert str(file) in made.errors(same)[0]
        assert made.receive(made.connect(made.port())) == b""


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


def test_a_renewed_certificate_is_used_at_once(tmp_path: Path, lines: Lines) -> None:
    from tests.builders.certificates import write_certificate

    key, certificate = write_certificate(tmp_path, "localhost")
    same = plan(ONE, f"one tcp tls:0:cert={certificate}:key={key}:interface=127.0.0.1")
    with world(same) as made:
        port = made.port()
        (tmp_path / "new").mkdir()
        for new, old in zip(write_certificate(tmp_path / "new", "localhost"), (key, certificate), strict=True):
            new.replace(old)
        assert counted(made.reload(same)) == {"kept": 1}
        assert made.port() == port
        assert any(states(line, certificate, "valid until ") for line in lines)


def test_limits_that_cannot_be_kept_stop_a_start_with_every_other_mistake(tmp_path: Path) -> None:
    file = tmp_path / "none"
    with pytest.raises(StartError) as raised:
        RunningServer(plan({"one": {"text": "one", "fail": "check"}}, "one tcp 127.0.0.1:0", deny=f"@{file}"))
    first, second = str(raised.value).splitlines()
    assert str(file) in first
    assert second == "netsvc: check fails"
