"""Another twistd plugin in the process: built, guarded, and started."""

from __future__ import annotations

import gc
import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.application.internet import StreamServerEndpointService, TCPServer, TimerService, UDPServer, UNIXServer
from twisted.application.service import IServiceCollection, MultiService, Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver

from netsvc.base.errors import UserError
from netsvc.embedded.service import EmbeddedService, embedded_labels, examine_twistd
from netsvc.guard import Guard
from netsvc.guard.admission import Level
from netsvc.plan.plan import TwistdUse
from tests.builders import acme
from tests.builders.acme import Counting, Endpoint, Plugin, Port, Recorder, embedded, in_use, installed
from tests.builders.facts import states, unlike
from tests.builders.logs import Lines, collected
from tests.builders.loopback import reactor
from tests.builders.site import new_place

log = pytest.fixture(collected)
place = pytest.fixture(new_place)
plugin = pytest.fixture(installed)


def test_its_service_has_an_application_and_is_told_what_of_it_has_no_effect(plugin: Plugin) -> None:
    class Logging(MultiService):
        """Brings a log."""

        def setServiceParent(self, parent: Any) -> None:
            super().setServiceParent(parent)
            parent.setComponent(ILogObserver, print)

    service = Logging()
    built = embedded(plugin, service)
    assert IServiceCollection.providedBy(service.parent)
    [note] = built.notes
    assert states(note, "acme: ", "log")


class Odd(Service):
    """May open a port unseen."""

    def startService(self) -> None:
        super().startService()


def test_what_cannot_be_reached_is_noted(plugin: Plugin) -> None:
    plugin.service = Odd()
    found, notes, _ = examine_twistd(TwistdUse(("acme",)))
    assert found == []
    assert [states(note, "acme: ", f"{__name__}.Odd ", "limits") for note in notes] == [True]
    plugin.service = TimerService(1, print)
    assert examine_twistd(TwistdUse(("acme",))) == ([], [], [])


@pytest.mark.parametrize(
    ("limits", "process", "noted"),
    [
        ({}, {}, True),
        ({"amplify": 3.0}, {}, True),
        ({"amplify": None}, {}, False),
        ({}, {"amplify": None}, False),
        ({"dryrun": frozenset(["amplify"]), "amplify": 1.0}, {}, False),
    ],
)
def test_the_bound_on_answers_over_udp_is_noted(
    plugin: Plugin, limits: dict[str, Any], process: dict[str, Any], noted: bool
) -> None:
    plugin.service = UDPServer(0, DatagramProtocol())
    _, notes, _ = examine_twistd(TwistdUse(("acme",), limits), process)
    assert len(notes) == noted
    if noted:
        assert states(notes[0], "acme: ", "UDP", f" {limits.get('amplify', 3):g} times")


def test_limits_whose_file_cannot_be_read_are_a_mistake(plugin: Plugin) -> None:
    found, _, _ = examine_twistd(TwistdUse(("acme",), {"allow": ("@/no/such/file",)}))
    assert "/no/such/file" in found[0]


def test_each_use_of_a_plugin_has_a_name_of_its_own() -> None:
    uses = [TwistdUse((name,)) for name in ("web", "ftp", "web", "web", "chat")]
    assert embedded_labels(uses) == ["web", "ftp", "web-2", "web-3", "chat"]
    assert embedded_labels(uses, {"chat", "web-2"}) == ["web", "ftp", "web-3", "web-4", "chat-2"]


def test_a_port_opened_by_one_that_cannot_be_built_is_closed_at_once(plugin: Plugin) -> None:
    opened: list[Any] = []

    def hasty(options: Any) -> Any:
        opened.append(reactor().listenTCP(0, Counting(), interface="127.0.0.1"))
        raise ZeroDivisionError("division")

    plugin.service = hasty
    with pytest.raises(UserError, match=r"acme .*: ZeroDivisionError"):
        EmbeddedService(TwistdUse(("acme",)), Guard(reactor()), reactor())
    assert not opened[0].connected


def test_a_port_opened_before_the_start_is_guarded_and_told(plugin: Plugin) -> None:
    factory = Counting()

    def hasty(options: Any) -> Any:
        reactor().listenTCP(0, factory, interface="127.0.0.1")
        return MultiService()

    plugin.service = hasty
    built = EmbeddedService(TwistdUse(("acme",)), Guard(reactor()), reactor())
    built.privileged_start()
    built.start()
    assert [line.rpartition(":")[0] for line in built.lines()] == ["acme listens on 127.0.0.1"]
    built.abandon()
    assert factory.calls == ["start", "stop"]


def test_it_starts_in_two_steps_as_twistd_has_them(plugin: Plugin) -> None:
    recorder = Recorder()
    built = embedded(plugin, recorder)
    assert recorder.calls == []
    built.privileged_start()
    assert recorder.calls == ["privileged"]
    built.start()
    assert recorder.calls == ["privileged", "start"]
    assert [line.partition(" ")[0] for line in built.lines()] == ["acme"]
    built.stop()
    assert recorder.calls == ["privileged", "start", "stop"]


@pytest.mark.parametrize("step", ["privileged", "start"])
@pytest.mark.parametrize("fault", [ZeroDivisionError("division"), SystemExit(3)])
def test_a_service_that_raises_as_it_starts_is_a_line(plugin: Plugin, step: str, fault: BaseException) -> None:
    recorder = Recorder()
    recorder.faults[step] = fault
    built = embedded(plugin, recorder)
    if step == "start":
        built.privileged_start()
    with pytest.raises(UserError) as raised:
        (built.start if step == "start" else built.privileged_start)()
    [line] = raised.value.errors
    assert states(line, "--with acme: ", f"{type(fault).__name__}: {fault}", f"{acme.__file__}:")
    built.abandon()
    assert recorder.calls[-1] == "stop"


def taken_port() -> tuple[socket.socket, int]:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken, taken.getsockname()[1]


def test_a_port_in_use_is_a_line_and_what_was_open_is_closed(plugin: Plugin) -> None:
    taken, number = taken_port()
    factory = Counting()
    tree = MultiService()
    TCPServer(0, factory, interface="127.0.0.1").setServiceParent(tree)
    TCPServer(number, factory, interface="127.0.0.1").setServiceParent(tree)
    built = embedded(plugin, tree, reactor())
    with taken, pytest.raises(UserError) as raised:
        built.privileged_start()
    [line] = raised.value.errors
    assert states(line, "--with acme: ", f"port {number}", f"127.0.0.1:{number}")
    assert factory.calls == ["start"]
    built.abandon()
    assert factory.calls == ["start", "stop"]
    gc.collect()


def test_what_was_abandoned_can_be_started_again(plugin: Plugin, log: Lines) -> None:
    taken, number = taken_port()
    from twisted.application import strports

    tree = MultiService()
    recorder = Recorder()
    recorder.faults["stop"] = RuntimeError("not started")
    recorder.setServiceParent(tree)
    for endpoint in ("tcp:0", f"tcp:{number}"):
        strports.service(f"{endpoint}:interface=127.0.0.1", Counting()).setServiceParent(tree)
    built = embedded(plugin, tree, reactor())
    with taken, pytest.raises(UserError, match=f"cannot listen: port {number} is in use"):
        built.privileged_start()
    built.abandon()
    built.privileged_start()
    built.start()
    assert built.lines()[1] == f"acme listens on 127.0.0.1:{number}"
    built.abandon()
    gc.collect()
    # Nobody waits for a reason why what did not start did not stop.
    assert log == []


# Twisted leaves the socket that it could not bind to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_datagram_port_in_use_is_a_line(plugin: Plugin) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        built = embedded(plugin, UDPServer(number, DatagramProtocol(), interface="127.0.0.1"), reactor())
        with pytest.raises(UserError) as raised:
            built.privileged_start()
        assert states(raised.value.errors[0], f"port {number} is in use", f"127.0.0.1:{number}; ")
        built.abandon()
        del raised, built
        plugin.service = None
        gc.collect()


def test_every_port_that_cannot_be_opened_is_told_by_services_that_would_keep_silent(plugin: Plugin) -> None:
    tree = MultiService()
    for port in (1, 2):
        StreamServerEndpointService(Endpoint(lambda port=port: fail(in_use(port))), Counting()).setServiceParent(tree)  # type: ignore[misc]
    StreamServerEndpointService(Endpoint(lambda: fail(RuntimeError("no Tor\nhere"))), Counting()).setServiceParent(tree)
    built = embedded(plugin, tree)
    with pytest.raises(UserError) as raised:
        built.privileged_start()
    in_use_lines = [("--with acme: ", f"port {port} is in use; ") for port in (1, 2)]
    assert not unlike(raised.value.errors, *in_use_lines, ("--with acme: ", "RuntimeError: no Tor"))
    built.abandon()


def test_what_opens_later_is_waited_for_and_logged_then(plugin: Plugin, log: Lines) -> None:
    slow: list[Deferred[Any]] = [Deferred(), Deferred()]
    failures: list[str] = []
    tree = MultiService()
    for each in slow:
        StreamServerEndpointService(Endpoint(lambda each=each: each), Counting()).setServiceParent(tree)  # type: ignore[misc]
    built = embedded(plugin, tree, failed=failures.append)
    built.privileged_start()
    built.start()
    opened: list[None] = []
    built.opened().addCallback(opened.append)
    assert built.lines() == []
    slow[0].callback(Port("/run/acme"))
    assert opened == []
    assert [states(line, "acme", " /run/acme") for line in log] == [True]
    slow[1].errback(in_use())
    assert opened == [None]
    assert [states(line, "--with acme: ", "port 1 ") for line in failures] == [True]
    assert [states(line, "acme", " /run/acme") for line in built.lines()] == [True]


def test_with_nothing_pending_all_is_open_at_once(plugin: Plugin) -> None:
    assert embedded(plugin).opened().called


def test_lines_name_the_real_ports_and_own_ports_those_of_udp(plugin: Plugin, tmp_path: Path) -> None:
    tree = MultiService()
    TCPServer(0, Counting(), interface="127.0.0.1").setServiceParent(tree)
    UDPServer(0, DatagramProtocol(), interface="127.0.0.1").setServiceParent(tree)
    UNIXServer(str(tmp_path / "acme"), Counting()).setServiceParent(tree)
    built = embedded(plugin, tree, reactor(), label="acme-2")
    built.privileged_start()
    built.start()
    first, second, third = built.lines()
    assert not unlike(
        built.lines(), ("acme-2 ", " 127.0.0.1:"), ("acme-2 udp ", " 127.0.0.1:"), ("acme-2 ", f" {tmp_path}/acme")
    )
    assert " udp " not in first + third
    assert built.own_ports() == {int(second.rpartition(":")[2])}
    assert built.level.name == "acme-2"
    built.abandon()
    assert list(tmp_path.glob("acme*")) == []


def test_the_limits_are_those_of_a_level_that_can_change(plugin: Plugin) -> None:
    built = embedded(plugin)
    assert "perip" not in built.level.limits
    built.level.change({"perip": 3})
    assert built.level.limits["perip"] == 3
    with pytest.raises(UserError):
        built.level.change({"allow": ("@/no/such/file",)})
    assert built.level.limits["perip"] == 3
    memory = MemoryReactorClock()
    guard = Guard(memory)
    level = Level("given", {}, guard.clock)
    assert EmbeddedService(TwistdUse(("acme",)), guard, memory, level=level).level is level
