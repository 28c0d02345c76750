"""Opens the admin address, and serves it."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from netsvc.accepting import accept_by
from netsvc.address import Address
from netsvc.admin.api import Exposition, Service
from netsvc.admin.permission import Permission
from netsvc.admin.reach import (
    check_admin,
    is_exposed,
    may_be_read_by_others,
    places,
    read_clients,
    read_token,
)
from netsvc.admin.samples import Samples
from netsvc.admin.watching import Watching
from netsvc.admin.wire import AdminFactory
from netsvc.host.operations import Operations
from netsvc.host.room import Room
from netsvc.hush import hushed
from netsvc.listeners.certificates import CertificateError, read_file, shown
from netsvc.listeners.handed import HandedPort
from netsvc.listeners.inherited import Inherited
from netsvc.listeners.opening import ListenError, Listening, listen
from netsvc.listeners.tls import Certificates
from netsvc.plan import AdminUse

__all__ = ["AdminServer"]

_log = Logger(namespace="netsvc.admin")


class AdminServer:
    """The page, the metrics and the API of what `operations` shows, at one address.

    To be opened before privileges are dropped: the files that it needs are read then, but those of certificates, which
    are read anew when they change. `exposition` makes the metrics.
    """

    def __init__(self, reactor: Any, use: AdminUse, operations: Operations, exposition: Exposition) -> None:
        self._reactor = reactor
        self._use = use
        self._operations = operations
        self._exposition = exposition
        self._factory: AdminFactory | None = None
        self._watching: Watching | None = None
        self._service: Service | None = None
        self._contents: list[bytes] = []
        #: The ports that are open, in the order in which an `Inherited` is to have their sockets.
        self.listening: list[Listening] = []

    def open(self, inherited: Inherited | None = None) -> Deferred[None]:
        """Open the ports, and begin to answer. Fails with `ListenError`, and nothing is open then.

        With `inherited`, nothing is bound: the sockets are those.
        """
        return self._open(inherited)

    @inlineCallbacks
    def _open(self, inherited: Inherited | None) -> Generator[Deferred[Any], Any, None]:
        use = self._use
        if mistakes := check_admin(use):
            raise ListenError(mistakes[0])
        with suppress(ValueError):
            self._contents = self._files()
        samples = Samples(self._reactor, self._operations)
        self._watching = Watching(self._reactor, samples, self._operations)
        self._service = Service(self._reactor, self._operations, self._exposition, self._permission(), self._watching)
        self._factory = AdminFactory(self._reactor, self._service.serve)
        port = 0
        try:
            factory = self._enveloped(self._factory)
            for number, address in enumerate(places(use.address)):
                wanted = replace(address, tls=None, port=port or address.port)
                try:
                    opened = yield hushed(listen, self._reactor, wanted, factory, inherited)
                except ListenError as error:
                    if number and _may_be_left_out(error, use.address):
                        continue
                    raise
                # So that it can be seen what has used up all descriptors.
                accept_by(opened.port, spare=True)
                self.listening.append(opened)
                port = getattr(opened.port.getHost(), "port", 0)
        except (ListenError, CertificateError) as error:
            for opened in self.listening:
                opened.abandon()
            self.listening.clear()
            raise ListenError(f"{use.place}admin cannot listen on {use.address.text}: {error}") from None
        self._watching.start()

    def _files(self) -> list[bytes]:
        paths = (self._use.token_file, self._use.client_ca)
        return [read_file(path) for path in paths if path is not None]

    def is_outdated(self) -> bool:
        """Tell whether there is another token by now, or other certificates that sign those of clients.

        What cannot be read any more, by a user without privileges perhaps, stays as it was.
        """
        try:
            return self._files() != self._contents
        except ValueError:
            return False

    def _permission(self) -> Permission:
        use = self._use
        token = None
        if use.token_file is not None:
            token = read_token(use.token_file)
            if may_be_read_by_others(use.token_file):
                path = shown(use.token_file)
                _log.warn("{path} can be read by every user of this machine; chmod 600 {path}", path=path)
            if is_exposed(use.address) and use.address.tls is None:
                _log.warn(
                    "admin listens on {address} without TLS: its token can be read on the way; use tls:, or localhost",
                    address=use.address.text,
                )
        # A site that has itself taken for us knows no token, has no certificate of ours, and reaches no UNIX socket.
        any_name = token is not None or use.client_ca is not None or use.address.scheme == "unix"
        return Permission(token, None if any_name else {(use.address.host or "").lower()})

    def _enveloped(self, factory: AdminFactory) -> IProtocolFactory:
        address, ca = self._use.address, self._use.client_ca
        if address.tls is None:
            return factory
        return Certificates(address.tls, self._reactor, () if ca is None else read_clients(ca)).wrap(factory)

    def place(self) -> str:
        """Name where it listens, for the log: `http://localhost:9100`, or the path of a UNIX socket."""
        place = self.listening[0].place()
        if self._use.address.scheme == "unix":
            return place
        if len(self.listening) > 1:
            place = f"localhost:{place.rpartition(':')[2]}"
        return f"{'http' if self._use.address.tls is None else 'https'}://{place}"

    def pause(self) -> None:
        """Take no connection until `resume` is called: whoever comes waits."""
        for opened in self.listening:
            cast(Any, opened.port).stopReading()

    def resume(self) -> None:
        """Take who waits, and who comes."""
        for opened in self.listening:
            cast(Any, opened.port).startReading()

    def handed(self) -> HandedPort:
        """Return the ports as another process may take them over."""
        return HandedPort(
            "admin",
            "admin",
            "stream",
            self._use.address.text,
            [[cast(Any, opened.port).socket] for opened in self.listening],
            [file for opened in self.listening for file in opened.files()],
            let_go=self.let_go,
            own=self._own,
            pause=self.pause,
            resume=self.resume,
        )

    def _own(self, files: list[str]) -> None:
        # More than one port is that of localhost, which has no file.
        for opened in self.listening:
            opened.own(files)

    def let_go(self) -> None:
        """Close the ports in this process only, and break off what is under way: another one answers now."""
        for opened in self.listening:
            hushed(opened.let_go)
        self.listening.clear()
        self.close()

    def leave(self, other: AdminServer | None) -> None:
        """Close the ports. Those whose sockets another server has as well go on there, and their files."""
        if other is None or not self._inodes() & other._inodes():
            self.close()
            return
        files = [file for opened in self.listening for file in opened.files()]
        self.let_go()
        if files:
            other._own(files)

    def _inodes(self) -> set[int]:
        return {os.fstat(cast(Any, opened.port).socket.fileno()).st_ino for opened in self.listening}

    def copies(self) -> Room:
        """Return the very sockets, for another server in their place."""
        return Room([os.dup(cast(Any, opened.port).socket.fileno()) for opened in self.listening])

    def close(self) -> Deferred[Any]:
        """Answer nobody any more. Fires when the ports are closed; what is under way is broken off."""
        closing: Sequence[Deferred[Any]] = [hushed(opened.stop) for opened in self.listening]
        self.listening.clear()
        if self._service is not None:
            self._service.close()
        if self._watching is not None:
            self._watching.stop()
        if self._factory is not None:
            self._factory.close()
        return DeferredList(closing)


def _may_be_left_out(error: ListenError, asked: Address) -> bool:
    """Tell whether `localhost` may be served without its second address, where the first is open."""
    cause = error.__cause__
    # The process that goes on with the sockets of another has none more than that; there may be no IPv6; and somebody
    # else may have there the port that the system chose for us.
    return (
        isinstance(cause, IndexError)
        or getattr(cause, "errno", None) in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
        or asked.port == 0
    )
