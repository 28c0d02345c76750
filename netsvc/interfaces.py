"""The contract between netsvc and a service plugin. A plugin author reads this file first.

Most services need only `netsvc.service.Service`, which implements all of it; docs/plugins.md shows how.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from twisted.application.service import IServiceMaker, ServiceMaker
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.plugin import IPlugin
from twisted.python import usage
from twisted.python.components import registerAdapter
from twisted.python.reflect import namedAny
from zope.interface import Attribute, Interface

from netsvc.errors import MistakeError
from netsvc.metrics import Metrics
from netsvc.text import escape

__all__ = ["Context", "INetworkService", "IServiceInstance", "Kind", "Options"]

#: How a protocol talks: over a connection, or a datagram at a time.
Kind = Literal["stream", "datagram"]


class Options(usage.Options):
    """The base of a service's options: an ordinary `twisted.python.usage.Options` with one addition.

    `limits` names the options that bound what a peer can cost; `netsvc check` prints them as limits.
    """

    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What the host lends a service.

    `reactor` provides `IReactorTime` at least (a `Clock` in tests), `log` is a logger in the service's
    own namespace, and `state_directory`, if there is one, is where the service may keep files; it need not be there
    before `make_state_directory` has been called.
    `own_ports` are the UDP ports of the process, and the paths of its UNIX datagram sockets, of all its
    services: a datagram that claims to come from one is not to be answered, or two services could be made to
    talk for ever. `metrics` are the service's own, and shown with netsvc's; they go on when a reload builds it anew.
    """

    reactor: Any
    log: Logger
    state_directory: Path | None = None
    own_ports: set[int | bytes] = field(default_factory=set, compare=False)
    metrics: Metrics = field(default_factory=Metrics, compare=False)

    def make_state_directory(self) -> Path:
        """Return the state directory, and make it if it is missing. To be called in `start`, or later.

        Nobody else may look into it. In several processes (`--workers`) all have the same. `netsvc.whole.write_whole`
        writes a file there that is never half of what it should be. Raises `MistakeError` if there is none, as nobody
        has said `--state`, or if it cannot be made.
        """
        directory = self.state_directory
        if directory is None:
            raise MistakeError(["there is no place to keep files; name a directory: --state DIR, or state in the file"])
        try:
            directory.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MistakeError(
                [f"{escape(str(directory), 1000)}: {error.strerror}; make --state a directory that it may write to"]
            ) from error
        return directory


class IServiceInstance(Interface):
    """A service built for one plan: a fresh core and the protocols over it.

    It may have a method `reconfigure(options) -> bool` as well. A reload calls it with options that have changed:
    True says that they hold for all that comes from now on, on the core that is there. Without it, or if it returns
    False, a fresh instance serves the new connections, and this one those that it has, until the last has ended; so
    a chat, whose members must not be parted, needs it. It may be called with the old options again, to undo that.
    """

    def protocol(name: str) -> Any:
        """Build protocol `name` for one more listener.

        Returns an `IProtocolFactory` for a stream protocol, a `DatagramProtocol` for a datagram one. Called
        once a listener; all that are built share the core.
        """

    def check() -> None:
        """Raise `netsvc.errors.MistakeError` if `start` would fail (a missing directory, say). No side effects."""

    def start() -> None:
        """Acquire what the service needs (files, timers). Runs after privileges are dropped, before `ready`.

        Raises `netsvc.errors.MistakeError` if it cannot.
        """

    def drain() -> Deferred[None] | None:
        """Begin to end every conversation politely: no new connection will come.

        The returned Deferred, if any, fires when the service is done. The host waits for it and for the
        connections, but only until its drain deadline.
        """

    def stop() -> None:
        """Release what `start` acquired. All connections are gone by now."""


class INetworkService(IPlugin):
    """A named service that netsvc can run.

    Some attributes may be there or not:

    - `parallel`, true: it may run in several processes at once (`--workers`), each with a core of its own. One UDP
      peer stays with one of them; connections go to any.
    - `limits`: defaults of its own for the limits of its listeners, by the names of `netsvc.limits.LIMITS`, where
      those of every service do not fit. What a user sets goes before them.
    - `verifies_peers`, true: its datagram protocols make sure that a peer is where it says it is before they send it
      more than it has sent. All others are kept from it (`amplify`). An instance may have it in its service's place.
    """

    name: str = Attribute("Lower-case letters, digits and hyphens; also the name of its command line option.")
    description: str = Attribute("One line for --help and --list.")
    options: Callable[[], usage.Options] = Attribute(
        "A `usage.Options` class. Its names serve `--<service>-<option>` and the keys of the configuration file."
    )
    protocols: dict[str, Kind] = Attribute(
        "The protocols it speaks: name to kind, in order of importance; the first is the default one."
    )

    def build(options: usage.Options, context: Context) -> IServiceInstance:
        """Build the service from parsed options. No side effects: no socket, no file, no reactor import."""


class _Standalone(ServiceMaker):
    """Makes `twistd netsvc-<name>` of a service."""

    def __init__(self, service: INetworkService) -> None:
        super().__init__(
            f"netsvc-{service.name}", "netsvc.tap", f"{service.description} (alone)", f"netsvc-{service.name}"
        )
        self._service = service.name

    @property
    def options(self) -> Callable[[], usage.Options]:
        return cast("Callable[[], usage.Options]", namedAny(self.module).standalone_options(self._service))


# Twisted's plugin cache asks for an adapter before it imports any plugin file; all that it imports is the module
# of the interfaces that a plugin provides. So this stands here: one declaration in twisted/plugins/ is thereby
# found both as a service and as a twistd command, in whatever order the files are read.
# It may stand already: some programs, Twisted's own tests among them, import modules twice.
with suppress(ValueError):
    registerAdapter(_Standalone, INetworkService, IServiceMaker)
