"""Declares a service: `Service` is the declaration, `ServicePlugin` points to one by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol, Factory
from twisted.python import usage
from zope.interface import implementer

from netsvc.interfaces import Context, INetworkService, IServiceInstance, Kind, Options
from netsvc.limits import Limits, parse_limits

__all__ = ["PlainCore", "Service", "ServicePlugin", "datagram_protocol", "stream_factory"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class PlainCore:
    """The core of a service that declares none: just its options and context."""

    options: usage.Options
    context: Context


def stream_factory(source: Any, core: object) -> IProtocolFactory:
    """Make a factory for one listener from what an author declares as a stream protocol.

    `source` is a Protocol class (one instance a connection, which finds the core as `self.factory.core`),
    a Factory class (called with no arguments, given a `core` attribute), a factory object, or any other
    callable, called with the core and returning one of these. Raises `TypeError` for anything else.
    """
    if IProtocolFactory.providedBy(source):
        return source
    if isinstance(source, type) and IProtocolFactory.implementedBy(source):
        factory: Any = source
        built: IProtocolFactory = factory()
        built.core = core  # type: ignore[attr-defined]
        return built
    if isinstance(source, type) and IProtocol.implementedBy(source):
        plain: Any = Factory.forProtocol(source)
        plain.core = core
        return cast(IProtocolFactory, plain)
    if callable(source) and not isinstance(source, type):
        return stream_factory(source(core), core)
    raise TypeError(f"{source!r} is neither a Protocol class nor a Factory")


def datagram_protocol(source: Any, core: object) -> AbstractDatagramProtocol:
    """Make a datagram protocol for one listener from what an author declares as one.

    `source` is a DatagramProtocol class (called with no arguments, given a `core` attribute), an object of
    one, or any other callable, called with the core and returning one of these. Raises `TypeError` for
    anything else.
    """
    if isinstance(source, AbstractDatagramProtocol):
        return source
    if isinstance(source, type) and issubclass(source, AbstractDatagramProtocol):
        protocol = source()
        protocol.core = core  # type: ignore[attr-defined]
        return protocol
    if callable(source) and not isinstance(source, type):
        return datagram_protocol(source(core), core)
    raise TypeError(f"{source!r} is not a DatagramProtocol class")


@implementer(INetworkService)
class Service:
    """A complete declaration of a service.

    - `core(options, context)` builds the state that all connections share; without it the core is a
      `PlainCore`. A core may have `check()`, `start()`, `drain()` and `stop()`; each does what
      `IServiceInstance` says of the method of that name; and so does `reconfigure(options)`.
    - `streams` and `datagrams` map protocol names to what `stream_factory` and `datagram_protocol` accept.
      The first stream is the default protocol, or the first datagram where there is no stream.
    - `parallel` says that several processes may serve it at once (`--workers`), each with a core of its own.
    - `limits` are its own defaults for the limits of its listeners: `{"idle": 86400}`, None for no limit.
    - `verifies_peers` says that its datagram protocols send a peer no more than they got from it until they know that
      it is where it says it is; so the host need not keep them from it. A core may have an attribute of that name,
      which goes before this one.

    Raises `ValueError` for a name that could not be a command line option, one that is given to a stream and
    a datagram protocol, no protocol at all, or a limit that there is not.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        options: type[usage.Options] = Options,
        core: Callable[[Any, Context], object] = PlainCore,
        streams: Mapping[str, Any] | None = None,
        datagrams: Mapping[str, Any] | None = None,
        parallel: bool = False,
        limits: Limits | None = None,
        verifies_peers: bool = False,
    ) -> None:
        self.name = name
        self.description = description
        self.options = options
        self.core = core
        self.parallel = parallel
        self.verifies_peers = verifies_peers
        self.limits: Limits = parse_limits(
            {name: "none" if value is None else value for name, value in (limits or {}).items()}
        )
        self.sources: dict[str, Any] = {**(streams or {}), **(datagrams or {})}
        self.protocols: dict[str, Kind] = {
            **dict.fromkeys(streams or {}, "stream"),
            **dict.fromkeys(datagrams or {}, "datagram"),
        }
        for word in (name, *self.protocols):
            if not _NAME.fullmatch(word):
                raise ValueError(f"{word!r} is no name for a service or protocol: use a-z, 0-9 and single hyphens")
        if len(self.protocols) < len(streams or {}) + len(datagrams or {}):
            raise ValueError(f"service {name} gives a stream and a datagram protocol the same name")
        if not self.protocols:
            raise ValueError(f"service {name} declares no protocol: give it streams= or datagrams=")

    def build(self, options: usage.Options, context: Context) -> IServiceInstance:
        """Build a fresh core from parsed options, and the protocols over it."""
        return _Instance(self, self.core(options, context))


@implementer(IServiceInstance)
class _Instance:
    """A core, with the methods that it does not have."""

    def __init__(self, service: Service, core: object) -> None:
        self._service = service
        self.core = core

    def protocol(self, name: str) -> Any:
        make = stream_factory if self._service.protocols[name] == "stream" else datagram_protocol
        return make(self._service.sources[name], self.core)

    @property
    def verifies_peers(self) -> bool:
        return bool(getattr(self.core, "verifies_peers", self._service.verifies_peers))

    @property
    def reconfigure(self) -> Callable[[usage.Options], bool] | None:
        return getattr(self.core, "reconfigure", None)

    def _call(self, method: str) -> Any:
        return getattr(self.core, method, lambda: None)()

    def check(self) -> None:
        self._call("check")

    def start(self) -> None:
        self._call("start")

    def drain(self) -> Deferred[None] | None:
        return cast("Deferred[None] | None", self._call("drain"))

    def stop(self) -> None:
        self._call("stop")


@implementer(INetworkService)
class ServicePlugin:
    """Points to a declaration by name, for a file in `twisted/plugins/`.

    `target` is `package.module:attribute`, as in an entry point. Its module is imported when the service is
    used and not before, so that `twistd --help` imports no service.

    Such a plugin is a twistd command of its own as well (`twistd netsvc-<name>`).
    """

    def __init__(self, name: str, target: str, description: str) -> None:
        self.name = name
        self.target = target
        self.description = description

    def load(self) -> INetworkService:
        """Import the declaration. Raises whatever its module raises."""
        module, _, attribute = self.target.partition(":")
        return cast(INetworkService, attrgetter(attribute)(import_module(module)))

    @property
    def options(self) -> Callable[[], usage.Options]:
        """The options class of the declaration."""
        return self.load().options

    @property
    def protocols(self) -> dict[str, Kind]:
        """The protocols of the declaration."""
        return self.load().protocols

    @property
    def parallel(self) -> bool:
        """Whether several processes may serve the declaration."""
        return bool(getattr(self.load(), "parallel", False))

    @property
    def limits(self) -> Limits:
        """The limits of the declaration."""
        return cast("Limits", getattr(self.load(), "limits", {}))

    def build(self, options: usage.Options, context: Context) -> IServiceInstance:
        """Build the declaration."""
        return self.load().build(options, context)
