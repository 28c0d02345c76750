"""The host runs a plan: all of it, or nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import Application, IService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LoggingFile, globalLogPublisher
from twisted.python import usage
from zope.interface import implementer

from netsvc.address import parse_address
from netsvc.errors import MistakeError, StartError
from netsvc.host.drain import CLOSE_GRACE
from netsvc.host.host import Host, build_instance
from netsvc.interfaces import Context, INetworkService
from netsvc.plan import Listener, Plan, ServiceUse
from netsvc.service import Service
from tests.conftest import LoggedErrors
from tests.processes import run


class Core:
    """Records what the host asks of it."""

    def __init__(self, options: usage.Options, context: Context) -> None:
        self.calls: list[str] = []
        self.context = context
        self.faults: dict[str, Exception] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.faults:
            raise self.faults[name]

    def check(self) -> None:
        self._call("check")

    def start(self) -> None:
        self._call("start")

    def drain(self) -> None:
        self._call("drain")

    def stop(self) -> None:
        self._call("stop")


class World:
    """A host on a reactor in memory, with services whose cores can be looked at."""

    def __init__(self, *listeners: tuple[str, str, str], prepare: Callable[[str, Core], None] | None = None) -> None:
        self.cores: dict[str, Core] = {}
        self.reactor = MemoryReactorClock()
        self.deaths: list[str] = []
        self.prepare = prepare
        uses = {use: ServiceUse(use) for use, _, _ in listeners}
        plan = Plan(
            uses,
            tuple(
                Listener(use, protocol, parse_address(address, "stream" if protocol == "tcp" else "datagram"))
                for use, protocol, address in listeners
            ),
        )
        self.host = Host(plan, self.load, self.reactor, ["a warning"], self.deaths.append)

    def load(self, use: ServiceUse) -> INetworkService:
        def core(options: usage.Options, context: Context) -> Core:
            self.cores[use.service] = made = Core(options, context)
            if self.prepare:
                self.prepare(use.service, made)
            return made

        return Service(use.service, "A test", core=core, streams={"tcp": Protocol}, datagrams={"udp": DatagramProtocol})

    def start(self) -> None:
        self.host.privilegedStartService()
        self.host.startService()

    def run(self) -> None:
        """Let the reactor run, but leave the signals of this process alone."""
        [_, (await_opening, arguments, _)] = self.reactor.whenRunningHooks
        await_opening(*arguments)

    def calls(self) -> dict[str, list[str]]:
        return {name: core.calls for name, core in self.cores.items()}


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
    world = World(("one", "tcp", "127.0.0.1:0"), ("one", "udp", "127.0.0.1:0"), ("two", "tcp", "unix:/x"))
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
    assert log == [
        "a warning",
        "one tcp listens on 0.0.0.0:1234",
        "one udp listens on 0.0.0.0:1234",
        "two tcp listens on /x",
        "ready",
    ]


def test_without_a_privileged_start_it_binds_on_starting() -> None:
    world = World(("one", "tcp", "127.0.0.1:0"))
    world.host.startService()
    assert len(world.reactor.adoptedPorts) == 1


def test_it_runs_as_the_service_of_an_application() -> None:
    world = World(("one", "tcp", "127.0.0.1:0"))
    application: Any = Application("netsvc")
    world.host.setServiceParent(application)
    IService(application).startService()
    assert world.host.running


def test_what_the_services_find_wrong_stops_the_start_before_a_port_is_opened() -> None:
    def prepare(name: str, core: Core) -> None:
        core.faults["check"] = MistakeError([f"{name} is wrong"])

    world = World(("one", "tcp", "127.0.0.1:0"), ("two", "tcp", "127.0.0.1:0"), prepare=prepare)
    with pytest.raises(StartError) as raised:
        world.start()
    assert str(raised.value) == "netsvc: one is wrong\nnetsvc: two is wrong"
    assert world.host.running_plan.listeners == []


def test_a_service_that_does_not_start_stops_the_ones_that_did() -> None:
    def prepare(name: str, core: Core) -> None:
        if name == "two":
            core.faults["start"] = MistakeError(["two cannot"])

    world = World(("one", "tcp", "unix:/x"), ("two", "tcp", "unix:/y"), prepare=prepare)
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

    world = World(("one", "udp", f"unixgram:{tmp_path}/gram"), prepare=prepare)
    with pytest.raises(StartError) as raised:
        world.start()
    assert str(raised.value).startswith(f"netsvc: service one cannot {what}: PermissionError: [Errno 13]")
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_builder_that_raises_is_named() -> None:
    def prepare(name: str, core: Core) -> None:
        raise ZeroDivisionError("division")

    world = World(("one", "tcp", "127.0.0.1:0"), prepare=prepare)
    with pytest.raises(StartError, match="netsvc: service one cannot be built: ZeroDivisionError: division"):
        world.start()


def test_a_protocol_that_cannot_be_built_is_named() -> None:
    service = Service("odd", "A test", streams={"tcp": 7})
    use = ServiceUse("odd")
    plan = Plan({"odd": use}, (Listener("odd", "tcp", parse_address("127.0.0.1:0", "stream")),))
    host = Host(plan, lambda use: service, MemoryReactorClock())
    with pytest.raises(StartError, match="netsvc: odd tcp cannot be built: TypeError: 7 is neither"):
        host.privilegedStartService()


def test_a_builder_may_report_a_mistake() -> None:
    def core(options: usage.Options, context: Context) -> None:
        raise MistakeError(["say it better"])

    service: Any = Service("odd", "A test", core=core, streams={"tcp": Protocol})
    with pytest.raises(MistakeError, match="say it better"):
        build_instance(ServiceUse("odd"), service, MemoryReactorClock())


def test_every_failure_is_told_on_the_real_stderr_when_the_log_has_taken_it(
    monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    real = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", real)
    monkeypatch.setattr(sys, "stderr", LoggingFile(world_log()))

    def prepare(name: str, core: Core) -> None:
        core.faults["check"] = MistakeError(["a mistake", "another"])

    with pytest.raises(StartError) as raised:
        World(("one", "tcp", "127.0.0.1:0"), prepare=prepare).start()
    assert real.getvalue() == "netsvc: a mistake\nnetsvc: another\n"
    assert raised.value.code == 1
    assert log == ["a mistake", "another"]


def world_log() -> Any:
    from twisted.logger import Logger

    return Logger(namespace="test")


def test_stopping_drains_then_stops_the_services(log: list[str]) -> None:
    world = World(("one", "tcp", "127.0.0.1:0"), ("two", "udp", "127.0.0.1:0"))
    world.start()
    stopped: list[object] = []
    world.host.stopService().addCallback(stopped.append)
    assert stopped == [None]
    assert world.calls() == {name: ["check", "start", "drain", "stop"] for name in ("one", "two")}
    assert log[-1] == "stopped: no connection was open"
    assert not world.host.running


def test_a_service_that_fails_to_stop_does_not_keep_the_others_from_it(logged_errors: LoggedErrors) -> None:
    def prepare(name: str, core: Core) -> None:
        core.faults["stop"] = RuntimeError(name)

    world = World(("one", "tcp", "127.0.0.1:0"), ("two", "tcp", "127.0.0.1:0"), prepare=prepare)
    world.start()
    world.host.stopService()
    assert world.calls()["one"][-1] == world.calls()["two"][-1] == "stop"
    assert {str(failure.value) for failure in logged_errors.flush(RuntimeError)} == {"one", "two"}


def test_signals_are_taken_over_when_the_reactor_runs_and_force_only_what_drains() -> None:
    world = World(("one", "tcp", "127.0.0.1:0"))
    world.start()
    [(function, (_, force), _), _] = world.reactor.whenRunningHooks
    assert function.__module__ == "netsvc.host.process"
    force()
    world.reactor.callFromThread = lambda function: function()  # type: ignore[attr-defined]
    world.host.stopService()
    force()


def test_without_a_reactor_given_it_takes_the_installed_one() -> None:
    from twisted.internet import reactor

    host = Host(Plan({}, ()), lambda use: None)  # type: ignore[arg-type,return-value]
    host.privilegedStartService()
    assert host._reactor is reactor


_LATE_FAILURE = """\
import sys
from twisted.internet.task import Clock
from twisted.internet import reactor
from netsvc.host.host import die
reactor.callWhenRunning(die, "a mistake")
reactor.run()
print("cleaned up")
"""


def test_a_late_failure_ends_the_process_with_status_1_after_its_clean_up() -> None:
    ended = run(sys.executable, "-c", _LATE_FAILURE)
    assert ended.returncode == 1
    assert ended.stdout == "cleaned up\n"
    assert ended.stderr.splitlines()[-1] == "netsvc: a mistake"


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
    world = World(("one", "tcp", "slow:at:1"), ("one", "tcp", "127.0.0.1:0"))
    world.start()
    world.run()
    assert log == ["a warning", "one tcp listens on 0.0.0.0:1234"]
    slow.listening.callback(world.reactor.listenTCP(5, None))
    assert log[2:] == ["one tcp listens on 0.0.0.0:5", "ready"]


def test_an_endpoint_that_fails_late_ends_the_process(slow: SlowEndpoint, log: list[str]) -> None:
    world = World(("one", "tcp", "slow:at:1"))
    world.start()
    slow.listening.errback(OSError(5, "the daemon is gone"))
    assert world.deaths == ["one tcp cannot listen on slow:at:1: the daemon is gone"]
    assert "ready" not in log


def test_a_port_that_never_says_that_it_is_closed_is_not_waited_for_for_ever() -> None:
    class Stuck:
        def take_waiting(self) -> None:
            """Have nothing."""

        def stop(self) -> Deferred[Any]:
            return Deferred()

    world = World(("one", "tcp", "127.0.0.1:0"))
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
    world = World(("one", "tcp", "127.0.0.1:0"), prepare=lambda _, core: core.faults.update({step: exits}))
    with pytest.raises(StartError, match=r"service one cannot .*SystemExit: 0 at .*test_host"):
        world.start()
