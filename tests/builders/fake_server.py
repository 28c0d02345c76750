"""A server in memory, for what the application does with one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from netsvc.base.errors import UserError
from netsvc.listen.handoff import OfferedPort
from netsvc.log.opening import OpenLog
from netsvc.plan.answer import Answer
from netsvc.plan.plan import Plan
from netsvc.plan.status import ConnectionQuery, ListenerStatus, ProcessStatus

__all__ = ["FakeServer"]


class FakeServer:
    """Notes what it is called with in `calls`, and does what a test says."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls: list[Any] = []
        self.became_ready: Callable[[], None] = lambda: None
        self.inherits: Callable[[], None] | None = None
        self.state = "ready"
        self.open: list[tuple[str, str, str]] = []
        self.handed: list[OfferedPort] = []
        self.occupation = ""
        #: What a start fails with; the errors of a reload.
        self.fault: BaseException | None = None
        self.errors: list[str] = []
        self.summary = "done"
        self.stopping: Deferred[None] = succeed(None)

    def privilegedStartService(self) -> None:
        self.calls.append("open")
        if self.fault is not None:
            raise self.fault

    def startService(self) -> None:
        self.calls.append("start")

    def stopService(self) -> Deferred[None]:
        self.calls.append("stop")
        self.state, self.open = "draining", []
        return self.stopping.addCallback(self._stopped)

    def _stopped(self, _result: None) -> None:
        self.state = "stopped"

    def force(self) -> None:
        self.calls.append("force")

    def reload(self, plan: Plan, load: Any = None) -> Deferred[str]:
        self.calls.append(("reload", plan))
        return fail(UserError(self.errors)) if self.errors else succeed(self.summary)

    def occupied(self, action: str) -> str:
        return self.occupation

    def places(self) -> list[tuple[str, str, str]]:
        return self.open

    def activity(self) -> str:
        return "busy"

    def log_connections(self, log: OpenLog) -> None:
        self.calls.append("log")

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        return succeed([])

    def departed(self) -> list[ListenerStatus]:
        return []

    def departed_metrics(self) -> list[dict[str, Any]]:
        return []

    def not_ready(self) -> list[str]:
        return []

    def close_connection(self, connection: str) -> Deferred[bool]:
        return succeed(False)

    def drain(self, arguments: Sequence[str] = ()) -> Deferred[Answer]:
        return succeed(Answer(0, []))

    def adopt(self, sockets: Any, passed: Any, ready: Callable[[], None]) -> None:
        self.inherits = ready

    def ports(self) -> list[OfferedPort]:
        return self.handed

    def processes(self) -> int:
        return 1

    def prepare(self, successors: int) -> float:
        return 0.0

    def pause(self, step: int, successors: int, ports: Sequence[OfferedPort]) -> None:
        self.calls.append("pause")

    def resume(self, ports: Sequence[OfferedPort]) -> None:
        self.calls.append("resume")

    def serve(self, step: int, steps: int) -> None:
        self.calls.append(("serve", step, steps))
