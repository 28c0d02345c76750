"""Twistd plugins in a plan that is reloaded: some stay, some come and some go."""

from __future__ import annotations

import socket
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.application.internet import TCPServer, UDPServer
from twisted.application.service import MultiService
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.python import usage

from netsvc.plan.limits import parse_limits
from netsvc.plan.plan import Plan, TwistdUse
from tests.builders.acme import DECLARATION
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.processes import free_port
from tests.builders.reloaded import ONE, RunningServer, plan, world
from tests.builders.site import Place, new_place


class Greeting(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(f"{self.factory.text}\n".encode())  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]


class Answering(DatagramProtocol):
    def datagramReceived(self, data: bytes, peer: Any) -> None:
        assert self.transport is not None
        self.transport.write(b"answer", peer)


class Options(usage.Options):
    optParameters = [["port", None, 0, "", int], ["udp", None, None, "", int], ["text", None, "acme", ""]]


class Tree(MultiService):
    """What the plugin makes; `fails` has the texts of those that do not start."""

    made: list[Tree] = []
    fails: set[str] = set()

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.text = options["text"]
        self.made.append(self)
        factory: Any = Factory.forProtocol(Greeting)
        factory.text = self.text
        TCPServer(options["port"], factory, interface="127.0.0.1").setServiceParent(self)
        if options["udp"] is not None:
            UDPServer(options["udp"], Answering(), interface="127.0.0.1").setServiceParent(self)

    def startService(self) -> None:
        if self.text in self.fails:
            raise RuntimeError("no")
        super().startService()


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Install a twistd plugin `acme`, for one test."""
    module: Any = types.ModuleType("acme_tap")
    module.makeService, module.Options = Tree, Options
    monkeypatch.setitem(sys.modules, "acme_tap", module)
    monkeypatch.setattr(Tree, "made", [])
    monkeypatch.setattr(Tree, "fails", set())
    for place in new_place(tmp_path, monkeypatch):
        place.plugin_file("acme_plugins", DECLARATION)
        yield place


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def with_acme(base: Plan, *uses: str, **limits: str) -> Plan:
    made = tuple(TwistdUse(("acme", *words.split()), parse_limits(limits), "n.toml:9: ") for words in uses)
    return replace(base, twistd=made)


def port_of(made: RunningServer, place: int = 0) -> int:
    port = made.host.running_plan.plugins[place].offered()[0]
    return int(port.sockets[0].getsockname()[1])


def base() -> Plan:
    return plan(ONE, "one tcp 127.0.0.1:0", drain=2)


def test_it_starts_with_the_rest_and_ends_with_it(lines: Lines) -> None:
    with world(with_acme(base(), "", "--udp 0")) as made:
        assert made.greeting(port_of(made))[1] == b"acme"
        assert [line.rpartition(":")[0] for line in lines if " listens on " in line] == [
            "one tcp listens on 127.0.0.1",
            "acme listens on 127.0.0.1",
            "acme-2 listens on 127.0.0.1",
            "acme-2 udp listens on 127.0.0.1",
        ]
        offered = made.host.running_plan.plugins[1].offered()
        udp = {port.sockets[0].getsockname()[1] for port in offered if port.kind == "datagram"}
        assert udp
        assert made.core("one").context.own_ports == udp
    assert [tree.running for tree in Tree.made] == [0, 0]


def test_one_whose_words_are_the_same_goes_on_and_its_limits_change() -> None:
    with world(with_acme(base(), "")) as made:
        port = port_of(made)
        client, _ = made.greeting(port)
        assert made.reload(with_acme(base(), "")) == "1 listener kept"
        assert states(made.reload(with_acme(base(), "", connections="1")), "1 ", " kept", "changed: ", "plugins")
        assert port_of(made) == port
        assert made.receive(made.connect(port)) == b""
        assert made.echoes(client)
        assert len(Tree.made) == 1
        life = replace(with_acme(base(), ""), limits=parse_limits({"life": "5"}))
        made.reload(life)
        after, _ = made.greeting(port)
        made.advance(6)
        made.advance(6)
        assert made.receive(after) == b""
        assert made.echoes(client)


def test_the_limits_of_its_datagrams_change() -> None:
    number = free_port()
    with world(with_acme(base(), f"--udp {number}")) as made:
        assert made.ask(number) == b"answer"
        made.reload(with_acme(base(), f"--udp {number}", amplify="0"))
        assert made.ask(number) == b""


def test_one_that_is_added_serves_and_one_that_is_gone_drains(lines: Lines) -> None:
    with world(base()) as made:
        made.reload(with_acme(base(), ""))
        port = port_of(made)
        assert f"acme listens on 127.0.0.1:{port}" in lines
        client, text = made.greeting(port)
        assert text == b"acme"
        waiting = made.connect(port)
        made.host.reload(base())
        assert made.receive(waiting) == b"acme\n"
        assert made.refused(port)
        assert made.echoes(client)
        assert Tree.made[0].running
        made.advance(2)
        assert made.receive(client) == made.receive(waiting) == b""
        client.close()
        waiting.close()
        made.turn(5)
        assert not Tree.made[0].running
        assert made.host.running_plan.plugins == []


@pytest.mark.parametrize("text", ["new", "acme"])
def test_with_other_words_it_is_started_anew_on_the_same_port(text: str) -> None:
    number = free_port()
    with world(with_acme(base(), f"--port {number}")) as made:
        client, _ = made.greeting(number)
        assert made.reload(with_acme(base(), f"--port {number} --text {text}")).endswith("changed: twistd plugins")
        assert made.greeting(number)[1] == text.encode()
        assert made.host.running_plan.plugins[0].key == "acme"
        assert made.echoes(client)


def test_if_it_does_not_start_the_old_one_runs_on() -> None:
    number = free_port()
    Tree.fails.add("bad")
    with world(with_acme(base(), f"--port {number}")) as made:
        client, _ = made.greeting(number)
        [line] = made.errors(with_acme(base(), f"--port {number} --text bad"))
        assert line.startswith("n.toml:9: acme ") and "RuntimeError: no" in line
        assert made.greeting(number)[1] == b"acme"
        assert made.echoes(client)
        # On another port, the old one need not be touched.
        [line] = made.errors(with_acme(base(), "--text bad"))
        assert made.greeting(number)[1] == b"acme"
        assert made.reload(with_acme(base(), f"--port {number}")) == "1 listener kept"
        client.close()
        made.turn()
        assert [tree.text for tree in Tree.made if tree.running] == ["acme"]


def test_if_the_old_one_cannot_run_on_either_that_is_told(lines: Lines) -> None:
    number = free_port()
    with world(with_acme(base(), f"--port {number}")) as made:
        Tree.fails |= {"bad", "acme"}
        made.errors(with_acme(base(), f"--port {number} --text bad"))
        critical = [line for line, level in zip(lines, lines.levels, strict=True) if level == "critical"]
        assert any(line.startswith("acme ") for line in critical)
        assert made.greeting(made.port())[1] == b"one"
        assert made.refused(number)
        Tree.fails.clear()
        made.reload(with_acme(base(), f"--port {number}"))
        assert made.greeting(number)[1] == b"acme"


def test_what_is_wrong_with_it_fails_the_reload(tmp_path: Path) -> None:
    with world(with_acme(base(), "")) as made, socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        lines = made.errors(replace(base(), twistd=(TwistdUse(("acme", "--what"), origin="n.toml:9: "),)))
        assert lines[0].startswith("n.toml:9: option --what not recognized")
        lines = made.errors(with_acme(base(), "", f"--port {number}"))
        assert lines == (f"n.toml:9: cannot listen: port {number} is in use",) or "in use" in lines[0]
        for use in ("", "--text new"):
            lines = made.errors(with_acme(base(), use, deny=f"@{tmp_path}/none"))
            assert str(tmp_path) in lines[0]
            assert lines[0].startswith("n.toml:9: ")
        assert made.greeting(port_of(made))[1] == b"acme"
        assert [tree.text for tree in Tree.made if tree.running] == ["acme"]


def test_a_port_goes_from_a_listener_to_a_plugin_and_back() -> None:
    number = free_port()
    here = plan(ONE, f"one tcp 127.0.0.1:{number}")
    with world(here) as made:
        client, _ = made.greeting(number)
        made.reload(with_acme(plan({}), f"--port {number}"))
        assert made.greeting(number)[1] == b"acme"
        assert made.echoes(client)
        made.reload(here)
        assert made.greeting(number)[1] == b"one"
        Tree.fails.add("acme")
        assert "cannot start" in made.errors(with_acme(plan({}), f"--port {number}"))[0]
        assert made.greeting(number)[1] == b"one"


@pytest.mark.parametrize("new", ["proxy:trust=127.0.0.1:127.0.0.1:{}", "0.0.0.0:{}"])
def test_a_port_that_was_closed_for_it_is_opened_after_those_in_its_way_are_closed(new: str, lines: Lines) -> None:
    number = free_port()
    with world(plan(ONE, f"one tcp 127.0.0.1:{number}")) as made, socket.create_server(("127.0.0.1", 0)) as taken:
        then = plan({"one": {"text": "new"}}, f"one tcp {new.format(number)}")
        assert "in use" in made.errors(with_acme(then, f"--port {taken.getsockname()[1]}"))[0]
        assert "critical" not in lines.levels
        assert made.greeting(number)[1] == b"one"


def test_a_port_that_cannot_be_opened_again_is_told_and_the_next_reload_opens_it(lines: Lines) -> None:
    number = free_port()
    first = plan(ONE, f"one tcp 127.0.0.1:{number}", "one tcp 127.0.0.1:0")
    with world(first) as made, socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as thief:
        port, built = made.port(1), []

        class Thieving(Tree):
            def __init__(self, options: Any) -> None:
                super().__init__(options)
                built.append(self)
                if len(built) == 2:
                    # It is built once more when the port of the listener has been closed for it.
                    thief.bind(("127.0.0.1", number))

        sys.modules["acme_tap"].makeService = Thieving  # type: ignore[attr-defined]
        then = with_acme(plan(ONE, "one tcp 127.0.0.1:0"), f"--port {taken.getsockname()[1]}")
        assert "in use" in made.errors(then)[0]
        told = f"one tcp cannot listen on 127.0.0.1:{number}: port {number} is in use"
        assert any(line.startswith(told) for line in lines)
        assert "critical" in lines.levels
        assert made.greeting(port)[1] == b"one"
        thief.close()
        assert made.reload(first) == "1 listener kept, 1 opened"
        assert made.greeting(number)[1] == b"one"
        assert made.greeting(port)[1] == b"one"


def test_a_listener_that_fails_to_take_the_port_of_a_plugin_gives_it_back() -> None:
    number = free_port()
    with world(with_acme(plan({}), f"--port {number}")) as made:
        clashing = plan(ONE, f"one tcp 127.0.0.1:{number}", f"one tcp tcp:{number}:interface=127.0.0.1")
        assert "in use" in made.errors(clashing)[0]
        assert made.greeting(number)[1] == b"acme"


def test_a_failure_at_the_start_leaves_nothing_open() -> None:
    from netsvc.base.errors import StartError

    number = free_port()
    Tree.fails.add("acme")
    with pytest.raises(StartError, match=r"acme .*: RuntimeError: no"):
        RunningServer(with_acme(base(), f"--port {number}"))
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", number)) != 0
