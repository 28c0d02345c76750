"""A root service with the admin address of its plan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.errors import MistakeError
from netsvc.host.fatal import start_error
from netsvc.host.operations import Operations
from netsvc.host.room import Room
from netsvc.listeners.handed import HandedPort
from netsvc.listeners.opening import ListenError
from netsvc.plan import AdminUse, Plan

if TYPE_CHECKING:
    from netsvc.admin.server import AdminServer

__all__ = ["Administered"]

_log = Logger(namespace="netsvc")


class Administered(Service):
    """Opens the admin address with the other ports, and answers there until all conversations have ended.

    To be mixed into one that is an `Operations` as well, and has `plan`, `reload` and what
    `netsvc.upgrade.passage.Serving` has.
    """

    plan: Plan
    #: A `netsvc.upgrade.predecessor.Predecessor`, if there is one.
    predecessor: Any = None
    _reactor: Any
    _admin: AdminServer | None = None

    def privilegedStartService(self) -> None:
        """Open it first: nothing else is open yet if it cannot be."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        if self.plan.admin is not None:
            found = None
            if self.predecessor is not None:
                found = self.predecessor.inheritance.admin(self.plan.admin.address.text)
            try:
                self._admin = self._open_admin(self.plan.admin, found)
            except ListenError as error:
                raise start_error([str(error)]) from None
            if self.predecessor is not None:
                self._admin.pause()
        try:
            super().privilegedStartService()
        except BaseException:
            if self._admin is not None:
                self._admin.close()
            raise

    def _open_admin(self, use: AdminUse, inherited: Room | None = None) -> AdminServer:
        """Open a server. Raises `ListenError`."""
        # Not before they are wanted: Twisted's web server takes its time to import.
        from netsvc.admin.server import AdminServer
        from netsvc.exposition import exposition

        # What the first one has to import, it imports now.
        exposition([])
        server = AdminServer(self._reactor, use, cast(Operations, self), exposition)
        results: list[Any] = []
        opening = server.open(inherited).addBoth(results.append)
        if inherited is not None:
            # Of localhost there may be two where one is wanted now.
            inherited.close()
        if not results:
            opening.cancel()
            raise ListenError(f"admin cannot listen on {use.address.text}: it takes its time to open")
        if isinstance(results[0], Failure):
            raise cast(BaseException, results[0].value)
        return server

    def startService(self) -> None:
        """Say where it is."""
        super().startService()
        if self._admin is not None and self.predecessor is None:
            self._announce_admin(self._admin)

    @staticmethod
    def _announce_admin(server: AdminServer) -> None:
        _log.info("admin listens on {place}", place=server.place())

    def reload(self, plan: Plan, *others: Any) -> Deferred[str]:
        """Run another plan, with its admin address: the new one is open before the old one is closed."""
        root: Any = super()
        before = self._admin
        if plan.admin == self.plan.admin and (before is None or not before.is_outdated()):
            reloading: Deferred[str] = root.reload(plan, *others)
            return reloading
        server: AdminServer | None = None
        if plan.admin is not None:
            same = self.plan.admin is not None and plan.admin.address.text == self.plan.admin.address.text
            try:
                server = self._open_admin(plan.admin, before.copies() if before is not None and same else None)
            except ListenError as error:
                return fail(MistakeError([str(error)]))
            # The old one answers until it is known that the new one shall.
            server.pause()
        reloading = root.reload(plan, *others)
        return reloading.addCallbacks(partial(self._admin_changed, server), partial(self._admin_kept, server))

    def _admin_changed(self, server: AdminServer | None, summary: str) -> str:
        before, self._admin = self._admin, server
        if before is not None:
            before.leave(server)
        if server is not None:
            server.resume()
            self._announce_admin(server)
        return summary

    def _admin_kept(self, server: AdminServer | None, failure: Failure) -> Failure:
        if server is not None:
            server.leave(self._admin)
        return failure

    def ports(self) -> list[HandedPort]:
        """List the open ports; see `netsvc.upgrade.passage.Serving`."""
        ports: list[HandedPort] = cast(Any, super()).ports()
        return ports if self._admin is None else [*ports, self._admin.handed()]

    def give_way(self, step: int, successors: int, ports: Sequence[HandedPort]) -> None:
        """See `netsvc.upgrade.passage.Serving`."""
        if self._admin is not None:
            self._admin.pause()
        cast(Any, super()).give_way(step, successors, ports)

    def go_on(self, ports: Sequence[HandedPort]) -> None:
        """See `netsvc.upgrade.passage.Serving`."""
        if self._admin is not None:
            self._admin.resume()
        cast(Any, super()).go_on(ports)

    def serve_step(self, step: int, steps: int) -> None:
        """Serve in the place of another process; see `netsvc.host.host.Host`."""
        cast(Any, super()).serve_step(step, steps)
        if self._admin is not None and step == steps - 1:
            self._admin.resume()
            self._announce_admin(self._admin)

    def stopService(self) -> Any:
        """Stop, and answer there until then: `/ready` tells of the drain."""
        stopping = maybeDeferred(super().stopService)
        return stopping.addBoth(self._close_admin)

    def _close_admin(self, result: Any) -> Any:
        if self._admin is None:
            return result
        server, self._admin = self._admin, None
        return server.close().addCallback(lambda _: result)
