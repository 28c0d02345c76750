"""Sockets that another process has opened for a twistd plugin, given to the plugin when it asks for them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Say how an open port was asked for: `interface port`, where 0 is any, or the absolute path of a socket file."""
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
        methods: dict[str, tuple[Callable[..., Any], Sequence[str]]] = {
            "listenTCP": (self._listen_tcp, ("backlog", "interface")),
            "listenSSL": (self._listen_ssl, ("contextFactory", "backlog", "interface")),
            "listenUNIX": (self._listen_unix, ("backlog", "mode", "wantPID")),
            "listenUDP": (self._listen_udp, ("interface", "maxPacketSize")),
        }
        for name, (method, names) in methods.items():
            setattr(reactor, name, partial(_by_name, partial(method, reactor, getattr(reactor, name)), names))
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

    def _listen_tcp(self, reactor: Any, listen: Any, port: int, factory: Any, **others: Any) -> Any:
        interface = others.get("interface", "")
        return self._stream(reactor, port, factory, interface) or listen(port, factory, **others)

    def _listen_ssl(self, reactor: Any, listen: Any, port: int, factory: Any, **others: Any) -> Any:
        wrapped = TLSMemoryBIOFactory(others["contextFactory"], False, factory)
        interface = others.get("interface", "")
        return self._stream(reactor, port, wrapped, interface) or listen(port, factory, **others)

    def _listen_unix(self, reactor: Any, listen: Any, address: Any, factory: Any, **others: Any) -> Any:
        bound = self.take_path("stream", address)
        if bound is None:
            return listen(address, factory, **others)
        return Inherited([bound.detach()]).adopt(reactor, factory)

    def _listen_udp(self, reactor: Any, listen: Any, port: int, protocol: Any, **others: Any) -> Any:
        interface = others.get("interface", "")
        bound = self.take("datagram", _place(interface, port))
        if bound is None:
            return listen(port, protocol, **others)
        with bound:
            size = others.get("maxPacketSize", 8192)
            opened = reactor.adoptDatagramPort(bound.fileno(), bound.family, protocol, size)
        opened.port, opened.interface = port, interface
        return opened


def _by_name(method: Callable[..., Any], names: Sequence[str], *words: Any, **named: Any) -> Any:
    """Call a method with two arguments, and those that follow by name, however they were given."""
    return method(*words[:2], **dict(zip(names, words[2:], strict=False)), **named)
