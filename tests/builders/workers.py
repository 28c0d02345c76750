"""Builds workers of a plan on a reactor whose processes are objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.python import usage

from netsvc.interfaces import Context, INetworkService
from netsvc.plan.address import parse_address
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.service import Service
from netsvc.workers.workers import Workers
from tests.builders.children import FakeProcess, FakeReactor


def service(check: Callable[[], None] = lambda: None) -> INetworkService:
    class Core:
        def __init__(self, options: usage.Options, context: Context) -> None:
            """Know nothing."""

        def check(self) -> None:
            check()

    return Service("one", "A test", core=Core, streams={"tcp": Protocol}, datagrams={"udp": DatagramProtocol})


class FakeWorkers:
    """Workers on a reactor whose processes are objects."""

    def __init__(self, *addresses: str, workers: int = 2, made: INetworkService | None = None, **kwargs: Any) -> None:
        self.reactor = FakeReactor()
        self.deaths: list[str] = []
        listeners = [
            Listener("one", "tcp", parse_address(address, "stream")) for address in addresses or ["127.0.0.1:0"]
        ]
        plan = Plan({"one": ServiceUse("one", {})}, tuple(listeners), 4, workers)
        self.workers = Workers(
            plan, lambda use: made or service(), self.reactor, ["a warning"], self.deaths.append, **kwargs
        )
        self.stopped: list[object] = []

    @property
    def processes(self) -> list[FakeProcess]:
        return self.reactor.processes

    def start(self, *, ready: bool = True) -> FakeWorkers:
        self.workers.privilegedStartService()
        self.workers.startService()
        self.reactor.run()
        for process in self.processes if ready else ():
            process.say("ready")
        return self

    def stop(self) -> None:
        self.workers.stopService().addCallback(self.stopped.append)

    def end(self) -> None:
        """Stop, and let every process end."""
        self.stop()
        for process in self.processes:
            if not process.gone:
                process.end()
        assert self.stopped == [None]
        assert self.reactor.getDelayedCalls() == []
