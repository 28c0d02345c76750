"""Builds a service in memory and connects its protocols, as the host does with sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.reflect import namedAny
from zope.interface import implementer

from netsvc.discovery import discover
from netsvc.interfaces import Context, INetworkService, IServiceInstance
from netsvc.metrics import Metrics
from netsvc.service import ServicePlugin
from netsvc.settings import parse_settings
from netsvc.testing.wire import PEER, WINDOW, FakeDatagramTransport, FakeTransport, MemoryReactor, attach

__all__ = ["Bench", "bind", "build", "connect", "load"]


@implementer(IServiceInstance)
class Bench:
    """A service that was built in memory, with its options, context and clock.

    Provides `IServiceInstance`: it passes every call on to the instance that the service built.
    """

    def __init__(self, service: INetworkService, options: usage.Options, context: Context) -> None:
        self.service = service
        self.options = options
        self.context = context
        self.clock: MemoryReactor = context.reactor
        self.instance = service.build(options, context)
        self._factories: dict[str, IProtocolFactory] = {}

    @property
    def core(self) -> Any:
        """The state that all connections share, for an instance that shows it, as those of `Service` do."""
        return cast(Any, self.instance).core

    def protocol(self, name: str) -> Any:
        """Build a protocol for one more listener."""
        return self.instance.protocol(name)

    def factory(self, name: str) -> IProtocolFactory:
        """Return the factory of the one listener that `connect` connects to."""
        if name not in self._factories:
            self._factories[name] = self.protocol(name)
            self._factories[name].doStart()
        return self._factories[name]

    def check(self) -> None:
        """Raise `MistakeError` if `start` would fail."""
        self.instance.check()

    def start(self) -> None:
        """Let the service acquire what it needs."""
        self.instance.start()

    def drain(self) -> Deferred[None] | None:
        """Begin to end every conversation, and carry what is said for goodbye."""
        done = self.instance.drain()
        self.clock.turn()
        return done

    def stop(self) -> None:
        """Let the service release what it acquired."""
        self.instance.stop()


def load(service: INetworkService | str) -> INetworkService:
    """Return the declaration of a service.

    `service` is a declaration, a `ServicePlugin` that points to one, the name of an installed service, or
    `package.module:attribute`. Raises `PluginError` for a name that is not found or does not load.
    """
    if isinstance(service, ServicePlugin):
        return service.load()
    if not isinstance(service, str):
        return service
    if ":" in service:
        return load(namedAny(service.replace(":", ".")))
    return discover().load(service)


def build(
    service: INetworkService | str,
    settings: Mapping[str, object] | None = None,
    *,
    clock: MemoryReactor | None = None,
    context: Context | None = None,
) -> Bench:
    """Build a service, with `settings` as the configuration file has them: option name to value, True for a flag.

    `clock` becomes the context's reactor. Give a whole `context` for a state directory or a logger of your own;
    its reactor must be a `MemoryReactor`. Call `start()` on what comes back if the service needs it. Raises
    `MistakeError` for settings that are wrong.
    """
    declaration = load(service)
    if context is None:
        log, metrics = Logger(f"netsvc.{declaration.name}"), Metrics(declaration.name)
        context = Context(clock or MemoryReactor(), log, metrics=metrics)
    return Bench(declaration, parse_settings(declaration.options, settings or {}), context)


def connect(bench: Bench, name: str, *, peer: IAddress = PEER, window: int = WINDOW) -> tuple[Any, FakeTransport]:
    """Connect a peer to a stream protocol; return the protocol and its transport, whose far end is the test's.

    All connections to one protocol come from one factory. Raises `ConnectionRefusedError` where that builds no
    protocol for the peer.
    """
    protocol = bench.factory(name).buildProtocol(peer)
    if protocol is None:
        raise ConnectionRefusedError(f"{name} takes no connection from {peer}")
    return protocol, attach(protocol, bench.clock, peer=peer, window=window)


def bind(bench: Bench, name: str, *, host: IAddress | None = None) -> tuple[Any, FakeDatagramTransport]:
    """Bind a datagram protocol of a built service; return it and its transport."""
    protocol = bench.protocol(name)
    return protocol, FakeDatagramTransport.bind(protocol, host)
