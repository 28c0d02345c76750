"""Declares a service: `Service` is the declaration, `ServicePlugin` points to one by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, iscoroutinefunction, signature
from operator import attrgetter
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol, Factory
from twisted.logger import Logger
from twisted.python import usage
from zope.interface import implementer

from netsvc.base.limit_log import LimitLog
from netsvc.datagram import AnsweringFunction, AnsweringProtocol
from netsvc.interfaces import Context, INetworkService, IServiceInstance, Kind, Options
from netsvc.plan.limits import Limits, parse_limits

__all__ = ["PlainCore", "Service", "ServicePlugin", "answers", "datagram_protocol", "declared_limits", "stream_factory"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(eq=False)
class PlainCore:
    """The core of a service that declares none, and a base for those that do: its options and context."""

    options: usage.Options
    context: Context

    def __getattr__(self, name: str) -> Any:
        cure = ""
        if type(self) is PlainCore:
            # A class written for another core is served by itself.
            cure = "; declare a Service with the core that the protocol needs, core=…, and serve that"
        raise AttributeError(f"{type(self).__name__} has no attribute {name}{cure}")


def declared_limits(limits: Mapping[str, object] | None) -> Limits:
    """Return the limits that a service declares, parsed; None as a value is no limit. Raises `UserError`."""
    values = {name: "none" if value is None else value for name, value in (limits or {}).items()}
    return parse_limits(values, "limits {}".format)


def stream_factory(source: Any, core: object, clock: Any = None, log: Logger | None = None) -> IProtocolFactory:
    """Return a factory for one listener from what a plugin declares as a stream protocol.

    `source` is a Protocol class (an instance for each connection; the core is `self.factory.core`), a coroutine
    function (called for each connection; see `netsvc.coroutine`), a Factory class (called without arguments, and given
    a `core` attribute), a factory, or any other callable, which is called with the core and returns one of these.
    Raises `TypeError` for anything else. `clock` is for the time-outs of coroutines. `log` gets a line for a message
    that is too long for a coroutine or a `netsvc.stream.LineProtocol`.
    """
    limit_log = LimitLog(log, clock) if log is not None and clock is not None else None
    if IProtocolFactory.providedBy(source):
        return source
    if iscoroutinefunction(source):
        from netsvc.coroutine import StreamFactory

        return StreamFactory(source, core, clock, limit_log)
    if isinstance(source, type) and IProtocolFactory.implementedBy(source):
        factory: Any = source
        built: IProtocolFactory = factory()
        built.core = core  # type: ignore[attr-defined]
        return built
    if isinstance(source, type) and IProtocol.implementedBy(source):
        plain: Any = Factory.forProtocol(source)
        plain.core = core
        plain.limit_log = limit_log
        return cast(IProtocolFactory, plain)
    if callable(source) and not isinstance(source, type):
        return stream_factory(source(core), core, clock, log)
    raise TypeError(
        f"{_shown(source)} is neither a Protocol class, a Factory nor a coroutine function; a function of one argument "
        "that is not async is called with the core, and must return one of these"
    )


def datagram_protocol(source: Any, core: object, context: Context | None = None) -> AbstractDatagramProtocol:
    """Return a datagram protocol for one listener from what a plugin declares as one.

    `source` is a DatagramProtocol class (called without arguments, and given a `core` attribute), an instance of one, a
    function or coroutine function of two arguments, data and peer, that returns the answer or None, or any other
    callable, which is called with the core and returns one of these. Raises `TypeError` for anything else. `context` is
    for an `AnsweringProtocol`.
    """
    if isinstance(source, AbstractDatagramProtocol):
        if isinstance(source, AnsweringProtocol):
            source.context = context
        return source
    if isinstance(source, type) and issubclass(source, AbstractDatagramProtocol):
        protocol = source()
        protocol.core = core  # type: ignore[attr-defined]
        return datagram_protocol(protocol, core, context)
    if callable(source) and not isinstance(source, type):
        built = AnsweringFunction(source) if answers(source) else source(core)
        return datagram_protocol(built, core, context)
    raise TypeError(
        f"{_shown(source)} is neither a DatagramProtocol class nor a function of data and peer; a function of one "
        "argument is called with the core, and must return one of these"
    )


def _shown(source: Any) -> str:
    """Name a class or function; of another object, its class: its repr may be long."""
    return getattr(source, "__qualname__", None) or f"an object of the class {type(source).__qualname__}"


def answers(function: Callable[..., Any]) -> bool:
    """Return whether a function requires two arguments, a datagram and its peer: it is not a builder of protocols."""
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is Parameter.empty for each in parameters) == 2


@implementer(INetworkService)
class Service:
    """The declaration of a service.

    - `name`: its name on the command line and in the file: `a-z`, `0-9` and single hyphens.
    - `description`: a line for `--help`.
    - `options`: a subclass of `netsvc.interfaces.Options`.
    - `core`: called as `core(options, context)`, returns the state that all connections share. It may have any of the
      methods `check()`, `start()`, `drain()`, `stop()` and `reconfigure(options)`.
    - `streams`: stream protocols by name; see `stream_factory`. The first is the default protocol.
    - `datagrams`: datagram protocols by name; see `datagram_protocol`. The first is the default if there is no stream.
    - `parallel`: several processes may serve it at once (`--workers`), each with its own core.
    - `limits`: its own defaults for the limits of its listeners: `{"idle": 86400}`, None for no limit.
    - `verifies_peers`: its datagram protocols verify a peer's address before they send it more than it sent, so netsvc
      does not limit that. An attribute of that name of the core overrides this one.

    Raises `ValueError` for a name that cannot be a command line option, a stream and a datagram protocol of the same
    name, no protocol at all, or an unknown limit.
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
        self.limits: Limits = declared_limits(limits)
        self.sources: dict[str, Any] = {**(streams or {}), **(datagrams or {})}
        self.protocols: dict[str, Kind] = {
            **dict.fromkeys(streams or {}, "stream"),
            **dict.fromkeys(datagrams or {}, "datagram"),
        }
        for each in (name, *self.protocols):
            if not _NAME.fullmatch(each):
                raise ValueError(f"{each!r} is no name for a service or protocol: use a-z, 0-9 and single hyphens")
        if len(self.protocols) < len(streams or {}) + len(datagrams or {}):
            raise ValueError(f"service {name} gives a stream and a datagram protocol the same name")
        if not self.protocols:
            raise ValueError(f"service {name} declares no protocol: give it streams= or datagrams=")

    def build(self, options: usage.Options, context: Context) -> IServiceInstance:
        """Build a fresh core from parsed options."""
        return _Instance(self, self.core(options, context), context)


@implementer(IServiceInstance)
class _Instance:
    """An instance over a core. Methods that the core lacks do nothing."""

    def __init__(self, service: Service, core: object, context: Context) -> None:
        self._service = service
        self._context = context
        self.core = core

    def protocol(self, name: str) -> Any:
        source = self._service.sources[name]
        if self._service.protocols[name] == "stream":
            return stream_factory(source, self.core, self._context.reactor, self._context.log)
        return datagram_protocol(source, self.core, self._context)

    @property
    def verifies_peers(self) -> bool:
        return bool(getattr(self.core, "verifies_peers", self._service.verifies_peers))

    @property
    def confidential(self) -> Collection[str]:
        return getattr(self.core, "confidential", ())

    @property
    def notes(self) -> Callable[[Collection[str]], Collection[str]] | None:
        return getattr(self.core, "notes", None)

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
    """Refers to a declaration by name, for a file in `twisted/plugins/`.

    `target` is `package.module:attribute`, as in an entry point. The module is imported when the service is used, not
    before: `twistd --help` imports no service. The plugin is also a twistd command (`twistd netsvc-NAME`).
    """

    options: Callable[[], usage.Options]
    protocols: dict[str, Kind]

    def __init__(self, name: str, target: str, description: str) -> None:
        self.name = name
        self.target = target
        self.description = description

    def load(self) -> INetworkService:
        """Import and return the declaration. Raises what its module raises."""
        module, _, attribute = self.target.partition(":")
        return cast(INetworkService, attrgetter(attribute)(import_module(module)))

    def __getattr__(self, attribute: str) -> Any:
        # Everything else is the declaration's. Names with __ are probed by Python, and must not load it.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(self.load(), attribute)

    def build(self, options: usage.Options, context: Context) -> IServiceInstance:
        """Build the declaration."""
        return self.load().build(options, context)
