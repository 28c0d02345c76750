"""The `guard:` endpoint: limits for any Twisted program that takes endpoint strings: `guard:perip=20:tcp:8080`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from netsvc.base.text import escape
from netsvc.config.discovery import nearest
from netsvc.guard import Guard, GuardedFactory
from netsvc.plan.address import join_endpoint
from netsvc.plan.limits import LIMITS, Limits, parse_limits

_FORM = "write guard:LIMIT=VALUE:…:ENDPOINT, such as guard:perip=20:idle=60:tcp:8080"
#: Behind a proxy all clients have the same peer address: no limits for each peer, unless the user sets them.
_BEHIND_PROXY: Limits = dict.fromkeys(("perip", "periprate", "peripburst"))


@implementer(IStreamServerEndpoint)
class GuardedEndpoint:
    """Listens on `endpoint` and enforces `limits` (see `netsvc.plan.limits`) and the default limits.

    One guard counts for all ports that the endpoint opens; it is closed after the last port and the last connection.
    Raises `UserError` if a file of addresses cannot be read.
    """

    def __init__(self, reactor: Any, endpoint: IStreamServerEndpoint, limits: Limits, label: str) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self._reactor = reactor
        self._label = label
        self._ports = 0
        self._guard: Guard | None = Guard(reactor, limits)

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Open a port for `factory`; see `IStreamServerEndpoint`."""
        guard = self._guard = self._guard or Guard(self._reactor, self.limits)
        guarded = _PortFactory(self, guard, factory)
        opening: Deferred[IListeningPort] = self.endpoint.listen(guarded)
        return opening.addCallback(stand_outside, guarded)

    def port_opened(self) -> None:
        """Count an open port."""
        self._ports += 1

    def port_closed(self) -> None:
        """Count a closed port. After the last one, close the guard when its connections have ended."""
        self._ports -= 1
        if not self._ports and self._guard is not None:
            self._guard.ended = self._look
            self._look()

    def _look(self) -> None:
        guard = self._guard
        if guard is not None and not self._ports and not guard.live:
            self._guard = None
            guard.close()


class _PortFactory(GuardedFactory):
    """The factory of one port of a `GuardedEndpoint`. It notifies the endpoint when the port opens and closes."""

    def __init__(self, endpoint: GuardedEndpoint, guard: Guard, factory: IProtocolFactory) -> None:
        super().__init__(guard, factory, endpoint._label, guard.gate(endpoint._label, "stream"))
        self._endpoint = endpoint

    def doStart(self) -> None:
        super().doStart()
        self._endpoint.port_opened()

    def doStop(self) -> None:
        super().doStop()
        self._endpoint.port_closed()


def stand_outside(port: IListeningPort, guarded: GuardedFactory) -> IListeningPort:
    """Move the guard of a port outside its TLS, if possible; return the port.

    No TLS connection is built then for a refused connection.
    """
    outermost = getattr(port, "factory", None)
    if isinstance(outermost, TLSMemoryBIOFactory) and outermost.wrappedFactory is guarded:
        # Imported late, as it loads OpenSSL.
        from netsvc.reactor.tls import TLSTransport

        outermost.protocol = TLSTransport
        outermost.wrappedFactory = guarded.factory
        # Setting it starts the new factory and stops the old one: the inner factory stays started.
        guarded.factory = outermost
        port.factory = outermost = guarded  # type: ignore[attr-defined]
    guarded.outermost = outermost is guarded
    guarded.listens_on(port)
    return port


def guarded_endpoint(reactor: Any, *args: str | bytes, **kwargs: str | bytes) -> GuardedEndpoint:
    """Make the endpoint of `guard:…` from its parts, as split by Twisted.

    Arguments with the name of a limit are limits; the rest is the inner endpoint. Raises `ValueError` with a line for
    each error.
    """
    words = [_text(word) for word in args]
    named = {name: _text(value) for name, value in kwargs.items()}
    values = {name: value for name, value in named.items() if name in LIMITS}
    inner = {name: value for name, value in named.items() if name not in LIMITS}
    if not words:
        raise ValueError(f"guard: has no endpoint after its limits; {_FORM}")
    if words[0] in LIMITS:
        raise ValueError(f"guard: {words[0]} has no value; {_FORM}")
    if wrong := [name for name in values if "stream" not in LIMITS[name].kinds]:
        raise ValueError(f"guard: {', '.join(wrong)} is for datagrams, and an endpoint is for streams")
    limits = parse_limits(values, "guard: {}".format)
    endpoint = _endpoint(reactor, words, inner)
    if words[0] == "haproxy":
        limits = {**_BEHIND_PROXY, **limits}
    return GuardedEndpoint(reactor, endpoint, limits, escape(":".join(words)))


def _endpoint(reactor: Any, words: list[str], named: Mapping[str, str]) -> IStreamServerEndpoint:
    from twisted.internet.endpoints import serverFromString

    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, join_endpoint(words, named))
    except TypeError as error:
        # Python's message if the function behind the endpoint has no such argument.
        unknown = re.search(r"unexpected keyword argument '(.*)'", str(error))
        if unknown is None:
            raise
        hint = nearest(unknown[1], LIMITS)
        raise ValueError(
            f"guard: {escape(unknown[1])} is no limit, and no argument of {escape(words[0])}:{hint}"
        ) from None
    return endpoint


def _text(word: str | bytes) -> str:
    # Twisted also accepts endpoint strings as bytes.
    return word if isinstance(word, str) else word.decode("ascii")
