"""Builds a server on a reactor in memory, with services that write down what they are asked."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python import usage

from netsvc.interfaces import Context, INetworkService
from netsvc.plan.address import parse_address
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.server.server import Server
from netsvc.service import Service


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


class ServerInMemory:
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
        self.host = Server(plan, self.load, self.reactor, ["a warning"], self.deaths.append)

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
