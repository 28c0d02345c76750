"""Sockets that another process has opened for a twistd plugin, given to the plugin when it asks for them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.protocols.tls import TLSMemoryBIOFactory

from netsvc.interfaces import Kind
from netsvc.listeners.inherited import Inherited

__all__ = ["Passed", "PassedSocket", "asked_of"]


@dataclass(frozen=True)
class PassedSocket:
    """A socket, by its descriptor, and how the plugin of the other process had asked for it; see `asked_of`."""

    kind: Kind
    asked: str
    descriptor: int


def asked_of(port: Any) -> str:
    """Say how an open port was asked for: `interface port`, of which 0 is any, or the absolute path of a socket file."""
    bound = port.socket.getsockname()
    if not isinstance(bound, tuple):
        return _path(bound)
    number = getattr(port, "port", None)
    return _place(port.interface, bound[1] if number is None else number)


def _place(interface: str, number: int) -> str:
    return f"{interface or '0.0.0.0'} {number}"


def _path(path: str | bytes) -> str:
    text = os.fsdecode(path)
    return text if text.startswith("\0") else os.path.abspath(text)


class Passed:
    """The sockets of one plugin. What it asks for that is not among them is opened as ever."""

    def __init__(self, sockets: Iterable[PassedSocket]) -> None:
        self._sockets = list(sockets)
        self._taken: set[int] = set()

    def take(self, kind: Kind, place: str) -> socket.socket | None:
        """Return the socket that was asked for in the same way, once; None if there is none."""
        for each in self._sockets:
            if (each.kind, each.asked) == (kind, place):
                self._sockets.remove(each)
                self._taken.add(os.fstat(each.descriptor).st_ino)
                return socket.socket(fileno=os.dup(each.descriptor))
        return None

    def take_datagrams(self, port: Any) -> None:
        """Let a UDP port that is to be opened have its socket, if there is one."""
        port._preexistingSocket = self.take("datagram", _place(port.interface, port.port))

    def take_path(self, kind: Kind, path: str | bytes) -> socket.socket | None:
        """Return the socket of a file."""
        return self.take(kind, _path(path))

    def has_given(self, port: Any) -> bool:
        """Tell whether a port has one of them."""
        bound = getattr(port, "socket", None)
        return bound is not None and os.fstat(bound.fileno()).st_ino in self._taken

    @contextmanager
    def offered(self, reactor: Any) -> Iterator[None]:
        """Have `reactor` open these sockets in place of new ones, whoever asks it to and how."""
        methods: dict[str, Callable[..., Any]] = {
            "listenTCP": self._listen_tcp,
            "listenSSL": self._listen_ssl,
            "listenUNIX": self._listen_unix,
            "listenUDP": self._listen_udp,
        }
        for name, method in methods.items():
            setattr(reactor, name, partial(method, reactor, getattr(reactor, name)))
        try:
            yield
        finally:
            for name in methods:
                delattr(reactor, name)

    def _stream(self, reactor: Any, number: int, factory: Any, interface: str) -> Any:
        bound = self.take("stream", _place(interface, number))
        if bound is None:
            return None
        with bound:
            opened = reactor.adoptStreamPort(bound.fileno(), bound.family, factory)
        # For whoever takes it over next.
        opened.port, opened.interface = number, interface
        return opened

    def _listen_tcp(
        self, reactor: Any, listen: Any, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        return self._stream(reactor, port, factory, interface) or listen(port, factory, backlog, interface)

    def _listen_ssl(
        self,
        reactor: Any,
        listen: Any,
        port: int,
        factory: Any,
        contextFactory: Any,
        backlog: int = 50,
        interface: str = "",
    ) -> Any:
        wrapped = TLSMemoryBIOFactory(contextFactory, False, factory)
        return self._stream(reactor, port, wrapped, interface) or listen(
            port, factory, contextFactory, backlog, interface
        )

    def _listen_unix(self, reactor: Any, listen: Any, address: Any, factory: Any, *others: Any, **named: Any) -> Any:
        bound = self.take_path("stream", address)
        if bound is None:
            return listen(address, factory, *others, **named)
        return Inherited([bound.detach()]).adopt(reactor, factory)

    def _listen_udp(
        self, reactor: Any, listen: Any, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192
    ) -> Any:
        bound = self.take("datagram", _place(interface, port))
        if bound is None:
            return listen(port, protocol, interface, maxPacketSize)
        with bound:
            opened = reactor.adoptDatagramPort(bound.fileno(), bound.family, protocol, maxPacketSize)
        opened.port, opened.interface = port, interface
        return opened
