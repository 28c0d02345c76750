"""Builds a service over bare transports in memory, without limits, for tests of what it does to a transport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.logger import Logger

from netsvc.interfaces import Context, INetworkService
from netsvc.metrics import Metrics
from netsvc.options import parse_settings
from netsvc.testing.served import load
from netsvc.testing.wire import (
    PEER,
    WINDOW,
    FakeDatagramTransport,
    FakeTransport,
    MemoryReactor,
    attach,
    bind_datagrams,
)


class Bench:
    """A service that is built and not started."""

    def __init__(
        self, service: INetworkService | str, settings: Mapping[str, object], context: Context | None = None
    ) -> None:
        declared = load(service)
        if context is None:
            context = Context(MemoryReactor(), Logger(f"netsvc.{declared.name}"), metrics=Metrics(declared.name))
        self.context = context
        self.clock: MemoryReactor = context.reactor
        self.options = parse_settings(declared.options, settings)
        self.instance: Any = declared.build(self.options, context)
        self._factories: dict[str, IProtocolFactory] = {}

    @property
    def core(self) -> Any:
        return self.instance.core

    def protocol(self, name: str) -> Any:
        """Build a protocol for one more listener."""
        return self.instance.protocol(name)

    def start(self) -> None:
        self.instance.start()

    def drain(self) -> Any:
        done = self.instance.drain()
        self.clock.turn()
        return done

    def stop(self) -> None:
        self.instance.stop()

    def factory(self, name: str) -> IProtocolFactory:
        """Return the factory of the one listener."""
        if name not in self._factories:
            self._factories[name] = self.protocol(name)
            self._factories[name].doStart()
        return self._factories[name]


def build(
    service: INetworkService | str, settings: Mapping[str, object] | None = None, *, context: Context | None = None
) -> Bench:
    return Bench(service, settings or {}, context)


def connect(bench: Bench, name: str, *, peer: IAddress = PEER, window: int = WINDOW) -> tuple[Any, FakeTransport]:
    """Return a connected protocol and its transport."""
    protocol: Any = bench.factory(name).buildProtocol(peer)
    return protocol, attach(protocol, bench.clock, peer=peer, window=window)


def bind(bench: Bench, name: str, *, host: IAddress | None = None) -> tuple[Any, FakeDatagramTransport]:
    """Return a bound datagram protocol and its port."""
    protocol = bench.protocol(name)
    return protocol, bind_datagrams(protocol, host, bench.clock)
