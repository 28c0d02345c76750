"""check_service finds every kind of breach, and none where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import fail
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.plugin import IPlugin
from zope.interface import implementer

from netsvc.discovery import discover
from netsvc.errors import MistakeError, PluginError
from netsvc.interfaces import Context, INetworkService, Options
from netsvc.service import PlainCore, Service, ServicePlugin
from netsvc.testing import BreachError, check_service
from netsvc.testing.contract import check_import
from tests.conftest import LoggedErrors

SAMPLES = {
    "echo": {"tcp": [b"hello\n", b"\x00\xff" * 300], "udp": [b"hello"]},
    "reply": {"tcp": [b"hello", b"exit\n"], "udp": [b"a longer datagram than the answer is"]},
    "chat": {"line": [b"hello\n/nick ann\n/who\n/quit\n", "你好\r\n".encode("gbk")]},
    "files": {"classic": [b"one.txt\n", b"none\r\n", "名.txt".encode()]},
}
CHUNKED = {"reply": ("tcp",)}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_our_own_services_keep_the_contract(name: str, tmp_path: Path) -> None:
    if name not in discover().services:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "one.txt").write_bytes(b"1" * 100)
    settings = {"root": str(tmp_path)} if name == "files" else {}
    report = check_service(name, settings, samples=SAMPLES[name], chunked=CHUNKED.get(name, ()))
    assert str(report).startswith(f"{name} keeps the contract:\n  declaration: ")


class Parrot(Protocol):
    transport: Any
    factory: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class DatagramParrot(DatagramProtocol):
    core: Any

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if addr:
            self.transport.write(datagram, addr)  # type: ignore[union-attr]


class Core(PlainCore):
    """A core whose parts a test replaces."""


def service(
    tcp: Any = Parrot, udp: Any = None, core: Any = PlainCore, options: type[Options] = Options, **names: Any
) -> Service:
    """Declare a service, all right but for what is given."""
    named = {"name": "demo", "description": "For tests", **names}
    return Service(
        **named, core=core, options=options, streams={"tcp": tcp}, datagrams={"udp": udp} if udp is not None else {}
    )


def breach(broken: Any, **how: Any) -> str:
    with pytest.raises(BreachError) as caught:
        check_service(broken, **how)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


class TestReport:
    def test_says_what_was_checked(self) -> None:
        report = check_service(service(udp=DatagramParrot), samples={"tcp": [b"ab"], "udp": [b"x", b"y"]})
        assert report.service == "demo"
        assert report.lines == (
            "declaration: 2 protocols (tcp, udp), 0 options",
            "import: not checked, for no module holds this declaration",
            "build() and check(): a fresh core, no side effects",
            "start() and stop() leave nothing behind",
            "tcp: 1 samples and garbage, whole, split and read late: the same answer",
            "tcp: 576 connections lost, at every moment of the samples",
            "udp: 2 samples, garbage, 0 and 65,507 bytes, over UDP and UNIX sockets",
            "drain() ends, with and without live connections",
        )

    def test_a_pointer_is_as_good_as_a_declaration(self) -> None:
        plugin = ServicePlugin("echo", "netsvc.services.echo.service:service", "Send back what comes")
        assert "import: netsvc.services.echo.service:service loads without the reactor" in check_service(plugin).lines

    def test_the_place_of_a_declaration_is_found(self) -> None:
        from netsvc.services.echo.service import service as echo

        assert "import: netsvc.services.echo.service:service loads without the reactor" in check_service(echo).lines

    def test_an_unknown_protocol_in_the_arguments_is_the_callers_mistake(self) -> None:
        with pytest.raises(ValueError, match=r"^demo speaks no tpc; it speaks tcp$"):
            check_service(service(), samples={"tpc": []})
        with pytest.raises(ValueError, match="demo speaks no line"):
            check_service(service(), chunked=["line"])

    def test_wrong_settings_are_the_callers_mistake(self) -> None:
        with pytest.raises(MistakeError, match="--colour: there is no such option"):
            check_service(service(), {"colour": "red"})

    def test_an_unknown_service_is_the_callers_mistake(self) -> None:
        with pytest.raises(PluginError, match="no service is called nosuch"):
            check_service("nosuch")


class TestNotes:
    def test_a_model_service_earns_none(self) -> None:
        assert check_service("echo").notes == ()

    def test_say_what_users_will_not_like(self) -> None:
        report = check_service(service())
        assert report.notes == (
            "tcp loses its answer to a peer that sends and half-closes at once, "
            "as a client at the end of a pipe does; implement IHalfCloseableProtocol",
            "tcp holds all that it answers to a peer that does not read; "
            "call transport.registerProducer(transport, True) when the connection is made",
        )
        assert str(report).endswith(f"\n  note: {report.notes[1]}")

    def test_leave_a_protocol_alone_that_never_answers(self) -> None:
        assert check_service(service(Protocol)).notes == ()


class Declared:
    """A declaration made without `Service`, which leaves more to get wrong."""

    name = "demo"
    description = "For tests"
    options: Any = Options
    protocols: Any = {"tcp": "stream"}

    def build(self, options: Any, context: Context) -> Any:
        return service().build(options, context)


@implementer(INetworkService, IPlugin)
class Proper(Declared):
    """Right in all that is not changed."""


class ClashOptions(Options):
    optParameters = [["tcp", None, None, "The same name as a protocol"]]


class LimitOptions(Options):
    limits = ("heap",)


class TestDeclaration:
    def test_one_without_service_passes(self) -> None:
        check_service(Proper())

    def test_must_provide_the_interface(self) -> None:
        assert breach(Declared()).startswith("demo: the declaration does not provide INetworkService: ")

    def test_must_have_all_of_it(self) -> None:
        @implementer(INetworkService)
        class Partial:  # type: ignore[misc]
            name = "part"

        assert "attribute was not provided" in breach(Partial())

    @pytest.mark.parametrize(
        ("attribute", "value", "sentence"),
        [
            ("name", "De mo", "the declaration is wrong: 'De mo' is no name for a service or protocol: use"),
            ("protocols", {}, "the declaration is wrong: service demo declares no protocol"),
            ("protocols", {"TCP": "stream"}, "the declaration is wrong: 'TCP' is no name"),
            ("protocols", {"tcp": "pipe"}, "protocol tcp is 'pipe': say 'stream' or 'datagram'"),
            ("description", "", "the description '' is no line for --help: 1 to 100 plain characters"),
            ("description", "two\nlines", r"the description 'two\nlines' is no line for --help"),
            ("description", "x" * 101, "is no line for --help"),
            ("options", dict, "options makes dict: give it a subclass of netsvc.interfaces.Options"),
            ("options", ClashOptions, "option tcp and protocol tcp would both be --demo-tcp; rename one of them"),
            ("options", LimitOptions, "limits names heap, which is no option"),
        ],
    )
    def test_every_part_is_judged(self, attribute: str, value: object, sentence: str) -> None:
        declared = Proper()
        setattr(declared, attribute, value)
        assert sentence in breach(declared)

    def test_the_longest_description_passes(self) -> None:
        check_service(service(description="x" * 100))


class TestImport:
    @pytest.fixture
    def module(self, tmp_path: Path) -> Iterator[Callable[[str], str]]:
        names: list[str] = []

        def write(text: str) -> str:
            names.append(f"declared_{len(names)}_{os.getpid()}")
            (tmp_path / f"{names[-1]}.py").write_text(f"from netsvc.services.echo.service import service\n{text}\n")
            return f"{names[-1]}:service"

        sys.path.insert(0, str(tmp_path))
        yield write
        sys.path.remove(str(tmp_path))
        for name in names:
            sys.modules.pop(name, None)

    def test_a_plain_module_passes(self, module: Callable[[str], str]) -> None:
        target = module("")
        assert f"import: {target} loads without the reactor" in check_service(target).lines

    def test_must_not_import_the_reactor(self, module: Callable[[str], str]) -> None:
        target = module("from twisted.internet import reactor")
        assert f"importing {target} imports twisted.internet.reactor, which breaks twistd --reactor" in breach(target)

    def test_must_work_in_a_fresh_process(self, module: Callable[[str], str]) -> None:
        target = module("import sys\nif 'pytest' not in sys.modules: raise OSError('no pytest')")
        assert f"{target} cannot be imported in a fresh process: OSError: no pytest" in breach(target)

    def test_must_come_to_an_end(self, module: Callable[[str], str]) -> None:
        with pytest.raises(BreachError, match=r"takes more than 0\.01 s; does it run something\?$"):
            check_import(module("import time\ntime.sleep(99)"), 0.01)


class CallingCore(PlainCore):
    def __init__(self, options: Any, context: Context) -> None:
        super().__init__(options, context)
        context.reactor.callLater(1, print)


class OpeningCore(PlainCore):
    def __init__(self, options: Any, context: Context) -> None:
        super().__init__(options, context)
        LEFT_OPEN.append(os.open("/dev/null", os.O_RDONLY))


LEFT_OPEN: list[int] = []


@pytest.fixture
def close_left_open() -> Iterator[None]:
    yield
    while LEFT_OPEN:
        os.close(LEFT_OPEN.pop())


class TestBuild:
    def test_must_not_schedule_anything(self) -> None:
        assert breach(service(core=CallingCore)) == "demo: build() schedules a call (print); do that in start()"

    @pytest.mark.usefixtures("close_left_open")
    def test_must_not_open_anything(self) -> None:
        assert breach(service(core=OpeningCore)) == "demo: build() left 2 file descriptors open"

    def test_must_not_use_the_processes_own_reactor(self) -> None:
        def core(options: Any, context: Context) -> object:
            from twisted.internet import reactor

            any_reactor: Any = reactor
            return any_reactor.callLater(99, print)

        assert breach(service(core=core)) == (
            "demo: build() left a call on the process's own reactor (print); use context.reactor"
        )

    def test_must_not_raise(self) -> None:
        def core(options: Any, context: Context) -> object:
            raise KeyError("colour")

        assert f"demo: build() raised KeyError: 'colour' at {__file__}:" in breach(service(core=core))

    def test_must_not_log_an_error(self, logged_errors: LoggedErrors) -> None:
        def core(options: Any, context: Context) -> object:
            context.log.error("no {thing}\x1b", thing="good")
            return None

        assert breach(service(core=core)) == r"demo: build() logged an error: no good\x1b"

    def test_must_not_leave_a_failure_unheard(self, logged_errors: LoggedErrors) -> None:
        def core(options: Any, context: Context) -> object:
            fail(OSError("unheard"))
            return object()

        assert breach(service(core=core)) == "demo: build() logged an error: OSError: unheard"
        logged_errors.flush(OSError)

    def test_must_make_a_fresh_core(self) -> None:
        shared = object()
        assert "build() returns the same core twice" in breach(service(core=lambda options, context: shared))

    def test_must_return_an_instance(self) -> None:
        declared = Proper()
        declared.build = lambda options, context: object()  # type: ignore[method-assign]
        assert "what build() returns does not provide IServiceInstance" in breach(declared)

    def test_a_stream_protocol_must_be_a_factory(self) -> None:
        declared = Proper()
        declared.build = service(udp=DatagramParrot).build  # type: ignore[method-assign]
        declared.protocols = {"udp": "stream"}
        assert breach(declared) == "demo: protocol udp is DatagramParrot, not an IProtocolFactory"

    def test_a_datagram_protocol_must_be_one(self) -> None:
        declared = Proper()
        declared.protocols = {"tcp": "datagram"}
        assert breach(declared) == "demo: protocol tcp is Factory, not a DatagramProtocol"

    def test_a_datagram_protocol_must_serve_several_listeners(self) -> None:
        assert breach(service(udp=DatagramParrot())) == (
            "demo: protocol udp is one object, which only one listener can use; declare its class"
        )

    def test_must_not_import_the_reactor(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from netsvc.testing import check_service\nfrom netsvc.service import Service\n"
            "from twisted.internet.protocol import Protocol\n"
            "def core(options, context):\n    from twisted.internet import reactor\n    return object()\n"
            "check_service(Service('demo', 'For tests', core=core, streams={'tcp': Protocol}))\n"
        )
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True)
        assert "demo: build() imports twisted.internet.reactor; take the reactor from the context" in ran.stderr

    def test_check_must_accept_the_settings(self) -> None:
        class Rootless(PlainCore):
            def check(self) -> None:
                raise MistakeError(["no root"])

        assert breach(service(core=Rootless)) == (
            "demo: check() refuses to: no root; does check_service need other settings?"
        )

    def test_check_must_have_no_side_effects(self) -> None:
        class Busy(PlainCore):
            def check(self) -> None:
                self.context.reactor.callLater(1, print)

        assert breach(service(core=Busy)) == "demo: check() schedules a call (print); do that in start()"


class TestStartAndStop:
    def test_start_must_accept_the_settings(self) -> None:
        class Refusing(PlainCore):
            def start(self) -> None:
                raise MistakeError(["no root"])

        assert breach(service(core=Refusing)) == (
            "demo: start() refuses to: no root; does check_service need other settings?"
        )

    def test_what_was_scheduled_must_be_cancelled(self) -> None:
        class Ticking(PlainCore):
            def start(self) -> None:
                self.context.reactor.callLater(9999, self.start)

        assert breach(service(core=Ticking)) == (
            "demo: start() and stop() left a call behind that stop() did not cancel "
            "(TestStartAndStop.test_what_was_scheduled_must_be_cancelled.<locals>.Ticking.start)"
        )

    @pytest.mark.usefixtures("close_left_open")
    def test_what_was_opened_must_be_closed(self) -> None:
        class Opening(PlainCore):
            def start(self) -> None:
                LEFT_OPEN.append(os.open("/dev/null", os.O_RDONLY))

        assert breach(service(core=Opening)) == "demo: start() and stop() left 1 file descriptor open"

    def test_stop_must_not_raise(self) -> None:
        class Failing(PlainCore):
            def stop(self) -> None:
                raise KeyError("x")

        assert breach(service(core=Failing)).startswith("demo: after start() and stop(): raised KeyError: 'x' at ")


def test_every_name_in_the_samples_is_a_service() -> None:
    found: Sequence[str] = discover().names()
    assert {"echo", "reply"} <= set(found)
