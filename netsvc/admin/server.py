"""The admin server: opens the admin address, serves it, and hands its sockets on."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from netsvc.admin.api import AdminAPI, Exposition
from netsvc.admin.http import AdminFactory
from netsvc.admin.permission import Permission
from netsvc.admin.status import Samples
from netsvc.admin.stream import EventStream
from netsvc.base.tokens import may_be_read_by_others, read_token
from netsvc.config.admin_address import (
    check_admin,
    is_exposed,
    places,
    read_clients,
)
from netsvc.guard.tcp import keep_alive
from netsvc.listen.certificates import CertificateError, escape_path, read_file
from netsvc.listen.handoff import OfferedPort, Sockets
from netsvc.listen.opening import ListenError, listen
from netsvc.listen.port import OpenPort
from netsvc.listen.quiet import quietly
from netsvc.listen.tls import Certificates
from netsvc.plan.address import Address
from netsvc.plan.limits import DEFAULTS
from netsvc.plan.plan import AdminUse
from netsvc.reactor.accept import pause_when_full
from netsvc.server.interface import Operations

_log = Logger(namespace="netsvc.admin")


class AdminServer:
    """The page, the metrics and the API over `operations`, at one address.

    Open it before privileges are dropped: its files are read then, except certificates, which are read again when they
    change. `exposition` writes the metrics.
    """

    def __init__(self, reactor: Any, use: AdminUse, operations: Operations, exposition: Exposition) -> None:
        self._reactor = reactor
        self._use = use
        self._operations = operations
        self._exposition = exposition
        self._factory: AdminFactory | None = None
        self._stream: EventStream | None = None
        self._api: AdminAPI | None = None
        self._contents: list[bytes] = []
        #: Open ports, in the order of the sockets in `Sockets`.
        self.listening: list[OpenPort] = []

    @inlineCallbacks
    def open(self, sockets: Sockets | None = None) -> Generator[Deferred[Any], Any, None]:
        """Open the ports and start to answer. Fails with `ListenError`; then no port is open.

        With `sockets`, these are used and nothing is bound.
        """
        use = self._use
        if errors := check_admin(use):
            raise ListenError(errors[0])
        with suppress(ValueError):
            self._contents = self._files()
        samples = Samples(self._reactor, self._operations)
        self._stream = EventStream(self._reactor, samples, self._operations)
        self._api = AdminAPI(self._reactor, self._operations, self._exposition, self._permission(), self._stream)
        self._factory = AdminFactory(self._reactor, self._api.serve)
        port = 0
        try:
            factory = self._wrapped(self._factory)
            for number, address in enumerate(places(use.address)):
                wanted = replace(address, tls=None, port=port or address.port)
                try:
                    opened = yield quietly(listen, self._reactor, wanted, factory, sockets)
                except ListenError as error:
                    if number and _may_be_left_out(error, use.address):
                        continue
                    raise
                # Served even if all descriptors are in use, to show what uses them.
                pause_when_full(opened.port, use_reserved=True)
                keep_alive(opened.port, DEFAULTS["keepalive"])
                self.listening.append(opened)
                port = getattr(opened.port.getHost(), "port", 0)
        except (ListenError, CertificateError) as error:
            for opened in self.listening:
                opened.abandon()
            self.listening.clear()
            raise ListenError(f"{use.origin}admin cannot listen on {use.address.text}: {error}") from None
        self._stream.start()

    def _files(self) -> list[bytes]:
        paths = (self._use.token_file, self._use.client_ca)
        return [read_file(path) for path in paths if path is not None]

    def is_outdated(self) -> bool:
        """Return whether the token file or the file of client authorities has changed.

        A file that cannot be read any more, without privileges for example, counts as unchanged.
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
                path = escape_path(use.token_file)
                _log.warn("{path} can be read by other users; run: chmod 600 {path}", path=path)
            if is_exposed(use.address) and use.address.tls is None:
                _log.warn(
                    "admin listens on {address} without TLS, and the token is sent in the clear; use tls: or localhost",
                    address=use.address.text,
                )
        # A site whose name resolves to this address has no token, no client certificate, and no UNIX socket.
        any_name = token is not None or use.client_ca is not None or use.address.scheme == "unix"
        return Permission(token, None if any_name else {(use.address.host or "").lower()})

    def _wrapped(self, factory: AdminFactory) -> IProtocolFactory:
        address, ca = self._use.address, self._use.client_ca
        if address.tls is None:
            return factory
        return Certificates(address.tls, self._reactor, () if ca is None else read_clients(ca)).wrap(factory)

    def place(self) -> str:
        """Return the address for the log: `http://localhost:9100`, or the path of a UNIX socket."""
        place = self.listening[0].place()
        if self._use.address.scheme == "unix":
            return place
        if len(self.listening) > 1:
            place = f"{self._use.address.host or 'localhost'}:{place.rpartition(':')[2]}"
        return f"{'http' if self._use.address.tls is None else 'https'}://{place}"

    def pause(self) -> None:
        """Accept no connection until `resume` is called; they wait in the kernel."""
        for opened in self.listening:
            opened.pause()

    def resume(self) -> None:
        """Accept connections again."""
        for opened in self.listening:
            opened.resume()

    def offered(self) -> list[OfferedPort]:
        """List the ports for a handoff to another process."""
        text = self._use.address.text
        return [
            OfferedPort("admin", "admin", "stream", text, [opened.socket], self, opened.files())
            for opened in self.listening
        ]

    def own(self, files: Sequence[str]) -> None:
        """Remove these files on close, since no other process uses them any more."""
        # There are several ports only for a name, which has no file.
        for opened in self.listening:
            opened.own(files)

    def release(self) -> None:
        """Close the ports in this process only, and abort its connections: another process serves them now."""
        for opened in self.listening:
            quietly(opened.release)
        self.listening.clear()
        self.close()

    def leave(self, other: AdminServer | None) -> None:
        """Close the ports, but release ports that another server has as well, with their files."""
        if other is None or not self._inodes() & other._inodes():
            self.close()
            return
        files = [file for opened in self.listening for file in opened.files()]
        self.release()
        if files:
            other.own(files)

    def _inodes(self) -> set[int]:
        return {os.fstat(opened.socket.fileno()).st_ino for opened in self.listening}

    def copies(self) -> Sockets:
        """Return the sockets, for another server that replaces this one."""
        return Sockets.of(*(opened.socket for opened in self.listening))

    def close(self) -> Deferred[Any]:
        """Close the ports and abort the connections. Fires when the ports are closed."""
        closing: Sequence[Deferred[Any]] = [quietly(opened.stop) for opened in self.listening]
        self.listening.clear()
        if self._api is not None:
            self._api.close()
        if self._stream is not None:
            self._stream.stop()
        if self._factory is not None:
            self._factory.close()
        return DeferredList(closing)


def _may_be_left_out(error: ListenError, asked: Address) -> bool:
    """Return whether `localhost` may be served on one address only."""
    cause = error.__cause__
    # A handoff may have only one socket; the system may have no IPv6; and the port that the system chose on the first
    # address may be in use on the second.
    return (
        isinstance(cause, LookupError)
        or getattr(cause, "errno", None) in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
        or asked.port == 0
    )
