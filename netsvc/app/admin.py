"""Opens and changes the admin address of the running plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import UserError
from netsvc.base.steps import Steps
from netsvc.listen.handoff import OfferedPort, Sockets
from netsvc.listen.opening import ListenError
from netsvc.plan.plan import AdminUse
from netsvc.server.interface import Operations

if TYPE_CHECKING:
    from netsvc.admin.server import AdminServer
    from netsvc.upgrade.predecessor import Predecessor

_log = Logger(namespace="netsvc")


class Admin:
    """The admin address: opened with the other ports, and closed after all connections have ended.

    A plan may have none, and a reload may change it.
    """

    def __init__(self, reactor: Any, operations: Operations) -> None:
        self._reactor = reactor
        self._operations = operations
        self._use: AdminUse | None = None
        self._server: AdminServer | None = None

    def open(self, use: AdminUse | None, predecessor: Predecessor | None = None) -> None:
        """Open the address, with the sockets of the predecessor if it has them. Raises `UserError`.

        With a predecessor, nothing is accepted before `resume`.
        """
        if use is not None:
            sockets = None if predecessor is None else predecessor.inheritance.admin(use.address.text)
            self._server = self._open(use, sockets)
            if predecessor is not None:
                self._server.pause()
        self._use = use

    def _open(self, use: AdminUse, sockets: Sockets | None) -> AdminServer:
        # Twisted's web server is slow to import, and most plans have no admin address.
        from netsvc.admin.exposition import exposition
        from netsvc.admin.server import AdminServer

        # The first exposition imports more modules: do that now and not at the first request.
        exposition([])
        server = AdminServer(self._reactor, use, self._operations, exposition)
        results: list[Any] = []
        opening = server.open(sockets).addBoth(results.append)
        if sockets is not None:
            # localhost may have had two sockets where one is used now.
            sockets.close()
        if not results:
            opening.cancel()
            raise UserError([f"admin cannot listen on {use.address.text}: it did not open immediately"])
        if isinstance(results[0], Failure):
            results[0].trap(ListenError)
            raise UserError([str(results[0].value)])
        return server

    def announce(self) -> None:
        """Log the admin address, if there is one."""
        if self._server is not None:
            _log.info("admin listens on {place}", place=self._server.place())

    def change(self, use: AdminUse | None, steps: Steps) -> None:
        """Prepare a change of the admin address: open the new one before the old one is closed. Raises `UserError`."""
        old, new = self._server, None
        if use == self._use and (old is None or not old.is_outdated()):
            return
        if use is not None:
            same = self._use is not None and use.address.text == self._use.address.text
            new = self._open(use, old.copies() if old is not None and same else None)
            # The old address answers until the change is committed.
            new.pause()

        def commit() -> None:
            self._use, self._server = use, new
            if old is not None:
                old.leave(new)
            if new is not None:
                new.resume()
                self.announce()

        def undo() -> None:
            if new is not None:
                new.leave(self._server)

        steps.on_commit(commit)
        steps.on_undo(undo)

    def ports(self) -> list[OfferedPort]:
        """Return its open ports, for another process to take over."""
        return [] if self._server is None else self._server.offered()

    def pause(self) -> None:
        """Accept nothing until `resume` is called."""
        if self._server is not None:
            self._server.pause()

    def resume(self) -> None:
        """Accept again, first what waits in the kernel."""
        if self._server is not None:
            self._server.resume()

    def close(self) -> Deferred[Any]:
        """Close the address. Fires when the ports are closed."""
        server, self._server = self._server, None
        return succeed(None) if server is None else server.close()
