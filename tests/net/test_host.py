"""The host runs a plan: all of it, or nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Application, IService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LoggingFile, globalLogPublisher
from twisted.python import usage
from zope.interface import implementer

from netsvc.base.errors import StartError, UserError
from netsvc.interfaces import Context
from netsvc.plan.address import parse_address
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.server.drain import CLOSE_GRACE
from netsvc.server.instances import build_instance
from netsvc.server.server import Server
from netsvc.service import Service
from tests.builders.facts import drained, states, unlike
from tests.builders.hosts import Core, ServerInMemory
from tests.builders.processes import run
from tests.conftest import LoggedErrors


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Collect the host's log lines."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        if str(event.get("log_namespace")).startswith("netsvc"):
            lines.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def test_a_plan_is_bound_then_started_and_announced(log: list[str]) -> None:
    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"), ("one", "udp", "127.0.0.1:0"), ("two", "tcp", "unix:/x"))
    world.host.privilegedStartService()
    assert len(world.reactor.adoptedPorts) == 2
    assert len(world.reactor.unixServers) == 1
    assert world.calls() == {"one": ["check"], "two": ["check"]}
    world.host.startService()
    assert world.calls() == {"one": ["check", "start"], "two": ["check", "start"]}
    # Whoever reads `ready` may send a signal, which only a reactor that runs can take.
    assert "ready" not in log
    world.run()
    # The ports of a MemoryReactor all say 1234.
    assert (log[0], log[-1]) == ("a warning", "ready")
    assert not unlike(log[1:-1], ("one tcp", "0.0.0.0:1234"), ("one udp", "0.0.0.0:1234"), ("two tcp", "/x"))


def test_it_runs_as_the_service_of_an_application() -> None:
    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"))
    application: Any = Application("netsvc")
    world.host.setServiceParent(application)
    IService(application).privilegedStartService()
    IService(application).startService()
    assert world.host.running


def test_what_the_services_find_wrong_stops_the_start_before_a_port_is_opened() -> None:
    def prepare(name: str, core: Core) -> None:
        core.faults["check"] = UserError([f"{name} is wrong"])

    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"), ("two", "tcp", "127.0.0.1:0"), prepare=prepare)
    with pytest.raises(StartError) as raised:
        world.start()
    assert str(raised.value) == "netsvc: one is wrong\nnetsvc: two is wrong"
    assert world.host.running_plan.listeners == []


def test_a_service_that_does_not_start_stops_the_ones_that_did() -> None:
    def prepare(name: str, core: Core) -> None:
        if name == "two":
            core.faults["start"] = UserError(["two cannot"])

    world = ServerInMemory(("one", "tcp", "unix:/x"), ("two", "tcp", "unix:/y"), prepare=prepare)
    abandoned: list[str] = []
    world.host.privilegedStartService()
    assert world.host._transition is not None
    for opened in world.host._transition.begun:
        listening: Any = opened.listening
        listening.abandon = lambda: abandoned.append("closed")
    with pytest.raises(StartError, match="two cannot"):
        world.host.startService()
    assert abandoned == ["closed", "closed"]
    assert world.calls()["one"] == ["check", "start", "stop"]
    assert world.calls()["two"] == ["check", "start"]


@pytest.mark.parametrize(("step", "what"), [("check", "be built"), ("start", "start")])
def test_a_service_that_raises_at_any_step_of_the_start_is_one_line_and_nothing_stays_open(
    step: str, what: str, tmp_path: Path
) -> None:
    def prepare(name: str, core: Core) -> None:
        core.faults[step] = PermissionError(13, "Permission denied", "/x")

    world = ServerInMemory(("one", "udp", f"unixgram:{tmp_path}/gram"), prepare=prepare)
    with pytest.raises(StartError) as raised:
        world.start()
    assert states(str(raised.value), "netsvc: ", "one", what, "PermissionError: [Errno 13]")
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_builder_that_raises_is_named() -> None:
    def prepare(name: str, core: Core) -> None:
        raise ZeroDivisionError("division")

    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"), prepare=prepare)
    with pytest.raises(StartError, match=r"^netsvc: service one .*: ZeroDivisionError: division"):
        world.start()


def test_a_protocol_that_cannot_be_built_is_named() -> None:
    service = Service("odd", "A test", streams={"tcp": 7})
    use = ServiceUse("odd")
    plan = Plan({"odd": use}, (Listener("odd", "tcp", parse_address("127.0.0.1:0", "stream")),))
    host = Server(plan, lambda use: service, MemoryReactorClock())
    with pytest.raises(StartError, match=r"^netsvc: odd tcp .*: TypeError: .*\bint\b"):
        host.privilegedStartService()


def test_a_builder_may_report_a_mistake() -> None:
    def core(options: usage.Options, context: Context) -> None:
        raise UserError(["say it better"])

    service: Any = Service("odd", "A test", core=core, streams={"tcp": Protocol})
    with pytest.raises(UserError, match="say it better"):
        build_instance(ServiceUse("odd"), service, MemoryReactorClock())


def test_every_failure_is_told_on_the_real_stderr_when_the_log_has_taken_it(
    monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    real = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", real)
    monkeypatch.setattr(sys, "stderr", LoggingFile(world_log()))

    def prepare(name: str, core: Core) -> None:
        core.faults["check"] = UserError(["a mistake", "another"])

    with pytest.raises(StartError) as raised:
        ServerInMemory(("one", "tcp", "127.0.0.1:0"), prepare=prepare).start()
    assert real.getvalue() == "netsvc: a mistake\nnetsvc: another\n"
    assert raised.value.code == 1
    assert log == ["a mistake", "another"]


def world_log() -> Any:
    from twisted.logger import Logger

    return Logger(namespace="test")


def test_stopping_drains_then_stops_the_services(log: list[str]) -> None:
    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"), ("two", "udp", "127.0.0.1:0"))
    world.start()
    stopped: list[object] = []
    world.host.stopService().addCallback(stopped.append)
    assert stopped == [None]
    assert world.calls() == {name: ["check", "start", "drain", "stop"] for name in ("one", "two")}
    assert log[-1].startswith("stopped: ") and drained(log[-1]) == (0, {}, {})
    assert not world.host.running


def test_a_service_that_fails_to_stop_does_not_keep_the_others_from_it(logged_errors: LoggedErrors) -> None:
    def prepare(name: str, core: Core) -> None:
        core.faults["stop"] = RuntimeError(name)

    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"), ("two", "tcp", "127.0.0.1:0"), prepare=prepare)
    world.start()
    world.host.stopService()
    assert world.calls()["one"][-1] == world.calls()["two"][-1] == "stop"
    assert {str(failure.value) for failure in logged_errors.flush(RuntimeError)} == {"one", "two"}


def test_signals_are_taken_over_when_the_reactor_runs_and_force_only_what_drains() -> None:
    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"))
    world.start()
    [(function, (_, force), _), _] = world.reactor.whenRunningHooks
    assert function.__module__ == "netsvc.server.process"
    force()
    world.reactor.callFromThread = lambda function: function()  # type: ignore[attr-defined]
    world.host.stopService()
    force()


_LATE_FAILURE = """\
import sys
from twisted.internet.task import Clock
from twisted.internet import reactor
from netsvc.server.server import die
reactor.callWhenRunning(die, "a mistake")
reactor.run()
print("cleaned up")
"""


@pytest.mark.slow
def test_a_late_failure_ends_the_process_with_status_1_after_its_clean_up() -> None:
    ended = run(sys.executable, "-c", _LATE_FAILURE)
    assert ended.returncode == 1
    assert ended.stdout == "cleaned up\n"
    assert ended.stderr.splitlines().count("netsvc: a mistake") == 1


@implementer(IStreamServerEndpointStringParser)
class SlowEndpoint:
    """An endpoint plugin that takes its time, as one that asks a Tor daemon does."""

    prefix = "slow"

    def __init__(self) -> None:
        self.listening: Deferred[Any] = Deferred()

    def parseStreamServer(self, reactor: Any, *args: object, **kwargs: object) -> Any:
        return self

    def listen(self, factory: Any) -> Deferred[Any]:
        return self.listening


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowEndpoint:
    """Install the endpoint, for one test."""
    from twisted.internet import endpoints

    slow = SlowEndpoint()
    original: Any = vars(endpoints)["getPlugins"]
    monkeypatch.setattr(endpoints, "getPlugins", lambda interface: [*original(interface), slow])
    return slow


def test_ready_waits_for_an_endpoint_that_takes_its_time(slow: SlowEndpoint, log: list[str]) -> None:
    world = ServerInMemory(("one", "tcp", "slow:at:1"), ("one", "tcp", "127.0.0.1:0"))
    world.start()
    world.run()
    assert not unlike(log, ("a warning",), ("one tcp", "0.0.0.0:1234"))
    slow.listening.callback(world.reactor.listenTCP(5, None))
    assert not unlike(log[2:], ("one tcp", "0.0.0.0:5"), ("ready",))


def test_who_asks_when_the_log_says_ready_or_later_is_told_that_it_is(slow: SlowEndpoint) -> None:
    world = ServerInMemory(("one", "tcp", "slow:at:1"), ("one", "tcp", "127.0.0.1:0"))
    found: list[list[str]] = []
    world.host.became_ready = lambda: found.append(world.host.not_ready())
    world.start()
    world.run()
    assert found == []
    [line] = world.host.not_ready()
    assert line.startswith("starting: ")
    slow.listening.callback(world.reactor.listenTCP(5, None))
    assert found == [[]]
    assert world.host.not_ready() == []


def test_an_endpoint_that_fails_late_ends_the_process(slow: SlowEndpoint, log: list[str]) -> None:
    world = ServerInMemory(("one", "tcp", "slow:at:1"))
    world.start()
    slow.listening.errback(OSError(5, "the daemon is gone"))
    assert not unlike(world.deaths, ("one tcp", "slow:at:1", "the daemon is gone"))
    assert "ready" not in log


def test_a_port_that_never_says_that_it_is_closed_is_not_waited_for_for_ever() -> None:
    class Stuck:
        def take_waiting(self) -> None:
            """Have nothing."""

        def stop(self) -> Deferred[Any]:
            return Deferred()

    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"))
    world.start()
    stuck: Any = Stuck()
    world.host.running_plan.listeners[0].listening = stuck
    stopped: list[object] = []
    world.host.stopService().addCallback(stopped.append)
    assert stopped == []
    world.reactor.advance(CLOSE_GRACE)
    assert stopped == [None]


@pytest.mark.parametrize("step", ["check", "start"])
def test_a_service_that_exits_is_a_mistake_and_no_silent_end(step: str) -> None:
    exits: Any = SystemExit(0)
    world = ServerInMemory(("one", "tcp", "127.0.0.1:0"), prepare=lambda _, core: core.faults.update({step: exits}))
    with pytest.raises(StartError, match=r"service one cannot .*SystemExit: 0 at .*hosts"):
        world.start()
