"""Takes connections from proxies that say, by the PROXY protocol, for whom they speak.

It reads the header and then gets out of the way: from there on the protocol has the transport to itself, whose
`getPeer` and `getHost` answer with what the proxy said.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.address import Proxy
from netsvc.listeners.proxy_header import Endpoint, HeaderError, parse_header

__all__ = ["LATE", "MALFORMED", "MOST_AWAITED", "UNTRUSTED", "ProxyFactory"]

#: What a connection can be refused for: `refused` is called with one of these and the far end's host.
UNTRUSTED = "proxy-untrusted"
MALFORMED = "proxy-malformed"
LATE = "proxy-late"

#: Connections of a listener whose headers have not come yet. No limit counts them, as it is not known whose they are.
#: A proxy sends its header at once: of one more, the one that has waited longest gives way.
MOST_AWAITED = 4096

#: Hosts of whom it is remembered whether they are trusted, and addresses of proxies: these are few.
_REMEMBERED = 256

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

_log = Logger(namespace="netsvc.proxy")


def _ignore(_reason: str, _host: str) -> None:
    """Count nothing."""


@implementer(IProtocolFactory)
class ProxyFactory(Factory):
    """Builds the protocols of `factory`, each when the header of its connection has come.

    Who is not trusted is closed at once; a header that is malformed, too long (`netsvc.listeners.proxy_header`) or
    not there in time, or before `MOST_AWAITED` others, ends its connection. `refused` is called for each of them, and
    nothing is sent or logged.
    """

    noisy = False

    def __init__(
        self,
        factory: IProtocolFactory,
        proxy: Proxy,
        clock: Any,
        refused: Callable[[str, str], None] = _ignore,
    ) -> None:
        self.factory = factory
        self.clock = clock
        self.refused = refused
        #: Those whose headers have not come yet, the one that has waited longest first.
        self.awaited: dict[_Reader, None] = {}
        self.proxy = proxy

    @property
    def proxy(self) -> Proxy:
        """Whom to trust for the next connections, and for how long to wait."""
        return self._proxy

    @proxy.setter
    def proxy(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._networks = [_network(item) for item in proxy.trust if item != "unix"]
        self._trusts = lru_cache(_REMEMBERED)(self._is_within)

    def _is_within(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def doStart(self) -> None:
        """Start the factory; see `IProtocolFactory`."""
        self.factory.doStart()

    def doStop(self) -> None:
        """Stop the factory; see `IProtocolFactory`."""
        self.factory.doStop()

    def logPrefix(self) -> str:
        """Return that of the factory."""
        named = ILoggingContext.providedBy(self.factory)
        return self.factory.logPrefix() if named else type(self.factory).__name__  # type: ignore[attr-defined]

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        """Build what reads the header; None, which closes the connection, for a source that is not trusted."""
        host = _host(addr)
        trusted = "unix" in self._proxy.trust if isinstance(addr, UNIXAddress) else self._trusts(host)
        if trusted:
            return _Reader(self)
        self.refused(UNTRUSTED, host)
        return None


def _network(text: str) -> _Network:
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((mapped or 0, network.prefixlen - _MAPPED.prefixlen))
    return network


def _host(address: IAddress) -> str:
    """Return the host of an address, without scope, that of IPv4 in its own form; `unix` if it has none."""
    host: str = getattr(address, "host", None) or "unix"
    host = host.partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host


class _Reader(Protocol):
    """The protocol of a connection until its header is there."""

    transport: Any

    def __init__(self, owner: ProxyFactory) -> None:
        self._owner = owner
        self._received = b""
        self._deadline: Any = None

    def connectionMade(self) -> None:
        awaited = self._owner.awaited
        if len(awaited) >= MOST_AWAITED:
            next(iter(awaited))._refuse(LATE)
        awaited[self] = None
        self._deadline = self._owner.clock.callLater(self._owner.proxy.timeout, self._refuse, LATE)

    def dataReceived(self, data: bytes) -> None:
        if self._deadline is None:
            return
        # Never more than a header and one read: what is too long for a header is none.
        self._received += data
        try:
            header = parse_header(self._received)
        except HeaderError:
            self._refuse(MALFORMED)
            return
        if header is not None:
            self._forget_deadline()
            # The limits wait for the first byte of the client itself.
            self.transport.preamble = header.size
            self._hand_over(header.source, header.destination, self._received[header.size :])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._deadline is not None:
            self._forget_deadline()
            # Who sends nothing looks whether the port is open, as health checks do.
            if self._received:
                self._owner.refused(MALFORMED, _host(self.transport.getPeer()))

    def _forget_deadline(self) -> None:
        if self._deadline.active():
            self._deadline.cancel()
        self._deadline = None
        self._owner.awaited.pop(self, None)

    def _refuse(self, reason: str) -> None:
        self._forget_deadline()
        self._owner.refused(reason, _host(self.transport.getPeer()))
        self.transport.abortConnection()

    def _hand_over(self, source: Endpoint | None, destination: Endpoint | None, rest: bytes) -> None:
        transport = self.transport
        if source and destination:
            _rename(transport, source, destination)
        peer = transport.getPeer()
        protocol: Any = self._owner.factory.buildProtocol(peer)
        if protocol is None:
            transport.abortConnection()
            return
        transport.protocol = protocol
        if source and isinstance(transport, Server):
            # What Twisted's own log lines call it.
            transport.logstr = f"{transport._getLogPrefix(protocol)},{transport.sessionno},{source[0]}"
        behind = None
        if rest:
            # Where the limits do not learn from the kernel how much was received.
            transport.heard_before = True
            behind = _Behind(transport, rest, self._owner.clock)
        protocol.makeConnection(transport)
        if behind is not None:
            behind.deliver()


def _rename(transport: Any, source: Endpoint, destination: Endpoint) -> None:
    """Have a transport answer with the addresses that the proxy said."""
    peer = _address(source)
    if type(transport).getPeer is Server.getPeer:
        # As small as can be, for it lives as long as the connection: here it is what `getPeer` looks at.
        transport.client = source
        transport.hostname = source[0]
        if transport._addressType is not type(peer):
            transport._addressType = type(peer)
    else:
        transport.getPeer = _Fixed(peer)
    transport.getHost = _fixed_host(destination)


def _address(endpoint: Endpoint) -> IPv4Address | IPv6Address:
    return (IPv6Address if ":" in endpoint[0] else IPv4Address)("TCP", *endpoint)


class _Fixed:
    """Answers `getPeer` or `getHost`."""

    __slots__ = ("_address",)

    def __init__(self, address: IPv4Address | IPv6Address) -> None:
        self._address = address

    def __call__(self) -> IPv4Address | IPv6Address:
        return self._address


@lru_cache(_REMEMBERED)
def _fixed_host(endpoint: Endpoint) -> _Fixed:
    """Share what answers `getHost`: a proxy has few addresses."""
    return _Fixed(_address(endpoint))


class _Behind:
    """What came together with a header, until the protocol reads.

    A protocol may begin by pausing its transport, and then gets nothing before it resumes, as without a proxy. Until
    all is delivered, this knows of it, for the transport does not remember.
    """

    def __init__(self, transport: Any, data: bytes, clock: Any) -> None:
        self._transport = transport
        self._data = data
        self._clock = clock
        self._reading = True
        transport.stopReading = self._stop
        transport.startReading = self._start

    def _stop(self) -> None:
        self._reading = False
        type(self._transport).stopReading(self._transport)

    def _start(self) -> None:
        # Nothing more is read before this is out; and nobody expects it from inside `resumeProducing`.
        if not self._reading:
            self._reading = True
            self._clock.callLater(0, self._deliver_later)

    def deliver(self) -> None:
        """Give the bytes to the protocol, if it reads."""
        transport = self._transport
        over = transport.disconnecting or not transport.connected or getattr(transport, "_aborting", False)
        if self._data and (self._reading or over):
            data, self._data = self._data, b""
            # They and this refer to each other.
            del transport.stopReading, transport.startReading
            if not over:
                transport.startReading()
                # It may have become another one.
                transport.protocol.dataReceived(data)

    def _deliver_later(self) -> None:
        try:
            self.deliver()
        except Exception:  # noqa: BLE001  (as when the reactor calls it)
            failure = Failure()
            _log.failure("a protocol failed at what came with its PROXY header", failure)
            self._transport.connectionLost(failure)
