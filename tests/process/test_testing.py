"""check_service finds every fault of a declaration and of what it builds, and none where there is none."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import fail
from twisted.internet.protocol import Protocol
from twisted.plugin import IPlugin
from zope.interface import implementer

from netsvc.base.errors import PluginError, UserError
from netsvc.config.discovery import discover
from netsvc.interfaces import Context, INetworkService, Options
from netsvc.service import PlainCore, Service, ServicePlugin
from netsvc.testing import FindingsError, check_service
from netsvc.testing.checks import check_import
from netsvc.testing.findings import ProblemError
from tests.builders.facts import lacks
from tests.builders.parrots import DatagramParrot, found
from tests.builders.parrots import service as parrot_service
from tests.conftest import LoggedErrors

SAMPLES = {
    "echo": {"tcp": [b"hello\n", b"\x00\xff" * 300], "udp": [b"hello"]},
    "reply": {"tcp": [b"hello", b"exit\n"], "udp": [b"a longer datagram than the answer is"]},
    "chat": {"line": [b"hello\n/nick ann\n/who\n/quit\n", "你好\r\n".encode("gbk")]},
    "files": {"classic": [b"one.txt\n", b"none\r\n", "名.txt".encode()]},
}
#: What they do, and must: a chat answers with the line end of its client as far as that is known.
ALLOWED = {"reply": ("tcp split", "empty-datagram"), "chat": ("line split",)}
#: What a `Parrot` is found to do.
HABITS = ("half-close", "slow-reader")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_our_own_services_are_fit_for_production(name: str, tmp_path: Path) -> None:
    if name not in discover().services:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "one.txt").write_bytes(b"1" * 100)
    settings = {"root": str(tmp_path)} if name == "files" else {}
    check_service(name, settings, samples=SAMPLES[name], allow=ALLOWED.get(name, ()))


def service(**how: Any) -> Service:
    """Declare a service that has no findings, but for what is given."""
    return parrot_service(**{"tcp": Protocol, **how})


class TestTarget:
    @pytest.mark.slow
    def test_a_pointer_is_as_good_as_a_declaration(self) -> None:
        check_service(ServicePlugin("echo", "netsvc.services.echo:service", "Send back what comes"))

    def test_an_unknown_protocol_in_the_samples_is_an_error_of_the_caller(self) -> None:
        with pytest.raises(ValueError, match=r"^demo .*\btpc\b.*\btcp\b"):
            check_service(service(), samples={"tpc": []})

    def test_wrong_settings_are_an_error_of_the_caller(self) -> None:
        with pytest.raises(UserError, match="--colour: "):
            check_service(service(), {"colour": "red"})

    def test_an_unknown_service_is_an_error_of_the_caller(self) -> None:
        with pytest.raises(PluginError, match="nosuch"):
            check_service("nosuch")


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
        assert "INetworkService" in found(Declared())["declaration"].what

    def test_must_have_all_of_it(self) -> None:
        @implementer(INetworkService)
        class Partial:  # type: ignore[misc]
            name = "part"

        assert lacks(found(Partial())["declaration"].what, "description") == []

    @pytest.mark.parametrize(
        ("attribute", "value", "facts"),
        [
            ("name", "De mo", ["'De mo'", "a-z"]),
            ("protocols", {}, ["demo", "protocol"]),
            ("protocols", {"TCP": "stream"}, ["'TCP'", "a-z"]),
            ("protocols", {"tcp": "pipe"}, ["tcp", "'pipe'", "'stream'", "'datagram'"]),
            ("description", "", ["''", "--help", "100"]),
            ("description", "two\nlines", [r"'two\nlines'", "--help", "100"]),
            ("description", "x" * 101, ["x" * 101, "--help", "100"]),
            ("options", dict, ["dict", "netsvc.interfaces.Options"]),
            ("options", ClashOptions, ["option tcp", "protocol tcp", "--demo-tcp"]),
            ("options", LimitOptions, ["limits", "heap"]),
        ],
    )
    def test_every_part_is_judged(self, attribute: str, value: object, facts: Sequence[str]) -> None:
        declared = Proper()
        setattr(declared, attribute, value)
        assert lacks(found(declared)["declaration"].what, *facts) == []

    def test_the_longest_description_passes(self) -> None:
        check_service(service(description="x" * 100))


@pytest.mark.slow
class TestImport:
    @pytest.fixture
    def module(self, tmp_path: Path) -> Iterator[Callable[[str], str]]:
        names: list[str] = []

        def write(text: str) -> str:
            names.append(f"declared_{len(names)}_{os.getpid()}")
            (tmp_path / f"{names[-1]}.py").write_text(f"from netsvc.services.echo import service\n{text}\n")
            return f"{names[-1]}:service"

        sys.path.insert(0, str(tmp_path))
        yield write
        sys.path.remove(str(tmp_path))
        for name in names:
            sys.modules.pop(name, None)

    def test_a_plain_module_passes(self, module: Callable[[str], str]) -> None:
        target = module("")
        check_service(target)

    def test_must_not_import_the_reactor(self, module: Callable[[str], str]) -> None:
        target = module("from twisted.internet import reactor")
        assert lacks(found(target)["import"].what, target, "twisted.internet.reactor", "--reactor") == []

    def test_must_work_in_a_fresh_process(self, module: Callable[[str], str]) -> None:
        target = module("import sys\nif 'pytest' not in sys.modules: raise OSError('no pytest')")
        assert lacks(found(target)["import"].what, target, "OSError: no pytest") == []

    def test_must_come_to_an_end(self, module: Callable[[str], str]) -> None:
        with pytest.raises(ProblemError, match=r" 0\.01 s\b"):
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
        assert lacks(found(service(core=CallingCore))["side-effect"].what, "build()", "(print)") == []

    @pytest.mark.usefixtures("close_left_open")
    def test_must_not_open_anything(self) -> None:
        assert lacks(found(service(core=OpeningCore))["side-effect"].what, "build()", " 2 ", "descriptors") == []

    @pytest.mark.parametrize(
        ("act", "effect"),
        [
            (lambda path: path.write_text("x"), "writes"),
            (lambda path: path.mkdir(), "creates a directory"),
            (lambda path: sqlite3.connect(path).close(), "opens a database"),
            (lambda path: subprocess.run(["true"]), "starts a process"),
        ],
    )
    def test_must_have_no_effect_outside(self, act: Callable[[Path], object], effect: str, tmp_path: Path) -> None:
        numbers = count()

        class Acting(PlainCore):
            def __init__(self, options: Any, context: Context) -> None:
                super().__init__(options, context)
                act(tmp_path / str(next(numbers)))

        finding = found(service(core=Acting))["side-effect"]
        assert lacks(finding.what, "build()", effect) == []
        assert finding.where.endswith("(Acting)") and "start()" in finding.cure

    def test_must_open_no_socket_and_start_no_thread(self) -> None:
        done = threading.Event()

        def core(options: Any, context: Context) -> object:
            with socket.socket() as bound:
                bound.bind(("127.0.0.1", 0))
            threading.Thread(target=done.wait).start()
            context.reactor.listenTCP(0, None)
            return object()

        with pytest.raises(FindingsError) as caught:
            check_service(service(core=core))
        done.set()
        assert {each.kind for each in caught.value.findings} == {"side-effect"}
        text = str(caught.value)
        assert lacks(text, "binds a socket", "starts a thread", "opens a socket (tcpServers") == []

    def test_must_not_use_the_processes_own_reactor(self) -> None:
        def core(options: Any, context: Context) -> object:
            from twisted.internet import reactor

            any_reactor: Any = reactor
            return any_reactor.callLater(99, print)

        assert lacks(found(service(core=core))["side-effect"].what, "build()", "(print)") == []

    def test_must_not_raise(self) -> None:
        def core(options: Any, context: Context) -> object:
            raise KeyError("colour")

        assert lacks(found(service(core=core))["raises"].what, "build()", "KeyError: 'colour'", f"{__file__}:") == []

    def test_must_not_log_an_error(self, logged_errors: LoggedErrors) -> None:
        def core(options: Any, context: Context) -> object:
            context.log.error("no {thing}\x1b", thing="good")
            return None

        assert lacks(found(service(core=core))["raises"].what, "build()", r"no good\x1b") == []

    def test_must_not_leave_a_failure_unheard(self, logged_errors: LoggedErrors) -> None:
        def core(options: Any, context: Context) -> object:
            fail(OSError("unheard"))
            return object()

        assert lacks(found(service(core=core))["raises"].what, "build()", "OSError: unheard") == []
        logged_errors.flush(OSError)

    def test_must_make_a_fresh_core(self) -> None:
        shared = object()
        assert lacks(found(service(core=lambda options, context: shared))["declaration"].what, "build()", "core") == []

    def test_must_return_an_instance(self) -> None:
        declared = Proper()
        declared.build = lambda options, context: object()  # type: ignore[method-assign]
        assert lacks(found(declared)["declaration"].what, "build()", "IServiceInstance") == []

    def test_a_stream_protocol_must_be_a_factory(self) -> None:
        declared = Proper()
        declared.build = service(udp=DatagramParrot).build  # type: ignore[method-assign]
        declared.protocols = {"udp": "stream"}
        assert lacks(found(declared)["declaration"].what, "udp", "DatagramParrot", "IProtocolFactory") == []

    def test_a_datagram_protocol_must_be_one(self) -> None:
        declared = Proper()
        declared.protocols = {"tcp": "datagram"}
        assert lacks(found(declared)["declaration"].what, "tcp", " Factory", "DatagramProtocol") == []

    def test_a_datagram_protocol_must_serve_several_listeners(self) -> None:
        assert lacks(found(service(udp=DatagramParrot()))["declaration"].what, "udp", "listener", "class") == []

    @pytest.mark.slow
    def test_must_not_import_the_reactor(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from netsvc.testing import check_service\nfrom netsvc.service import Service\n"
            "from twisted.internet.protocol import Protocol\n"
            "def core(options, context):\n    from twisted.internet import reactor\n    return object()\n"
            "check_service(Service('demo', 'For tests', core=core, streams={'tcp': Protocol}))\n"
        )
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True)
        assert (
            lacks(ran.stderr.splitlines()[-1], "[side-effect]", "build()", "twisted.internet.reactor", "context") == []
        )

    def test_check_must_accept_the_settings(self) -> None:
        class Rootless(PlainCore):
            def check(self) -> None:
                raise UserError(["no root"])

        assert lacks(found(service(core=Rootless))["settings"].what, "check()", "no root") == []

    def test_check_must_have_no_side_effects(self) -> None:
        class Busy(PlainCore):
            def check(self) -> None:
                self.context.reactor.callLater(1, print)

        assert lacks(found(service(core=Busy))["side-effect"].what, "check()", "(print)") == []


class TestStartAndStop:
    def test_start_must_accept_the_settings(self) -> None:
        class Refusing(PlainCore):
            def start(self) -> None:
                raise UserError(["no root"])

        assert lacks(found(service(core=Refusing))["settings"].what, "start()", "no root") == []

    def test_what_was_scheduled_must_be_cancelled(self) -> None:
        class Ticking(PlainCore):
            def start(self) -> None:
                self.context.reactor.callLater(9999, self.start)

        function = "(TestStartAndStop.test_what_was_scheduled_must_be_cancelled.<locals>.Ticking.start)"
        assert lacks(found(service(core=Ticking))["leftover"].what, "start()", "stop()", function) == []

    @pytest.mark.usefixtures("close_left_open")
    def test_what_was_opened_must_be_closed(self) -> None:
        class Opening(PlainCore):
            def start(self) -> None:
                LEFT_OPEN.append(os.open("/dev/null", os.O_RDONLY))

        assert lacks(found(service(core=Opening))["leftover"].what, "start()", "stop()", " 1 ", "descriptor") == []

    def test_stop_must_not_raise(self) -> None:
        class Failing(PlainCore):
            def stop(self) -> None:
                raise KeyError("x")

        assert lacks(found(service(core=Failing))["raises"].what, "start()", "stop()", "KeyError: 'x'", __file__) == []


def test_every_name_in_the_samples_is_a_service() -> None:
    found: Sequence[str] = discover().names()
    assert {"echo", "reply"} <= set(found)
