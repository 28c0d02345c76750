"""Another twistd plugin in the process: found, built, guarded, started, and stopped."""

from __future__ import annotations

import errno
import gc
import socket
import sys
import types
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import inlineCallbacks
from twisted.application.internet import StreamServerEndpointService, TCPServer, TimerService, UDPServer, UNIXServer
from twisted.application.service import IServiceCollection, MultiService, Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver
from twisted.python import usage

from netsvc.embedded.service import EmbeddedService, embedded_labels, examine_twistd
from netsvc.errors import MistakeError
from netsvc.guard import Guard
from netsvc.plan import TwistdUse
from tests.conftest import LoggedErrors
from tests.logs import Lines, collected
from tests.loopback import converse, reactor, turn
from tests.site import Place, new_place

DECLARATION = """
from twisted.application.service import ServiceMaker
acme = ServiceMaker("acme", "acme_tap", "A test", "acme")
"""


@pytest.fixture
def log() -> Iterator[Lines]:
    yield from collected()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from new_place(tmp_path, monkeypatch)


class Plugin:
    """The twistd plugin `acme`: its service, or what its makeService does instead, and its options class."""

    def __init__(self) -> None:
        self.service: Any = MultiService()
        self.options: Any = usage.Options

    def read(self) -> Any:
        return self.options()

    def make(self, options: Any) -> Any:
        return self.service(options) if isinstance(self.service, types.FunctionType) else self.service


@pytest.fixture
def plugin(place: Place, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """Install a twistd plugin for one test."""
    plugin = Plugin()
    module: Any = types.ModuleType("acme_tap")
    module.makeService = plugin.make
    module.Options = plugin.read
    monkeypatch.setitem(sys.modules, "acme_tap", module)
    place.plugin_file("acme_plugins", DECLARATION)
    return plugin


def embedded(plugin: Plugin, service: Any = None, on: Any = None, **details: Any) -> EmbeddedService:
    """Embed a service of the plugin."""
    if service is not None:
        plugin.service = service
    on = on or MemoryReactorClock()
    return EmbeddedService(TwistdUse(("acme",)), Guard(on), on, **details)


def mistakes(*words: str, place: str = "") -> tuple[str, ...]:
    """Return what is wrong with a use."""
    found, notes = examine_twistd(TwistdUse(words, place=place))
    assert notes == []
    return tuple(found)


def mistake(*words: str) -> str:
    [line] = mistakes(*words)
    return line


# To find it.


def test_a_plugin_nobody_has_heard_of_is_a_line_with_the_nearest_names() -> None:
    assert mistake("wbe", "--path", "x") == "--with wbe: no twistd plugin is called wbe; did you mean web?"
    assert mistake("zzzz") == "--with zzzz: no twistd plugin is called zzzz; twistd --help lists them"
    assert mistake("a\x1bb").startswith("--with a\\x1bb: no twistd plugin is called a\\x1bb; ")
    assert mistakes("") == ("--with : no twistd plugin is called that; twistd --help lists them",)


def test_where_it_was_written_begins_the_line() -> None:
    assert mistakes("zzzz", place="netsvc.toml:7: twistd: ") == (
        "netsvc.toml:7: twistd: no twistd plugin is called zzzz; twistd --help lists them",
    )


def test_netsvc_and_its_services_are_run_without_this() -> None:
    assert mistake("netsvc") == "--with netsvc: that is what runs already; write its options without --with"
    assert mistake("netsvc-chat", "9002") == (
        "--with netsvc-chat: that is a service of netsvc; write --chat ADDRESS instead"
    )
    # Nor are they suggested.
    assert "netsvc" not in mistake("netsv")


def test_a_plugin_file_that_does_not_load_harms_nobody_and_is_named_where_it_may_matter(
    place: Place, logged_errors: LoggedErrors
) -> None:
    place.plugin_file("acme_plugins", "1 / 0")
    assert mistakes("portforward", "--port", "tcp:0") == ()
    first, second = mistakes("acme")
    assert first == "--with acme: no twistd plugin is called acme; twistd --help lists them"
    assert "acme_plugins.py does not load: ZeroDivisionError" in second
    # The events are there, but without a text: no log shows them.
    logged_errors.flush(ZeroDivisionError)


def test_a_plugin_declared_twice_is_a_line(place: Place, plugin: Plugin) -> None:
    place.plugin_file("bcme_plugins", DECLARATION.replace("acme_tap", "other_tap"))
    assert mistake("acme") == (
        "--with acme: acme is declared twice: by acme_tap and by other_tap; uninstall one of them"
    )


def test_the_same_declaration_found_twice_is_one(place: Place, plugin: Plugin) -> None:
    place.plugin_file("bcme_plugins", DECLARATION)
    assert mistakes("acme") == ()


def test_what_is_no_plugin_of_twistd_is_passed_over(place: Place, plugin: Plugin) -> None:
    place.plugin_file(
        "bcme_plugins",
        """
from twisted.application.service import IServiceMaker
from twisted.plugin import IPlugin
from zope.interface import implementer
@implementer(IServiceMaker, IPlugin)
class Nameless:
    pass
nameless = Nameless()
""",
    )
    assert mistakes("acme") == ()


def test_a_plugin_whose_module_does_not_import_is_a_line(place: Place) -> None:
    place.plugin_file("acme_plugins", DECLARATION)
    place.write("acme_tap.py", "import acme_needs")
    line = mistake("acme")
    assert line.startswith("--with acme: acme does not load: ModuleNotFoundError: No module named 'acme_needs' at ")
    assert line.endswith("acme_tap.py:1; mend it, or install what it needs")


def test_one_without_a_service_maker_is_a_line(place: Place) -> None:
    place.plugin_file("acme_plugins", DECLARATION)
    place.write("acme_tap.py", "from twisted.python.usage import Options")
    assert mistake("acme").startswith("--with acme: acme cannot be built: AttributeError: ")


# To read its options.


def test_wrong_options_are_a_line() -> None:
    line = mistake("socks", "--no-such-option")
    assert line == "--with socks: option --no-such-option not recognized; twistd socks --help lists its options"


@pytest.mark.parametrize("words", [["--help"], ["--port", "1080", "--version"]])
def test_options_that_show_a_page_are_a_line_that_says_where_to_see_it(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    command = " ".join(["twistd", "socks", *words])
    assert mistake("socks", *words) == (
        f"--with socks: these options of socks show something, and start nothing; run {command} to see it"
    )
    assert capfd.readouterr() == ("", "")


class Loud(usage.Options):
    """Prints, and then fails if it is told to."""

    optFlags = [["fail", "", "Fail"], ["several", "", "Fail in several lines"], ["silent", "", "Say nothing"]]

    def postOptions(self) -> None:
        print("a page")
        print("Traceback", file=sys.stderr)
        if self["fail"]:
            raise AttributeError("no decode\nin two lines")
        if self["several"]:
            raise usage.UsageError("first\n\n  second")
        if self["silent"]:
            raise usage.UsageError("")


def test_whatever_the_options_raise_is_a_line_and_nothing_is_printed(
    plugin: Plugin, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin.options = Loud
    line = mistake("acme", "--fail")
    assert line.startswith("--with acme: acme cannot read its options: AttributeError: no decode at ")
    assert mistakes("acme", "--several") == (
        "--with acme: first; twistd acme --help lists its options",
        "--with acme: second; twistd acme --help lists its options",
    )
    assert mistake("acme", "--silent") == "--with acme: wrong options; twistd acme --help lists its options"
    assert capsys.readouterr() == ("", "")
    assert mistakes("acme") == ()
    assert capsys.readouterr() == ("a page\n", "Traceback\n")


def test_the_options_that_fail_in_todays_words_are_a_line() -> None:
    assert mistake("words", "--group", "x").startswith(
        "--with words: words cannot read its options: AttributeError: 'str' object has no attribute 'decode' at "
    )


# To build it.


def test_a_plugin_that_cannot_make_its_service_is_a_line(plugin: Plugin) -> None:
    def broken(options: Any) -> Any:
        raise ZeroDivisionError("division")

    plugin.service = broken
    assert mistake("acme").startswith("--with acme: acme cannot be built: ZeroDivisionError: division at ")


def test_an_endpoint_string_that_is_wrong_is_a_line() -> None:
    assert mistake("portforward", "--port", "tpc:8080").startswith(
        "--with portforward: portforward cannot be built: ValueError: Unknown endpoint type: 'tpc' at "
    )


def test_a_plugin_that_makes_no_service_is_a_line(plugin: Plugin) -> None:
    plugin.service = lambda options: None
    assert mistake("acme") == "--with acme: acme makes a NoneType, which is no service; mend the plugin"


def test_a_service_that_will_not_join_is_a_line(plugin: Plugin) -> None:
    class Alone(Service):
        """Wants to be alone."""

        def setServiceParent(self, parent: Any) -> None:
            raise MistakeError(["one thing", "another"])

    plugin.service = Alone()
    assert mistakes("acme") == ("--with acme: one thing", "--with acme: another")


def test_its_service_has_an_application_and_is_told_what_of_it_has_no_effect(plugin: Plugin) -> None:
    class Logging(MultiService):
        """Brings a log."""

        def setServiceParent(self, parent: Any) -> None:
            super().setServiceParent(parent)
            parent.setComponent(ILogObserver, print)

    service = Logging()
    built = embedded(plugin, service)
    assert IServiceCollection.providedBy(service.parent)
    assert built.notes == ["acme: it brings a log of its own, which is not used"]


class Odd(Service):
    """May open a port unseen."""

    def startService(self) -> None:
        super().startService()


def test_what_cannot_be_reached_is_noted(plugin: Plugin) -> None:
    plugin.service = Odd()
    found, notes = examine_twistd(TwistdUse(("acme",)))
    assert found == []
    assert notes == [f"acme: what {__name__}.Odd opens after its start, if it does, has no limits, and is not drained"]
    plugin.service = TimerService(1, print)
    assert examine_twistd(TwistdUse(("acme",))) == ([], [])


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
    _, notes = examine_twistd(TwistdUse(("acme",), limits), process)
    assert len(notes) == noted
    if noted:
        assert notes[0].startswith(f"acme: what it answers over UDP beyond {limits.get('amplify', 1):g} times")


def test_limits_whose_file_cannot_be_read_are_a_mistake(plugin: Plugin) -> None:
    found, _ = examine_twistd(TwistdUse(("acme",), {"allow": ("@/no/such/file",)}))
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
    with pytest.raises(MistakeError, match="acme cannot be built: ZeroDivisionError"):
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


# To start it.


class Recorder(Service):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, BaseException] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.faults:
            raise self.faults[name]

    def privilegedStartService(self) -> None:
        self._call("privileged")

    def startService(self) -> None:
        self._call("start")

    def stopService(self) -> None:
        self._call("stop")


def test_it_starts_in_two_steps_as_twistd_has_them(plugin: Plugin) -> None:
    recorder = Recorder()
    built = embedded(plugin, recorder)
    assert recorder.calls == []
    built.privileged_start()
    assert recorder.calls == ["privileged"]
    built.start()
    assert recorder.calls == ["privileged", "start"]
    assert built.lines() == ["acme runs, and listens nowhere"]
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
    with pytest.raises(MistakeError) as raised:
        (built.start if step == "start" else built.privileged_start)()
    [line] = raised.value.mistakes
    assert line.startswith(f"--with acme: acme cannot start: {type(fault).__name__}: {fault} at {__file__}:")
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
    with taken, pytest.raises(MistakeError) as raised:
        built.privileged_start()
    assert raised.value.mistakes == (
        f"--with acme: cannot listen: port {number} is in use at 127.0.0.1:{number}; stop what uses it or choose "
        "another address",
    )
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
    with taken, pytest.raises(MistakeError, match=f"cannot listen: port {number} is in use"):
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
        with pytest.raises(MistakeError) as raised:
            built.privileged_start()
        assert f"cannot listen: port {number} is in use at 127.0.0.1:{number};" in raised.value.mistakes[0]
        built.abandon()
        del raised, built
        plugin.service = None
        gc.collect()


class Endpoint:
    """An endpoint that answers as it is told."""

    def __init__(self, answer: Callable[[], Deferred[Any]]) -> None:
        self.answer = answer

    def listen(self, factory: Any) -> Deferred[Any]:
        return self.answer()


def in_use(port: int = 1) -> CannotListenError:
    return CannotListenError("", port, OSError(errno.EADDRINUSE, "Address already in use"))


def test_every_port_that_cannot_be_opened_is_told_by_services_that_would_keep_silent(plugin: Plugin) -> None:
    tree = MultiService()
    for port in (1, 2):
        StreamServerEndpointService(Endpoint(lambda port=port: fail(in_use(port))), Counting()).setServiceParent(tree)  # type: ignore[misc]
    StreamServerEndpointService(Endpoint(lambda: fail(RuntimeError("no Tor\nhere"))), Counting()).setServiceParent(tree)
    built = embedded(plugin, tree)
    with pytest.raises(MistakeError) as raised:
        built.privileged_start()
    assert raised.value.mistakes == (
        "--with acme: cannot listen: port 1 is in use; stop what uses it or choose another address",
        "--with acme: cannot listen: port 2 is in use; stop what uses it or choose another address",
        "--with acme: cannot listen: RuntimeError: no Tor",
    )
    built.abandon()


class Counting(Factory):
    """Notes when it is started and stopped."""

    protocol = Protocol

    def __init__(self) -> None:
        self.calls: list[str] = []

    def startFactory(self) -> None:
        self.calls.append("start")

    def stopFactory(self) -> None:
        self.calls.append("stop")


class Port:
    """A port of another kind than Twisted's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.stopping: Deferred[None] = Deferred()

    def getHost(self) -> Any:
        return types.SimpleNamespace(name=self.path)

    def stopListening(self) -> Deferred[None]:
        return self.stopping


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
    assert (opened, log) == ([], ["acme listens on /run/acme"])
    slow[1].errback(in_use())
    assert opened == [None]
    assert failures == ["--with acme: cannot listen: port 1 is in use; stop what uses it or choose another address"]
    assert built.lines() == ["acme listens on /run/acme"]


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
    assert first.startswith("acme-2 listens on 127.0.0.1:")
    assert second.startswith("acme-2 udp listens on 127.0.0.1:")
    assert third == f"acme-2 listens on {tmp_path}/acme"
    assert built.own_ports() == {int(second.rpartition(":")[2])}
    assert built.level.name == "acme-2"
    built.abandon()
    assert list(tmp_path.glob("acme*")) == []


def test_the_limits_are_those_of_a_level_that_can_change(plugin: Plugin) -> None:
    built = embedded(plugin)
    assert "perip" not in built.level.limits
    built.level.change({"perip": 3})
    assert built.level.limits["perip"] == 3
    with pytest.raises(MistakeError):
        built.level.change({"allow": ("@/no/such/file",)})
    assert built.level.limits["perip"] == 3
    memory = MemoryReactorClock()
    guard = Guard(memory)
    level = guard.service("given", {})
    assert EmbeddedService(TwistdUse(("acme",)), guard, memory, level=level).level is level


# To stop it.


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
    assert built.notes == ["manhole: the ports that its users forward have no limits, and are not drained"]
    built.privileged_start()
    built.start()
    address = ("127.0.0.1", int(built.lines()[0].rpartition(":")[2]))
    with socket.create_connection(address) as served, socket.create_connection(address) as refused:
        _, greeting = yield converse(served, b"")
        assert greeting.startswith(b"SSH-2.0-Twisted")
        _, nothing = yield converse(refused, b"")
        assert nothing == b""
        yield built.stop_listening()
        assert guard.census() == {"manhole": 1}
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
        first, second = built.stop_listening(), built.stop_listening()
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
    assert built.lines() == ["acme runs, and listens nowhere"]


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
    assert len(log) == 2 and all(line.startswith("acme failed to stop") for line in log)


def test_one_that_does_not_stop_is_given_up_with_a_line(plugin: Plugin, log: Lines) -> None:
    class Endless(Service):
        """Never stops."""

        def stopService(self) -> Any:
            return Deferred()

    built = embedded(plugin, Endless())
    stopping = built.stop()
    stopping.cancel()
    assert stopping.called
    assert log == ["acme has not stopped in time"]


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
