"""Accepts connections from proxies that send the client's address by the PROXY protocol.

After the header is read, nothing stays between the protocol and the transport; `getPeer` and `getHost` of the transport
return the addresses of the header (`netsvc.reactor.hooks`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.hosts import is_loopback, plain_host
from netsvc.base.networks import Access
from netsvc.listen.proxy_header import Endpoint, Header, HeaderError, parse_header
from netsvc.plan.address import Proxy
from netsvc.reactor.hooks import Door

#: The reasons for refusing a connection: `refused` is called with one of these and the host of the peer.
UNTRUSTED = "proxy-untrusted"
MALFORMED = "proxy-malformed"
LATE = "proxy-late"

#: The most connections of a listener that wait for their headers. Limits do not count them, as the client is not known
#: yet. Proxies send the header at once; so when there is one more, the connection that has waited longest is refused.
MOST_AWAITED = 4096

#: Addresses of proxies that are cached: there are few.
_REMEMBERED = 256

_log = Logger(namespace="netsvc.proxy")


def _ignore(_reason: str, _host: str) -> None:
    """Count nothing."""


@implementer(IProtocolFactory)
class ProxyFactory(Factory):
    """Builds a protocol of `factory` for each connection when its PROXY header is complete.

    A connection is closed if its source is not trusted, if its header is malformed or too long
    (`netsvc.listen.proxy_header`) or does not arrive in time, or if more than `MOST_AWAITED` connections wait and it
    has waited longest. `refused` is called for each of them; nothing is sent or logged.
    """

    noisy = False
    #: For the ports of `netsvc.reactor.accept`.
    resets_refused = True

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
        #: The connections that wait for their headers, the longest waiting first.
        self.awaited: dict[_Reader, None] = {}
        self.proxy = proxy

    @property
    def proxy(self) -> Proxy:
        """The trusted sources and the timeout of new connections."""
        return self._proxy

    @proxy.setter
    def proxy(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._access = Access([item for item in proxy.trust if item != "unix"], None)

    def doStart(self) -> None:
        """Start the factory; see `IProtocolFactory`."""
        self.factory.doStart()

    def doStop(self) -> None:
        """Stop the factory; see `IProtocolFactory`."""
        self.factory.doStop()

    def logPrefix(self) -> str:
        """Return the log prefix of the factory."""
        named = ILoggingContext.providedBy(self.factory)
        return self.factory.logPrefix() if named else type(self.factory).__name__  # type: ignore[attr-defined]

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        """Build the protocol that reads the header; for an untrusted source return None to close the connection."""
        host = _host(addr)
        trusted = "unix" in self._proxy.trust if isinstance(addr, UNIXAddress) else not self._access.refusal(host)
        if trusted:
            return Door(_Reader(self), self.clock)
        self.refused(UNTRUSTED, host)
        return None


def _is_confidential(header: Header, proxy: IAddress) -> bool:
    """Return whether a client's connection is in plain text in no network, neither before the proxy nor behind it."""
    is_near = isinstance(proxy, UNIXAddress) or is_loopback(_host(proxy))
    return is_near and header.source is not None and (header.encrypted or is_loopback(header.source[0]))


def _host(address: IAddress) -> str:
    """Return the host of an address in its usual form; `unix` if it has none."""
    return plain_host(getattr(address, "host", None) or "unix")


class _Reader(Protocol):
    """The protocol of a connection until its header is complete."""

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
        # Bounded by one header and one read, as a longer header is an error.
        self._received += data
        try:
            header = parse_header(self._received)
        except HeaderError:
            self._refuse(MALFORMED)
            return
        if header is not None:
            self._forget_deadline()
            # The handshake limit must not take the header for the client's first byte.
            self.transport.preamble = header.size
            self.transport.confidential = _is_confidential(header, self.transport.getPeer())
            self._hand_over(header.source, header.destination, self._received[header.size :])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._deadline is not None:
            self._forget_deadline()
            # A connection without data is a health check or a port scan.
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
            transport.addresses = _address(source), _shared_address(destination)
        protocol: Any = self._owner.factory.buildProtocol(transport.getPeer())
        if protocol is None:
            transport.abortConnection()
            return
        if source:
            # Used in Twisted's own log lines.
            transport.hostname = source[0]
        transport.protocol = protocol
        if not rest:
            protocol.makeConnection(transport)
            return
        # A protocol may pause its transport in makeConnection; then it gets no data before it resumes it.
        transport.hold_reading()
        transport.unread = rest
        protocol.makeConnection(transport)
        transport.release_reading()


def _address(endpoint: Endpoint) -> IPv4Address | IPv6Address:
    return (IPv6Address if ":" in endpoint[0] else IPv4Address)("TCP", *endpoint)


#: Cached, as a proxy has few addresses.
_shared_address = lru_cache(_REMEMBERED)(_address)
