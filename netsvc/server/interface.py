"""The interfaces of a server, of one or several processes, for the application, the admin address and upgrades."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from netsvc.listen.handoff import OfferedPort, Sockets
    from netsvc.log.opening import OpenLog
    from netsvc.plan.answer import Answer
    from netsvc.plan.plan import Plan
    from netsvc.plan.status import ConnectionQuery, ListenerStatus, ProcessStatus
    from netsvc.server.instances import Load


class Observable(Protocol):
    """Reads the status of a running server and ends its connections. No Deferred of these methods fails."""

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """Return the status of every process. No turn of the event loop takes more than a few milliseconds.

        For a process that does not answer in time, the last known status is returned.
        """

    def departed(self) -> list[ListenerStatus]:
        """Return the counts of ended processes and closed listeners, with `open` 0.

        The sum of these and all current counts never decreases.
        """

    def departed_metrics(self) -> list[dict[str, Any]]:
        """Return the merged `ProcessStatus.metrics` of ended processes."""

    def not_ready(self) -> list[str]:
        """Return the reasons why the server is not ready, a line each; an empty list if it is."""

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Close a connection in order, or drop a session, by `ConnectionStatus.id`. Fires with whether it existed."""

    def drain(self, arguments: Sequence[str] = ()) -> Deferred[Answer]:
        """Stop accepting, let connections end, and stop. Fires with the report when all have ended."""


class Operations(Observable, Protocol):
    """The operations of the admin address and the control socket. No Deferred of these methods fails."""

    def reread(self, arguments: Sequence[str] = ()) -> Deferred[Answer]:
        """Reload the configuration. Fires with a summary of the changes, or with the reason why nothing changed."""

    def upgrade(self, arguments: Sequence[str] = ()) -> Deferred[Answer]:
        """Replace this process by the installed program. Fires when that serves, or with the reason why it does not."""


class Replaceable(Protocol):
    """A server whose ports another process can take over, and which can take over the ports of another process.

    A takeover has one step for each serving process of the old server. See `netsvc.upgrade.upgrader`.
    """

    def ports(self) -> list[OfferedPort]:
        """Return the open ports. Raises `UserError` if one cannot be handed over."""

    def processes(self) -> int:
        """Return the number of serving processes."""

    def prepare(self, successors: int) -> float:
        """Prepare for a takeover by this many processes; return the seconds until that takes effect."""

    def pause(self, step: int, successors: int, ports: Sequence[OfferedPort]) -> None:
        """Stop process `step`, counted from 0, from accepting at these ports.

        `successors` is the number of processes that take over: a process without a counterpart accepts what waits in
        its sockets before it closes them.
        """

    def resume(self, ports: Sequence[OfferedPort]) -> None:
        """Serve again after a failed takeover."""

    def serve(self, step: int, steps: int) -> None:
        """Start accepting: process `step` of the `steps` old processes has stopped."""


class IServer(Observable, Replaceable, Protocol):
    """Runs a plan: `netsvc.server.server.Server` in one process, `netsvc.workers.workers.Workers` in several."""

    plan: Plan
    #: Called when every port is open and every process serves.
    became_ready: Callable[[], None]

    @property
    def state(self) -> str:
        """The state, a value of `ProcessStatus.state`."""

    def privilegedStartService(self) -> None:
        """Build the services and bind every port. Raises `StartError` with all errors; then nothing is open."""

    def startService(self) -> object:
        """Start the services, and log the address of each listener. Raises `StartError`."""

    def stopService(self) -> Deferred[None]:
        """Close the ports, drain, and stop the services. Fires when all have stopped; never fails."""

    def force(self) -> None:
        """Cut the drain short, if one is under way. May be called by a signal handler."""

    def reload(self, plan: Plan, load: Load | None = None) -> Deferred[str]:
        """Run another plan, completely or not at all. Fires with a summary; on `UserError` nothing has changed."""

    def occupied(self, action: str) -> str:
        """Return why it cannot be `reloaded` or `upgraded` (`action`) now; an empty string if it can."""

    def places(self) -> list[tuple[str, str, str]]:
        """Return service, protocol and address of each open port."""

    def activity(self) -> str:
        """Return a short summary of the current activity, for `systemctl status`."""

    def log_connections(self, log: OpenLog) -> None:
        """Write the access records of connections to this log."""

    def adopt(
        self, sockets: Sequence[Sockets | None], passed: Callable[[str], Sockets | None], ready: Callable[[], None]
    ) -> None:
        """Use the ports of a process that still serves.

        `sockets` are for the listeners of the plan; `passed` returns the sockets of a twistd plugin by its label.
        `ready` is called instead of `became_ready`; nothing is accepted before `serve`.
        """
