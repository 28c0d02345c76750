"""A worker serves what it is told to, says what it does, and ends when nobody needs it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ReactorNotRunning
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel

from netsvc.listen.handoff import Handoff, PassedPort, WorkerStart
from netsvc.plan.address import parse_address
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.workers.channel import LONGEST_REPORT, Orders, Reporter, Retirement
from netsvc.workers.worker import _Log, serve
from tests.builders.facts import drained, states


class Scripted(MemoryReactorClock):
    """A reactor whose run is a list of steps, given to it beforehand."""

    def __init__(self, *steps: Callable[[Scripted], None]) -> None:
        super().__init__()
        self.steps = steps
        self.stopping = False

    def run(self, *args: Any, **kwargs: Any) -> None:
        for function, arguments, _ in self.whenRunningHooks[1:]:
            function(*arguments)
        for step in self.steps:
            step(self)
        assert self.stopping
        for function, arguments, _ in self.triggers["before"]["shutdown"]:
            function(*arguments)

    def stop(self) -> None:
        if self.stopping:
            raise ReactorNotRunning
        self.stopping = True

    def callFromThread(self, function: Any, *args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)


def orders(reactor: Any) -> Any:
    [found] = [reader for reader in reactor.getReaders() if isinstance(reader, Orders)]
    return found


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Make the pipe of orders."""
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


class Run:
    """One run of a worker."""

    def __init__(
        self,
        reading: int,
        *steps: Callable[[Scripted], None],
        settings: Any = None,
        service: str = "echo",
        held: bool = False,
    ) -> None:
        self.said: list[Any] = []
        self.reactor = Scripted(*steps)
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        plan = Plan(
            {service: ServiceUse(service, settings or {})},
            (Listener(service, "classic" if service == "files" else "tcp", parse_address("127.0.0.1:0", "stream")),),
            workers=2,
        )
        ports = [PassedPort("listener", service, "stream", "127.0.0.1:0", [bound.detach()])]
        handoff = Handoff(1, ports, worker=WorkerStart(plan, "", (), paused=held))
        self.served = serve(self.reactor, handoff, lambda line: self.said.append(json.loads(line)), reading)


def test_it_says_when_it_is_ready_and_drains_when_it_is_stopped(pipe: tuple[int, int]) -> None:
    run = Run(pipe[0], lambda reactor: reactor.stop())
    assert run.served
    assert [words[0] for words in run.said] == ["ready", "drained", "final"]
    assert drained(run.said[1][1]) == (0, {}, {})
    assert len(run.reactor.adoptedPorts) == 1


def test_what_keeps_it_from_starting_is_said(pipe: tuple[int, int], tmp_path: Path) -> None:
    run = Run(pipe[0], service="files", settings={"root": str(tmp_path / "none")})
    assert not run.served
    [[word, line]] = run.said
    assert word == "failed" and states(line, "files root ", f"{tmp_path}/none: ")


def test_the_end_of_its_orders_stops_it_and_what_it_prints_then_goes_nowhere(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    silenced: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda source, target: silenced.append(target))

    def end(reactor: Scripted) -> None:
        reader = orders(reactor)
        os.close(pipe[1])
        reader.connectionLost(reader.doRead())
        assert reactor.stopping

    assert Run(pipe[0], end).served
    assert silenced == [1, 2]


def test_it_can_be_forced_before_and_while_it_drains(pipe: tuple[int, int]) -> None:
    def force(reactor: Scripted) -> None:
        os.write(pipe[1], b"for")
        orders(reactor).doRead()
        assert not reactor.stopping
        os.write(pipe[1], b"ce\nnonsense\nforce\n")
        assert orders(reactor).doRead() is None
        assert reactor.stopping

    assert Run(pipe[0], force).served


def test_an_order_that_comes_right_after_a_signal_leaves_the_stopping_to_the_signal(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: list[Callable[[], object]] = []
    monkeypatch.setattr(Scripted, "callFromThread", lambda self, function, *args: queue.append(function))

    def both(reactor: Scripted) -> None:
        # What the reactor's handler of SIGTERM does.
        reactor.callFromThread(reactor.stop)
        os.write(pipe[1], b"force\n")
        orders(reactor).doRead()
        for call in queue:
            call()

    assert Run(pipe[0], both).served


def host_of(reactor: Scripted) -> Any:
    cells: Any = reactor.triggers["before"]["shutdown"][0][0].__closure__
    [found] = [cell.cell_contents for cell in cells if type(cell.cell_contents).__name__ == "Server"]
    return found


def test_it_retires_when_it_is_told_to_and_ends_when_nobody_is_there_any_more(pipe: tuple[int, int]) -> None:
    def retire(reactor: Scripted) -> None:
        assert len(host_of(reactor).running_plan.listeners) == 1
        os.write(pipe[1], Retirement((0,), (0,), 2.0).to_line())
        assert not reactor.stopping
        orders(reactor).doRead()
        assert host_of(reactor).running_plan.listeners == []
        assert reactor.stopping

    assert Run(pipe[0], retire).served


def test_it_drains_when_it_is_told_to_after_it_retires(pipe: tuple[int, int]) -> None:
    def both(reactor: Scripted) -> None:
        os.write(pipe[1], Retirement((0,), (), 2.0).to_line() + b"drain\ndrain\n")
        orders(reactor).doRead()
        assert reactor.stopping

    assert Run(pipe[0], both).served


def test_one_that_drains_already_need_not_retire(pipe: tuple[int, int]) -> None:
    def drain(reactor: Scripted) -> None:
        # What a signal leads to.
        host_of(reactor).stopService()
        os.write(pipe[1], Retirement((0,), (0,), 2.0).to_line())
        assert orders(reactor).doRead() is None
        reactor.stopping = True

    run = Run(pipe[0], drain)
    assert run.served


def test_one_that_is_held_serves_when_it_is_told_to(pipe: tuple[int, int]) -> None:
    def serve(reactor: Scripted) -> None:
        assert host_of(reactor)._held
        os.write(pipe[1], b"serve\n")
        orders(reactor).doRead()
        assert not host_of(reactor)._held
        reactor.stop()

    assert Run(pipe[0], serve, held=True).served


def test_the_pipe_of_orders_is_read_at_its_descriptor(pipe: tuple[int, int]) -> None:
    def look(reactor: Scripted) -> None:
        assert orders(reactor).fileno() == pipe[0]
        reactor.stop()

    assert Run(pipe[0], look).served


def test_a_port_that_fails_late_ends_it(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reactor: Scripted) -> None:
        host_of(reactor)._die("one\ntwo")

    run = Run(pipe[0], fail)
    assert not run.served
    assert run.said[:2] == [["ready"], ["failed", "one", "two"]]


def test_reports_are_written_whole_and_dropped_when_nobody_reads(pipe: tuple[int, int]) -> None:
    tell = Reporter(pipe[1])
    tell(b"x" * 1000)
    assert os.read(pipe[0], LONGEST_REPORT) == b"x" * 1000
    os.close(pipe[0])
    tell(b"y")


def test_what_is_logged_is_reported() -> None:
    said: list[bytes] = []
    _Log(said.append)({"log_format": "a", "log_level": LogLevel.info, "log_namespace": "n"})
    assert [json.loads(line) for line in said] == [["log", "info", "n", "", "a"]]
