"""Builds workers that run, to be reloaded, on a reactor whose processes are objects."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.python import usage

from netsvc.base.errors import UserError
from netsvc.interfaces import Context, INetworkService
from netsvc.plan.address import parse_address
from netsvc.plan.limits import parse_limits
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.service import Service
from netsvc.workers.workers import Workers
from tests.builders.children import FakeProcess, FakeReactor


def plan(*addresses: str, workers: int = 2, text: str = "one", drain: float = 4, **limits: str) -> Plan:
    """Make a plan of one service; an address after `udp ` is a datagram one."""
    listeners = tuple(
        Listener("one", "udp", parse_address(address.removeprefix("udp "), "datagram"))
        if address.startswith("udp ")
        else Listener("one", "tcp", parse_address(address, "stream"))
        for address in addresses
    )
    return Plan({"one": ServiceUse("one", {"text": text})}, listeners, drain, workers, parse_limits(limits))


class Options(usage.Options):
    """One text; a service whose text is `bad` cannot be built."""

    optParameters = [["text", None, "", "A text"]]


def service(*, parallel: bool = True) -> INetworkService:
    class Core:
        def __init__(self, options: Any, context: Context) -> None:
            if options["text"] == "bad":
                raise UserError(["the text is bad"])

    streams: dict[str, Any] = {"tcp": Protocol}
    return Service(
        "one",
        "A test",
        options=Options,
        core=Core,
        streams=streams,
        datagrams={"udp": DatagramProtocol},
        parallel=parallel,
    )


class ReloadedWorkers:
    """Workers of a plan, started and ready, on a reactor whose processes are objects."""

    def __init__(self, first: Plan, made: INetworkService | None = None) -> None:
        self.reactor = FakeReactor()
        self.deaths: list[str] = []
        self.workers = Workers(first, lambda use: made or service(), self.reactor, (), self.deaths.append)
        self.results: list[Any] = []
        self.stopped: list[object] = []
        self.workers.privilegedStartService()
        self.workers.startService()
        self.reactor.run()
        for process in self.processes:
            process.say("ready")

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    def begin(self, then: Plan) -> list[FakeProcess]:
        """Begin a reload, and return the new processes."""
        count = len(self.processes)
        self.results = []
        self.workers.reload(then).addBoth(self.results.append)
        return self.processes[count:]

    def reload(self, then: Plan) -> list[FakeProcess]:
        """Reload, and return the new processes, which are ready."""
        started = self.begin(then)
        for process in started:
            process.say("ready")
        return started

    def errors(self) -> tuple[str, ...]:
        [failure] = self.results
        assert failure.check(UserError)
        error: Any = failure.value
        return tuple(error.errors)

    def port(self, place: int = 0) -> int:
        return int(self.workers.generation.groups[place].opened.place().rpartition(":")[2])

    def end(self) -> None:
        """Stop, and let every process end."""
        self.workers.stopService().addCallback(self.stopped.append)
        for process in self.processes:
            if not process.gone:
                process.end()
        assert self.stopped == [None]
        assert self.reactor.getDelayedCalls() == []
