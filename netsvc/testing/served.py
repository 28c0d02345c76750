"""A service in memory, with its limits, its clock and its clients."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import namedAny

from netsvc.base.hosts import peer_key, plain_host
from netsvc.config.adhoc import service_of
from netsvc.config.discovery import discover
from netsvc.guard import Guard, GuardedFactory
from netsvc.guard.admission import Level
from netsvc.guard.faults import Faults
from netsvc.interfaces import Context, INetworkService, Kind
from netsvc.metrics import Metrics
from netsvc.options import declared_settings, parse_settings
from netsvc.plan.record import Record
from netsvc.service import ServicePlugin, declared_limits
from netsvc.testing.frames import shown_at_caller
from netsvc.testing.wire import WINDOW, FakeDatagramTransport, FakeTransport, MemoryReactor, attach, make_port

__all__ = ["Client", "DatagramClient", "Received", "Served", "connect", "connect_datagram", "load", "serve"]

#: The address of a client that chooses none (reserved for documentation), and the first of their ports.
_HOST, _FIRST_PORT = "192.0.2.1", 50001
#: The port of each listener, at 127.0.0.1 or ::1.
_LISTENS_AT = 40000
#: Bytes of a value that a failure shows, around the first difference.
_SHOWN = 200

_LINE = re.compile(rb"(.*?)\r?\n", re.DOTALL)


def load(service: Any) -> INetworkService:
    """Return the declaration of a service; see `serve` for what it may be.

    Raises `PluginError` for a name that is not found or does not load, `TypeError` for what cannot be served.
    """
    if isinstance(service, ServicePlugin):
        return service.load()
    if isinstance(service, str):
        return load(namedAny(service.replace(":", "."))) if ":" in service else discover().load(service)
    if INetworkService.providedBy(service) or isinstance(getattr(service, "protocols", None), Mapping):
        return service  # type: ignore[no-any-return]
    made = service_of(service, "service", "Served for a test")
    if made is None:
        raise TypeError(f"{service!r} is no Service, Protocol class, factory or coroutine function")
    return made


class _Raised(Faults):
    """Keeps the exceptions of protocols, which the call that led to them raises."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.failures: list[Failure] = []

    def note(self, label: str, peer: str, port: int | None, failure: Failure, what: str = "failed") -> None:
        """Keep a failure."""
        self.failures.append(failure)


class Served:
    """A service in memory: started, within its limits, with one listener for each of its protocols.

    `connect` and `connect_datagram` make clients, which all talk to one core. `clock.advance(seconds)` lets time pass
    for the service, its limits and its coroutines.
    """

    def __init__(
        self,
        service: INetworkService,
        settings: Mapping[str, object],
        limits: Mapping[str, object],
        clock: MemoryReactor,
        state: Path | None,
    ) -> None:
        #: The declaration.
        self.service = service
        #: The clock and reactor of the service.
        self.clock = clock
        metrics = Metrics(service.name)
        #: What the service gets from netsvc; `context.metrics.value(NAME)` is the value of a metric.
        self.context = Context(clock, Logger(f"netsvc.{service.name}"), state, {_LISTENS_AT}, metrics)
        #: Its parsed options.
        self.options = parse_settings(service.options, settings)
        #: What the declaration has built; its `core`, if it has one, is the state that all clients share.
        self.instance: Any = service.build(self.options, self.context)
        self._faults = _Raised(clock)
        self.guard = Guard(clock, faults=self._faults)
        self.guard.book.record = self._ended
        declared: Any = getattr(service, "limits", None)
        self._level = Level(service.name, declared_limits(limits), clock, declared or {})
        #: The access records of the connections that have ended, oldest first.
        self.records: list[Record] = []
        self._numbers = count(_FIRST_PORT)
        self._factories: dict[str, GuardedFactory] = {}
        self._ports: dict[tuple[str, type], FakeDatagramTransport] = {}
        self._datagram_clients: dict[tuple[str, Any], DatagramClient] = {}
        self._running = False

    @property
    def core(self) -> Any:
        """The state that all clients share."""
        return self.instance.core

    @property
    def metrics(self) -> Metrics:
        """The metrics of the service: `metrics.value("requests")`."""
        return self.context.metrics

    # Its life.

    @shown_at_caller
    def start(self) -> None:
        """Check and start the service. `serve` has done so."""
        self.instance.check()
        self.instance.start()
        self._running = True

    @shown_at_caller
    def drain(self) -> Deferred[None] | None:
        """Ask the service to end its conversations, as a server does that stops; return what its `drain` returns."""
        with self._settled():
            done: Deferred[None] | None = self.instance.drain()
            self.clock.turn()
        return done

    @shown_at_caller
    def stop(self) -> None:
        """Reset the connections that are left, close the ports, and stop the service. Does nothing the second time."""
        if not self._running:
            return
        self._running = False
        with self._settled():
            for connection in list(self.clock.connections):
                connection.lose()
            for port in self._open_ports():
                port.close()
            for factory in self._factories.values():
                factory.doStop()
            self.instance.stop()
            self.guard.close()
            self.clock.turn()

    # Its clients.

    @shown_at_caller
    def connect(
        self, protocol: str | None = None, *, peer: str | IAddress | None = None, window: int = WINDOW
    ) -> Client:
        """Connect a client to a stream protocol, the first one if none is named.

        `peer` is its address, a host or a Twisted address: a limit counts the connections of a host together. Each
        client has a port of its own. It reads `window` bytes; with 0 it does not read. Raises what the protocol raises.
        """
        name = self._choose(protocol, "stream")
        address = self._address(peer, "TCP")
        refused = self._last_refusal()
        factory = self._factory(name)
        with self._settled():
            # It is a protocol even for a client that is refused, as the factory is not the outermost one.
            built: Any = factory.buildProtocol(address)
            transport = attach(built, self.clock, peer=address, host=self._host(address), window=window)
        client = Client(self, name, address, transport)
        if (last := self._last_refusal()) is not refused:
            client._refused_by = f"limit {last.limit}"
        return client

    @shown_at_caller
    def connect_datagram(self, protocol: str | None = None, *, peer: str | IAddress | None = None) -> DatagramClient:
        """Make a client of a datagram protocol, the first one if none is named.

        `peer` is its address, a host or a Twisted address; a `UNIXAddress` is a client of a UNIX datagram socket.
        """
        name = self._choose(protocol, "datagram")
        address: Any = self._address(peer, "UDP")
        is_unix = isinstance(address, UNIXAddress)
        place = os.fsdecode(address.name) if is_unix else (address.host, address.port)
        client = DatagramClient(self, name, place, self._port(name, address))
        self._datagram_clients[name, place] = client
        return client

    def _choose(self, protocol: str | None, kind: Kind) -> str:
        offered = self.service.protocols
        names = [name for name, its_kind in offered.items() if its_kind == kind]
        if protocol is None and names:
            return names[0]
        if protocol in names:
            return protocol
        called = {"stream": "connect", "datagram": "connect_datagram"}
        cure = f"use {called[offered[protocol]]}" if protocol in offered else f"it speaks {', '.join(offered)}"
        raise ValueError(f"{self.service.name} has no {kind} protocol{f' {protocol}' if protocol else ''}; {cure}")

    def _address(self, peer: str | IAddress | None, kind: Any) -> Any:
        if not isinstance(peer, str | None):
            return peer
        host = peer or _HOST
        return (IPv6Address if ":" in host else IPv4Address)(kind, host, next(self._numbers))

    def _host(self, peer: Any) -> Any:
        if isinstance(peer, UNIXAddress):
            return UNIXAddress(b"/run/service")
        return type(peer)(peer.type, "::1" if isinstance(peer, IPv6Address) else "127.0.0.1", _LISTENS_AT)

    def _factory(self, name: str) -> GuardedFactory:
        factory = self._factories.get(name)
        if factory is None:
            inner = self.instance.protocol(name)
            factory = self.guard.wrap(inner, f"{self.service.name} {name}", self._level)
            self._factories[name] = factory
            factory.doStart()
        return factory

    def _port(self, name: str, peer: Any) -> FakeDatagramTransport:
        key = (name, type(peer))
        port = self._ports.get(key)
        if port is None:
            port = make_port(self.instance.protocol(name), self._host(peer), self.clock)
            verified = getattr(self.instance, "verifies_peers", getattr(self.service, "verifies_peers", False))
            port.sessions = self.guard.sessions(
                f"{self.service.name} {name}", self._level, verified=bool(verified), port=_LISTENS_AT
            )
            self._ports[key] = port
            port.startListening()
            port.memory.deliver = lambda data, address: self._deliver(name, data, address)
        return port

    def _deliver(self, name: str, data: bytes, address: Any) -> None:
        client = self._datagram_clients.get((name, address))
        if client is not None:
            client.received.append(data)

    def _open_ports(self) -> list[FakeDatagramTransport]:
        """List the open datagram ports."""
        return [port for port in self._ports.values() if port.connected]

    # What a client asks.

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Run a block in which the network moves, and raise the first exception of a protocol in it."""
        try:
            yield
        except BaseException:
            # It has been given to the guard as well.
            self._faults.failures.clear()
            raise
        failures, self._faults.failures = self._faults.failures, []
        if failures:
            failures[0].raiseException()

    def _reason(self, protocol: str, peer: Any) -> str:
        """Return why the connection of a peer has ended; empty if it has not."""
        place = (plain_host(peer.host), peer.port) if hasattr(peer, "host") else None
        for record in reversed(self.records):
            if record.protocol == protocol and place in (None, (record.peer, record.port)):
                return f"{record.reason} {record.limit}" if record.limit else record.reason
        return ""

    def _hints(self, host: str) -> list[str]:
        """List what may be why a client did not receive what it expected: a limit, and a timer that is due."""
        found = [each for each in self.guard.refusals.last if each.peer == peer_key(host)]
        hints = [f"limit {each.limit} {each.action} it" for each in found[-1:]]
        own = [call.getTime() for call in self.clock.getDelayedCalls() if not _is_ours(call)]
        if own:
            hints.append(f"a timer of the service is due: clock.advance({min(own) - self.clock.seconds():g})")
        return hints

    def _last_refusal(self) -> Any:
        last = self.guard.refusals.last
        return last[-1] if last else None

    def _ended(self, record: Record) -> None:
        self.records.append(record)


class Received(bytes):
    """The bytes that an `expect` has taken. `groups` are the regular expression's, or the line without its end."""

    groups: tuple[bytes, ...] = ()

    def __await__(self) -> Generator[None, None, Self]:
        """Return itself: nothing in memory has to be waited for, but `await client.expect(…)` is allowed."""
        return self
        yield


class _Peer:
    """What both kinds of client have."""

    def __init__(self, served: Served, protocol: str) -> None:
        #: The service in memory that it is connected to.
        self.served = served
        #: The name of the protocol.
        self.protocol = protocol

    def __await__(self) -> Generator[None, None, Self]:
        """Return the client: `await connect(…)` is allowed, and not necessary."""
        return self
        yield

    def _fail(self, expected: str, received: str, marker: str = "") -> AssertionError:
        lines = [f"{self}", f"  expected: {expected}", f"  received: {received}"]
        if marker:
            lines.append(f"            {marker}")
        lines += [f"  {note}" for note in (*self._state(), *self.served._hints(self._host))]
        return AssertionError("\n".join(lines))

    _host = ""

    def _state(self) -> list[str]:
        return []

    def _differs(self, expected: bytes, received: bytes) -> AssertionError:
        """Return the failure for exact bytes, with a mark at the first difference."""
        place = next((i for i, (a, b) in enumerate(zip(expected, received, strict=False)) if a != b), None)
        if place is None:
            place = min(len(expected), len(received))
        # Cut both at the same place, so that they stay below each other.
        start = max(0, place - _SHOWN // 2)
        shown = [_show(each, start) for each in (expected, received)]
        before = _show(received, start, place)
        column = len(before) - 1
        return self._fail(shown[0], shown[1], f"{'-' * column}^ byte {place}")


def _show(data: bytes, start: int = 0, end: int | None = None) -> str:
    stop = min(start + _SHOWN, len(data)) if end is None else end
    text = f"{'… ' if start else ''}{data[start:stop]!r}"
    return f"{text} … ({len(data)} bytes)" if end is None and stop < len(data) else text


class Client(_Peer):
    """A client of a stream protocol, in memory.

    When a call returns, everything that follows from it has happened, except what waits for the clock
    (`client.served.clock.advance(seconds)`); no call takes time. An exception of the protocol is raised by the call
    that led to it, and closes the connection.

    `peer` is the client's address, and `window` how many more bytes it reads: set it to 0 for a client that does not
    read, and to more to let it read again.
    """

    def __init__(self, served: Served, protocol: str, peer: Any, transport: FakeTransport) -> None:
        super().__init__(served, protocol)
        self.peer = peer
        self._host = getattr(peer, "host", "")
        self._refused_by = ""
        #: The server's transport, for what a test of a transport needs.
        self.transport = transport
        self._taken = 0

    def __repr__(self) -> str:
        host, port = getattr(self.peer, "host", ""), getattr(self.peer, "port", "")
        return f"{self.served.service.name} {self.protocol}, client {host}:{port}"

    # What the client sends.

    @shown_at_caller
    def send(self, data: bytes) -> None:
        """Send bytes. They are dropped if the server has closed, as a network drops them."""
        with self.served._settled():
            self.transport.feed(data)

    @shown_at_caller
    def half_close(self, data: bytes = b"") -> None:
        """Send the last bytes and the end of the stream, as `printf … | nc -N` does. The client still reads."""
        with self.served._settled():
            self.transport.half_close(data)

    @shown_at_caller
    def close(self) -> None:
        """Close the connection. The client reads nothing more."""
        with self.served._settled():
            self.transport.close()

    @shown_at_caller
    def reset(self) -> None:
        """Break the connection at once, as a client that crashes."""
        with self.served._settled():
            self.transport.lose()

    @property
    def window(self) -> int:
        """How many more bytes the client reads; 0 is a client that does not read."""
        return self.transport.window

    @window.setter
    @shown_at_caller
    def window(self, size: int) -> None:
        with self.served._settled():
            self.transport.window = size

    @property
    def unsent(self) -> int:
        """How many bytes of the client the server has not read, because it has paused."""
        return self.transport.unsent

    @property
    def unread(self) -> int:
        """How many bytes the server has written and holds, because the client does not read."""
        return self.transport.buffered

    # What the client has received.

    @property
    @shown_at_caller
    def received(self) -> bytes:
        """What the client has received and no `expect` has taken yet."""
        self._turn()
        return self.transport.value()[self._taken :]

    @shown_at_caller
    def expect(self, expected: bytes | re.Pattern[bytes]) -> Received:
        """Take the next bytes, which must be `expected`: exactly these bytes, or what a regular expression matches.

        More may follow; see `expect_nothing`. Raises `AssertionError` at once, with the difference, if they are not
        there: nothing in memory has to be waited for. Advance the clock first if the service answers later.
        """
        received = self.received
        if isinstance(expected, bytes):
            if not received.startswith(expected):
                raise self._differs(expected, received)
            return self._take(expected)
        found = _pattern(expected).match(received)
        if found is None:
            raise self._fail(f"a match of {expected.pattern!r}", _show(received))
        return self._take(found[0], found.groups())

    @shown_at_caller
    def expect_line(self, expected: bytes | re.Pattern[bytes] | None = None) -> Received:
        """Take and return the next line without its LF or CRLF; `expected`, if given, must be all of it."""
        received = self.received
        found = _LINE.match(received)
        if found is None:
            raise self._fail("a line" if expected is None else f"the line {_text(expected)}", _show(received))
        line = found[1]
        if isinstance(expected, bytes) and line != expected:
            raise self._differs(expected, line)
        groups: tuple[bytes, ...] = ()
        if expected is not None and not isinstance(expected, bytes):
            match = _pattern(expected).fullmatch(line)
            if match is None:
                raise self._fail(f"a line that matches {expected.pattern!r}", _show(line))
            groups = match.groups()
        self._take(found[0])
        return _received(line, groups)

    @shown_at_caller
    def expect_nothing(self) -> None:
        """Check that the client has received nothing more."""
        if received := self.received:
            raise self._fail("nothing", _show(received))

    @shown_at_caller
    def expect_end(self) -> None:
        """Check that the server has closed the connection in order, and that nothing came before its end."""
        self.expect_nothing()
        if not self.closed or self.was_reset:
            raise self._fail("the end of the stream", "nothing")

    # How the connection ended.

    @property
    @shown_at_caller
    def closed(self) -> bool:
        """Whether the server has ended its side, in order or by a reset."""
        self._turn()
        return self.transport.ended or self.transport.aborted

    @property
    @shown_at_caller
    def was_reset(self) -> bool:
        """Whether the server has reset the connection. What it had not sent is lost."""
        self._turn()
        return self.transport.aborted

    @property
    @shown_at_caller
    def reason(self) -> str:
        """Why the connection has ended, as in the access log (docs/reference/log.md); empty while it is open.

        `peer`, `server`, `abort` (by the service), `reset` (by the client), `error`, or a limit: `limit idle`. A client
        that was refused has the limit as well: `limit perip`.
        """
        self._turn()
        return self._refused_by or self.served._reason(self.protocol, self.peer)

    def _turn(self) -> None:
        with self.served._settled():
            self.served.clock.turn()

    def _take(self, data: bytes, groups: tuple[Any, ...] = ()) -> Received:
        self._taken += len(data)
        return _received(data, groups)

    def _state(self) -> list[str]:
        if self.was_reset:
            state = "the connection was reset"
        elif self.closed:
            state = "the server has closed"
        else:
            state = "the connection is open"
        reason = self.reason
        return [f"{state} ({reason})" if reason else state]


class DatagramClient(_Peer):
    """A client of a datagram protocol, in memory. `peer` is its address. See `Client`."""

    def __init__(self, served: Served, protocol: str, peer: Any, port: FakeDatagramTransport) -> None:
        super().__init__(served, protocol)
        self.peer = peer
        self._host = peer[0] if isinstance(peer, tuple) else ""
        #: The server's port, for what a test of a transport needs.
        self.port = port
        #: The datagrams that it has received and no `expect` has taken yet.
        self.received: list[bytes] = []

    def __repr__(self) -> str:
        peer = f"{self.peer[0]}:{self.peer[1]}" if isinstance(self.peer, tuple) else self.peer
        return f"{self.served.service.name} {self.protocol}, client {peer}"

    @shown_at_caller
    def send(self, data: bytes) -> None:
        """Send a datagram."""
        with self.served._settled():
            self.port.feed(data, self.peer)

    @shown_at_caller
    def expect(self, expected: bytes | re.Pattern[bytes]) -> Received:
        """Take the next datagram, which must be `expected`, or which a regular expression must match as a whole.

        Raises `AssertionError` at once, with the difference, if it is not there.
        """
        if not self.received:
            raise self._fail(_text(expected), "no datagram")
        data = self.received[0]
        if isinstance(expected, bytes):
            if data != expected:
                raise self._differs(expected, data)
            return _received(self.received.pop(0))
        found = _pattern(expected).fullmatch(data)
        if found is None:
            raise self._fail(f"a match of {expected.pattern!r}", _show(data))
        return _received(self.received.pop(0), found.groups())

    @shown_at_caller
    def expect_nothing(self) -> None:
        """Check that the client has received no other datagram."""
        if self.received:
            raise self._fail("no datagram", ", ".join(map(_show, self.received)))


def _received(data: bytes, groups: tuple[Any, ...] = ()) -> Received:
    received = Received(data)
    received.groups = groups
    return received


def _pattern(expected: Any) -> re.Pattern[bytes]:
    if not isinstance(expected, re.Pattern):
        raise TypeError(f"expect bytes, or a compiled pattern of bytes, not {type(expected).__name__}")
    return expected


def _text(expected: bytes | re.Pattern[bytes]) -> str:
    return _show(expected) if isinstance(expected, bytes) else f"a match of {expected.pattern!r}"


def _is_ours(call: Any) -> bool:
    """Return whether a delayed call is of a limit, not of the service."""
    return str(getattr(call.func, "__module__", "")).startswith("netsvc.guard.")


@shown_at_caller
def serve(
    service: Any,
    /,
    *,
    limits: Mapping[str, object] | None = None,
    clock: MemoryReactor | None = None,
    state: Path | None = None,
    settings: Mapping[str, object] | None = None,
    **options: object,
) -> Served:
    """Start a service in memory and return it.

    - `service`: a `Service`, the name of an installed one, `package.module:attribute`, a Protocol, DatagramProtocol or
      Factory class, a factory, or a coroutine or answering function.
    - `options`: the options of the service: `prefix="> "`, True for a flag. `max_keys` is the option `max-keys`. One
      whose name is a parameter here can be in `settings`, a mapping.
    - `limits`: the limits of the service: `{"perip": 2, "idle": None}`. Without them those that it declares apply, and
      the defaults, as in production.
    - `clock`: the clock to start with, a `MemoryReactor`; several services may share it.
    - `state`: the state directory.

    Raises `UserError` for wrong options or limits, or if the service refuses to start; `PluginError` or `TypeError` for
    what cannot be served.
    """
    declaration = load(service)
    declared = {setting.name for setting in declared_settings(declaration.options)}
    written = {name if name in declared else name.replace("_", "-"): value for name, value in options.items()}
    served = Served(declaration, {**(settings or {}), **written}, limits or {}, clock or MemoryReactor(), state)
    served.start()
    return served


@shown_at_caller
def connect(
    service: Any,
    protocol: str | None = None,
    /,
    *,
    peer: str | IAddress | None = None,
    window: int = WINDOW,
    **how: Any,
) -> Client:
    """Connect a client to a stream protocol of a service in memory.

    `service` is what `serve` has returned, for several clients of one core; or what `serve` accepts, which then is
    served with the options and keyword arguments `how`. See `Served.connect` for the rest.
    """
    return _served(service, how).connect(protocol, peer=peer, window=window)


@shown_at_caller
def connect_datagram(
    service: Any, protocol: str | None = None, /, *, peer: str | IAddress | None = None, **how: Any
) -> DatagramClient:
    """Make a client of a datagram protocol of a service in memory; see `connect` and `Served.connect_datagram`."""
    return _served(service, how).connect_datagram(protocol, peer=peer)


def _served(service: Any, how: Mapping[str, Any]) -> Served:
    if not isinstance(service, Served):
        return serve(service, **how)
    if how:
        raise TypeError(f"{', '.join(how)}: give the options of a service to serve, which has started this one")
    return service
