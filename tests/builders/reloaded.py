"""A host on the fast reactor, turned by hand, with real sockets on loopback and a clock that stands still."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.internet.task import Clock
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.app.application import Application
from netsvc.base.errors import UserError
from netsvc.interfaces import Context, INetworkService
from netsvc.interfaces import Options as BaseOptions
from netsvc.plan.address import parse_address
from netsvc.plan.limits import parse_limits
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.reactor.epoll import NetsvcReactor
from netsvc.server.server import Server
from netsvc.service import Service

#: Seconds that anything may take that does happen.
PATIENCE = 60.0


#: What most plans here use.
ONE = {"one": {"text": "one"}}
TWO = {"one": {"text": "one"}, "two": {"text": "two"}}


class Options(BaseOptions):
    optParameters = [["text", None, "plain", "What it says"], ["fail", None, "", "At which step it fails"]]


class Core:
    """Says who it is, and records what the host asks of it."""

    def __init__(self, options: Any, context: Context) -> None:
        self.options = options
        self.context = context
        self.calls: list[str] = []
        self.draining: Deferred[None] | None = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.options["fail"] == name:
            raise UserError([f"{name} fails"])

    def check(self) -> None:
        self._call("check")

    def start(self) -> None:
        self._call("start")

    def drain(self) -> Deferred[None] | None:
        self._call("drain")
        return self.draining

    def stop(self) -> None:
        self._call("stop")


class AdaptableCore(Core):
    """One that takes new options in place, unless they say that it does not."""

    def reconfigure(self, options: Any) -> bool:
        self.calls.append("reconfigure")
        if options["fail"] == "adapt":
            return False
        self.options = options
        if options["fail"] == "reconfigure":
            raise RuntimeError("no")
        return True


class Says(Protocol):
    """Says who serves, and then sends back what comes."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        self.transport.write(f"{self.factory.core.options['text']}\n".encode())

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Shouts(Says):
    """Another protocol of the same service."""

    def connectionMade(self) -> None:
        self.transport.write(f"{self.factory.core.options['text'].upper()}\n".encode())


@implementer(IHalfCloseableProtocol)
class SaysUntilBothEnd(Says):
    """The same, for a peer that has ended its side and still reads."""

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


class SaysDatagrams(DatagramProtocol):
    core: Any

    def startProtocol(self) -> None:
        if self.core.options["fail"] == "startProtocol":
            raise RuntimeError("no")

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        assert self.transport is not None
        self.transport.write(self.core.options["text"].encode()[: len(data)], peer)


def plan(uses: Mapping[str, Mapping[str, Any]], *listeners: str, drain: float = 4.0, **limits: Any) -> Plan:
    """Make a plan of `use protocol address` and, after it, limits as `name=value`.

    Of a use, `service` is the service, `limits` are its limits, and the rest its options.
    """
    made = []
    for text in listeners:
        use, protocol, address, *own = text.split()
        kind = "datagram" if protocol == "udp" else "stream"
        words = dict(word.split("=", 1) for word in own)
        made.append(Listener(use, protocol, parse_address(address, kind), parse_limits(words)))  # type: ignore[arg-type]
    return Plan(
        {
            key: ServiceUse(
                str(use.get("service", "says")),
                {name: value for name, value in use.items() if name not in ("service", "limits")},
                limits=parse_limits(use.get("limits", {})),
            )
            for key, use in uses.items()
        },
        tuple(made),
        drain,
        limits=parse_limits(limits),
    )


class RunningServer:
    """A host, and its clients. `cores` has every core that was built, by its text."""

    def __init__(self, first: Plan, *, application: bool = False) -> None:
        self.clock = Clock()
        self.when_running: list[Callable[[], Any]] = []
        reactor: Any = NetsvcReactor()
        reactor.seconds = self.clock.seconds
        reactor.callWhenRunning = lambda call, *args: self.when_running.append(lambda: call(*args))
        self.reactor = reactor
        self.cores: dict[str, list[Core]] = {}
        self.deaths: list[str] = []
        self.clients: list[socket.socket] = []
        self.host = Server(first, self.load, self.reactor, (), self.deaths.append)
        #: What is started, reloaded and stopped: the host, or the application that has it.
        self.root: Server | Application = self.host
        if application:
            self.root = Application(self.host, self.reactor, lambda: (first, self.load))
        self.root.privilegedStartService()
        self.root.startService()
        # All others take over the signals of this process.
        self.when_running[-1]()

    def load(self, use: ServiceUse) -> INetworkService:
        kind = AdaptableCore if use.service == "adapts" else Core

        def core(options: usage.Options, context: Context) -> Core:
            made = kind(options, context)
            self.cores.setdefault(options["text"], []).append(made)
            return made

        streams: dict[str, Any] = {"tcp": SaysUntilBothEnd if use.service == "halves" else Says, "loud": Shouts}
        return Service(
            use.service, "A test", options=Options, core=core, streams=streams, datagrams={"udp": SaysDatagrams}
        )

    def errors(self, then: Plan) -> tuple[str, ...]:
        """Reload, which fails, and return why."""
        try:
            self.reload(then)
        except UserError as error:
            return tuple(error.errors)
        raise AssertionError("it did not fail")

    def refused(self, port: int) -> bool:
        """Tell whether nobody listens there."""
        try:
            self.connect(port)
        except ConnectionRefusedError:
            return True
        return False

    def core(self, text: str) -> Core:
        """Return the last core that was built with a text."""
        return self.cores[text][-1]

    def turn(self, count: int = 3) -> None:
        for _ in range(count):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.turn()

    def reload(self, then: Plan) -> str:
        """Reload, and return the summary. Raises `UserError`."""
        results: list[Any] = []
        self.root.reload(then, self.load).addBoth(results.append)
        [result] = results
        if isinstance(result, Failure):
            result.raiseException()
        self.turn()
        return str(result)

    def port(self, place: int = 0) -> int:
        return self.host.running_plan.listeners[place].port_number()

    def connect(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """Connect, which may be refused."""
        client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.clients.append(client)
        client.settimeout(PATIENCE)
        client.connect((host, port))
        return client

    def receive(self, client: socket.socket) -> bytes:
        """Turn until something comes, or the end, which is empty."""
        deadline = time.monotonic() + PATIENCE
        client.setblocking(False)
        while time.monotonic() < deadline:
            self.turn()
            try:
                return client.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return b""
        raise AssertionError("nothing comes")

    def greeting(self, port: int) -> tuple[socket.socket, bytes]:
        """Connect, and return the connection and what is said first."""
        client = self.connect(port)
        return client, self.receive(client).strip()

    def echoes(self, client: socket.socket) -> bool:
        """Tell whether a connection is served."""
        try:
            client.send(b"ping")
        except OSError:
            return False
        return self.receive(client) == b"ping"

    def ask(self, port: int, data: bytes = b"?" * 100, client: socket.socket | None = None) -> bytes:
        """Send a datagram, and return the answer; empty if there is none."""
        peer = client or socket.socket(type=socket.SOCK_DGRAM)
        if client is None:
            self.clients.append(peer)
        peer.connect(("127.0.0.1", port))
        peer.setblocking(False)
        try:
            peer.send(data)
            self.turn()
            return peer.recv(1000)
        except (BlockingIOError, ConnectionRefusedError):
            return b""

    def close(self) -> None:
        """Stop, and see that nothing is left."""
        for client in self.clients:
            client.close()
        self.turn()
        stopped: list[object] = []
        if not self.host._is_leaving:
            self.root.stopService().addCallback(stopped.append)
            self.turn()
            for _ in range(3):
                self.advance(self.host.plan.drain + 1)
            assert stopped == [None]
        for reader in [*self.reactor._internalReaders]:
            self.reactor._internalReaders.remove(reader)
            self.reactor.removeReader(reader)
            reader.connectionLost(Failure(ConnectionDone()))
        assert self.reactor.removeAll() == []
        assert [call for call in self.reactor.getDelayedCalls() if call.active()] == []
        self.reactor._poller.close()


@contextmanager
def world(first: Plan, *, application: bool = False) -> Iterator[RunningServer]:
    """Run a host for a test, with an application around it or without."""
    made = RunningServer(first, application=application)
    try:
        yield made
    finally:
        made.close()
