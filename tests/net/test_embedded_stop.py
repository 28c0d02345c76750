"""Another twistd plugin in the process: drained, and stopped."""

from __future__ import annotations

import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import inlineCallbacks
from twisted.application.internet import StreamServerEndpointService, TCPServer
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol

from netsvc.embedded.service import EmbeddedService
from netsvc.guard import Guard
from netsvc.plan.plan import TwistdUse
from tests.builders.acme import Counting, Endpoint, Plugin, Port, Recorder, embedded, installed
from tests.builders.census import census
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.loopback import converse, reactor, turn
from tests.builders.site import new_place
from tests.conftest import LoggedErrors

log = pytest.fixture(collected)
place = pytest.fixture(new_place)
plugin = pytest.fixture(installed)


class Greeting(Protocol):
    """Greets, and then waits."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(b"hello\r\n")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@inlineCallbacks
def test_a_manhole_by_ssh_has_limits_and_is_drained(tmp_path: Path) -> Generator[Deferred[Any], Any, None]:
    pytest.importorskip("bcrypt", reason="twisted[conch] is not installed")
    (tmp_path / "passwd").write_text("alice:secret\n")
    words = "--sshPort tcp:0:interface=127.0.0.1 --sshKeySize 2048"
    use = TwistdUse(("manhole", *words.split(), "--sshKeyDir", str(tmp_path), "--passwd", str(tmp_path / "passwd")))
    guard = Guard(reactor(), {"perip": 1})
    built = EmbeddedService(use, guard, reactor())
    [note] = built.notes
    assert states(note, "manhole", "forward", "no limits", "not drained")
    built.privileged_start()
    built.start()
    address = ("127.0.0.1", int(built.lines()[0].rpartition(":")[2]))
    with socket.create_connection(address) as served, socket.create_connection(address) as refused:
        _, greeting = yield converse(served, b"")
        assert greeting.startswith(b"SSH-2.0-Twisted")
        with pytest.raises(ConnectionResetError):
            yield converse(refused, b"")
        yield built.drain()
        assert census(guard) == {"manhole": 1}
    while guard.live:
        yield turn()
    yield built.stop()
    guard.close()


@inlineCallbacks
def test_it_stops_listening_with_all_who_wait_taken_and_stops_after_they_are_drained(
    plugin: Plugin,
) -> Generator[Deferred[Any], Any, None]:
    factory = Counting()
    factory.protocol = Greeting
    guard = Guard(reactor())
    plugin.service = TCPServer(0, factory, interface="127.0.0.1")
    built = EmbeddedService(TwistdUse(("acme",)), guard, reactor())
    built.privileged_start()
    built.start()
    port = int(built.lines()[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as waiting:
        # No turn of the reactor has taken it yet.
        first, second = built.drain(), built.drain()
        yield first
        yield second
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        _, greeting = yield converse(waiting, b"")
        assert greeting == b"hello\r\n"
        assert factory.calls == ["start"]
        waiting.close()
        while guard.live:
            yield turn()
    yield built.stop()
    guard.close()
    assert factory.calls == ["start", "stop"]
    [line] = built.lines()
    assert states(line, "acme", "nowhere")


def test_services_stop_from_the_last_to_the_first_and_a_failure_is_logged_once(
    plugin: Plugin, logged_errors: LoggedErrors, log: Lines
) -> None:
    order: list[str] = []

    class Stopping(Service):
        """Notes that it stops, and fails if it is told to."""

        def __init__(self, name: str, answer: Any) -> None:
            self.setName(name)
            self.answer = answer

        def stopService(self) -> Any:
            order.append(str(self.name))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    last: Deferred[None] = Deferred()
    tree, branch = MultiService(), MultiService()
    Stopping("one", RuntimeError("one")).setServiceParent(tree)
    branch.setServiceParent(tree)
    Stopping("two", fail(ValueError("two"))).setServiceParent(branch)
    Stopping("three", last).setServiceParent(tree)
    built = embedded(plugin, tree)
    built.privileged_start()
    built.start()
    stopped: list[None] = []
    built.stop().addCallback(stopped.append)
    assert order == ["three", "two", "one"]
    assert stopped == []
    last.callback(None)
    assert stopped == [None]
    assert {str(failure.value) for failure in logged_errors.flush(RuntimeError, ValueError)} == {"one", "two"}
    assert len(log) == 2 and all(states(line.splitlines()[0], "acme", "failed") for line in log)


def test_one_that_does_not_stop_is_given_up_with_a_line(plugin: Plugin, log: Lines) -> None:
    class Endless(Service):
        """Never stops."""

        def stopService(self) -> Any:
            return Deferred()

    built = embedded(plugin, Endless())
    stopping = built.stop()
    stopping.cancel()
    assert stopping.called
    assert len(log) == 1 and states(log[0], "acme", "not stopped")


def test_a_factory_that_fails_to_stop_is_logged(plugin: Plugin, logged_errors: LoggedErrors) -> None:
    class Stuck(Factory):
        """Cannot stop."""

        def stopFactory(self) -> None:
            raise RuntimeError("stuck")

    built = embedded(plugin, StreamServerEndpointService(Endpoint(lambda: succeed(Port("/x"))), Stuck()))
    built.privileged_start()
    built._ports.open()[0][1].port.stopping.callback(None)  # type: ignore[attr-defined]
    built.stop()
    assert [str(failure.value) for failure in logged_errors.flush(RuntimeError)] == ["stuck"]


def test_it_does_not_stop_before_its_ports_are_closed(plugin: Plugin) -> None:
    port, recorder = Port("/x"), Recorder()
    tree = MultiService()
    StreamServerEndpointService(Endpoint(lambda: succeed(port)), Counting()).setServiceParent(tree)
    recorder.setServiceParent(tree)
    built = embedded(plugin, tree)
    built.privileged_start()
    built.start()
    built.stop()
    assert recorder.calls[-1] == "start"
    port.stopping.callback(None)
    assert recorder.calls[-1] == "stop"
