"""The guard for any Twisted program: `guard:perip=20:idle=60:tcp:8080` wherever it takes a server endpoint string."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from netsvc.discovery import nearest
from netsvc.guard import Guard, GuardedFactory
from netsvc.limits import LIMITS, Limits, parse_limits
from netsvc.text import escape

__all__ = ["GuardedEndpoint", "guarded_endpoint", "stand_outside"]

_FORM = "write guard:LIMIT=VALUE:…:ENDPOINT, such as guard:perip=20:idle=60:tcp:8080"
#: Of a proxy all clients are one peer. What the user sets himself he means.
_BEHIND_PROXY: Limits = dict.fromkeys(("perip", "periprate", "peripburst"))


@implementer(IStreamServerEndpoint)
class GuardedEndpoint:
    """Listens where `endpoint` does, and keeps `limits`, those of `netsvc.limits`, with their defaults.

    One guard counts for all ports that it opens. It goes when the last of them and the last connection are closed.
    Raises `MistakeError` where a file of addresses cannot be read.
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
        """Count one port more."""
        self._ports += 1

    def port_closed(self) -> None:
        """Count one port less; after the last, let go of the guard when its connections have."""
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
    """The factory of one port of a `GuardedEndpoint`. A port that closes, whoever closes it and how, stops it."""

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
    """Let a guard stand right at a port that was opened with it, before TLS, where it can; return the port.

    Then nothing is built for a connection that is refused.
    """
    outermost = getattr(port, "factory", None)
    if isinstance(outermost, TLSMemoryBIOFactory) and outermost.wrappedFactory is guarded:
        outermost.wrappedFactory = guarded.factory
        # It starts what it gets, and stops what it had: the factory inside is started throughout.
        guarded.factory = outermost
        port.factory = outermost = guarded  # type: ignore[attr-defined]
    guarded.outermost = outermost is guarded
    return port


def guarded_endpoint(reactor: Any, *args: str | bytes, **kwargs: str | bytes) -> GuardedEndpoint:
    """Make the endpoint of `guard:…` from its parts, as Twisted has split them.

    Arguments with the name of a limit are limits; the rest is an endpoint of its own. Raises `ValueError` with a line
    for each thing that is wrong.
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
    parts = [*map(_quoted, words), *(f"{_quoted(name)}={_quoted(value)}" for name, value in named.items())]
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, ":".join(parts))
    except TypeError as error:
        # How Python says that the function behind an endpoint takes no such argument.
        unknown = re.search(r"unexpected keyword argument '(.*)'", str(error))
        if unknown is None:
            raise
        hint = nearest(unknown[1], LIMITS)
        raise ValueError(
            f"guard: {escape(unknown[1])} is no limit, and no argument of {escape(words[0])}:{hint}"
        ) from None
    return endpoint


def _text(word: str | bytes) -> str:
    # Twisted takes endpoint strings that are bytes as well.
    return word if isinstance(word, str) else word.decode("ascii")


def _quoted(text: str) -> str:
    # Twisted's own quoting leaves `=` alone, at which it splits.
    return re.sub(r"([\\:=])", r"\\\1", text)
