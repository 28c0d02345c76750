"""The contract between netsvc and a service plugin.

Most plugins need only `netsvc.service.Service`, which implements all of it. This is a complete one:

    from netsvc.service import Service
    from netsvc.stream import StreamProtocol

    class Shout(StreamProtocol):
        def dataReceived(self, data):
            self.transport.write(data.upper())

    service = Service("shout", "Send back capitals", streams={"tcp": Shout})

docs/howto/service.md goes on from there. Read on here for what netsvc expects of a service, and promises to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EADDRINUSE
from pathlib import Path
from typing import Any, cast

from twisted.application.service import IServiceMaker, ServiceMaker
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import AbstractDatagramProtocol
from twisted.logger import Logger
from twisted.plugin import IPlugin
from twisted.python import usage
from twisted.python.components import registerAdapter
from twisted.python.reflect import namedAny
from zope.interface import Attribute, Interface

from netsvc.base.errors import UserError
from netsvc.base.paths import make_directory
from netsvc.base.text import escape
from netsvc.base.values import Kind
from netsvc.metrics import Metrics

__all__ = ["Context", "INetworkService", "IServiceInstance", "Kind", "Options"]


class Options(usage.Options):
    """Base class of a service's options: a `twisted.python.usage.Options` with one addition.

    `limits` names the options that bound what a peer can cost; `netsvc check` lists them as limits.
    """

    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What netsvc gives a service: the arguments of a core are its parsed options and a context.

    - `reactor`: the clock of the service, and its way to the network; at least an `IReactorTime`. Never import the
      reactor instead: in a test this one is a clock that the test advances. `reactor.seconds()` is now,
      `reactor.callLater(5, function)` a timer, which `stop` of the core must cancel, and
      `await deferLater(reactor, 5)` a pause of a coroutine.
    - `log`: a logger in the service's own namespace: `log.info("{name!r} has won", name=name)`, where `!r` escapes
      what a peer has sent. Log nothing for every line or datagram, as a peer can send any number of them.
    - `state_directory`: where the service may keep files, if `--state` was given; otherwise None. Call
      `make_state_directory` in `start`, not before.
    - `own_ports`: the UDP ports of the process, and the paths of its UNIX datagram sockets. A datagram from one of
      them must not be answered, or two services could be made to answer each other for ever. Answering functions and
      `AnsweringProtocol` see to that; a `DatagramProtocol` of Twisted must do so itself.
    - `metrics`: the service's own metrics, shown with netsvc's:
      `self.lines = context.metrics.counter("lines", "Lines that were read")`, then `self.lines.inc()`. They continue
      when a reload rebuilds the service, since the second call for a name returns the same metric.

    A conversation that needs a port of its own opens it with `open_datagrams`.
    """

    reactor: Any
    log: Logger
    state_directory: Path | None = None
    own_ports: set[int | bytes] = field(default_factory=set, compare=False)
    metrics: Metrics = field(default_factory=Metrics, compare=False)

    def open_datagrams(
        self, protocol: AbstractDatagramProtocol, beside: Any, peer: tuple[str, int], ports: Iterable[int] = (0,)
    ) -> Any:
        """Open a UDP port for one conversation, such as a transfer of TFTP, and return it.

        `beside` is the transport that the conversation began at, where a datagram from `peer` has just arrived. The
        limits of that listener apply, and its counts include the new port; a drain waits until it is closed, and closes
        it at the deadline, which calls `protocol.stopProtocol`. It is bound to the address that the datagram was sent
        to, if that is known, and to the first free one of `ports`; 0 is any. Its `stopListening` closes it.

        Raises `twisted.internet.error.CannotListenError` if none is free.
        """
        protocol.noisy = False
        open_beside = getattr(beside, "open_beside", None)
        if open_beside is not None:
            return open_beside(protocol, peer, ports)
        # Twisted's own ports, and those in memory: there are no limits.
        host = beside.getHost().host
        error: CannotListenError | None = None
        for number in ports:
            try:
                return self.reactor.listenUDP(number, protocol, interface=host)
            except CannotListenError as failed:
                error = failed
        raise error or CannotListenError(host, 0, OSError(EADDRINUSE, "no port was given"))

    def make_state_directory(self) -> Path:
        """Return the state directory, after creating it if necessary. Call it in `start` or later.

        Only this user can read it. All worker processes (`--workers`) share it; `netsvc.base.files.write_atomic`
        replaces a file in one step. Raises `UserError` if `--state` was not given or the directory cannot be created.
        """
        directory = self.state_directory
        if directory is None:
            raise UserError(["no state directory; give one with --state DIR, or state in the configuration file"])
        try:
            make_directory(directory)
        except OSError as error:
            raise UserError(
                [f"{escape(str(directory), 1000)}: {error.strerror}; give --state a directory that can be written"]
            ) from error
        return directory


class IServiceInstance(Interface):
    """A service built from its options: a fresh core and the protocols over it.

    `check` is called first, `start` before the first connection, `drain` and `stop` at the end.

    Optional: `reconfigure(options) -> bool`. A reload calls it when the options have changed. True: the present core
    uses them from now on. Without it, or if it returns False, a fresh instance serves the new connections, and this
    one its present connections until they end. A chat needs it, because old and new members must meet. It may be
    called again with the old options, to undo a reload that failed.

    Optional: `notes(protocols)`, which returns lines that `netsvc check` shows; `protocols` are the names of those that
    have a listener.

    Optional: `confidential`, the names of stream protocols whose clients send secrets, such as passwords; it may depend
    on the options. Their listeners must be at addresses that use TLS or that only this machine can reach, or behind
    `proxy:`; any other is an error at the start. The protocol itself asks `netsvc.stream.is_confidential`.
    """

    def protocol(name: str) -> Any:
        """Build protocol `name` for one listener. Called once for each; all share the core.

        Returns an `IProtocolFactory` for a stream protocol, a `DatagramProtocol` for a datagram one.
        """

    def check() -> None:
        """Raise `netsvc.errors.UserError` if `start` would fail (for example, a missing directory). No side effects."""

    def start() -> None:
        """Acquire what the service needs (files, timers). Runs after privileges were dropped, before `ready`.

        Raises `netsvc.errors.UserError` if it fails.
        """

    def drain() -> Deferred[None] | None:
        """Begin to end all connections in order. No new connections will follow.

        The returned Deferred, if any, fires when the service is done. netsvc waits for it and for the connections
        until the drain deadline.
        """

    def stop() -> None:
        """Release what `start` acquired. All connections have ended."""


class INetworkService(IPlugin):
    """A named service that netsvc can run.

    Optional attributes:

    - `parallel`, if true: the service may run in several processes at once (`--workers`), each with its own core. A
      UDP peer stays with one process; connections go to any.
    - `limits`: the service's own defaults for the limits of its listeners, by name (docs/reference/limits.md). The
      user's settings override them.
    - `verifies_peers`, if true: its datagram protocols verify a peer's address before they send it more than it sent.
      All other services are kept from that (the limit `amplify`). An instance's own attribute overrides the service's.
    """

    name: str = Attribute("Lower-case letters, digits and hyphens. It is also the name of the command line option.")
    description: str = Attribute("One line for --help and --list.")
    options: Callable[[], usage.Options] = Attribute(
        "A `usage.Options` class. Its names serve `--SERVICE-OPTION` and the keys of the configuration file."
    )
    protocols: dict[str, Kind] = Attribute(
        "The protocols: name to kind, `stream` or `datagram`. The first is the default protocol."
    )

    def build(options: usage.Options, context: Context) -> IServiceInstance:
        """Build the service from parsed options. No side effects: no socket, no file, no reactor import."""


class _Standalone(ServiceMaker):
    """The twistd command `netsvc-<name>` of a service."""

    def __init__(self, service: INetworkService) -> None:
        super().__init__(
            f"netsvc-{service.name}", "netsvc.tap", f"{service.description} (alone)", f"netsvc-{service.name}"
        )
        self._service = service.name

    @property
    def options(self) -> Callable[[], usage.Options]:
        return cast("Callable[[], usage.Options]", namedAny(self.module).standalone_options(self._service))


# With this adapter, one declaration in twisted/plugins/ is found as a service and as a twistd command. It is registered
# here because Twisted's plugin cache looks for adapters before it imports any plugin file; all that it has imported by
# then is the module of the plugins' interfaces. Some programs, such as Twisted's tests, import modules twice.
with suppress(ValueError):
    registerAdapter(_Standalone, INetworkService, IServiceMaker)
