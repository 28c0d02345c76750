"""Opens ports: an address and a protocol in, listening ports out."""

from __future__ import annotations

import os
import re
import socket
import traceback
from collections.abc import Callable, Generator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from twisted.internet import tcp, udp, unix
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol
from twisted.logger import Logger
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from netsvc.accepting import accept_by
from netsvc.address import Address
from netsvc.discovery import describe
from netsvc.listeners.certificates import shown
from netsvc.listeners.faults import explain
from netsvc.listeners.inherited import Inherited, SharedMixin
from netsvc.listeners.passed import not_passed, passed_socket
from netsvc.listeners.proxy import ProxyFactory
from netsvc.listeners.sockets import BACKLOG, adopt, bound_socket, bound_unix_datagram
from netsvc.listeners.tls import Certificates, TLSTransport, check_tls

__all__ = ["ListenError", "Listening", "check_address", "listen"]

#: Endpoints whose backlog may be given, and is 50 where it is not.
_WITH_BACKLOG = ("tcp", "tcp6", "ssl", "unix")

#: How those endpoints are written whose mistakes Twisted tells in Python's words.
_FORMS = {
    "tcp": "tcp:PORT[:interface=ADDR]",
    "tcp6": "tcp6:PORT[:interface=ADDR]",
    "ssl": "ssl:PORT:privateKey=KEY.pem:certKey=CERT.pem[:interface=ADDR]",
    "unix": "unix:PATH[:mode=660]",
    "haproxy": "haproxy: before another endpoint, such as haproxy:tcp:9001",
}

_log = Logger(namespace="netsvc.listeners")


class ListenError(Exception):
    """A port could not be opened; the text says which, why, and the cure."""


class Listening:
    """The open port of one listener; `path` is a socket file that nobody else would remove.

    `certificates` are those of a `tls:` address.
    """

    def __init__(self, port: IListeningPort, path: str | None = None, certificates: Certificates | None = None) -> None:
        self.port = port
        self.certificates = certificates
        #: Whether it is a socket for datagrams.
        self.datagrams = isinstance(port, udp.Port)
        self._files = [path] if path else []
        #: Its file, if it has one and that is looked at: a `netsvc.listeners.paths.SocketFile`.
        self.file: Any = None
        #: Whether another process serves who waits here.
        self.shared = False

    def place(self) -> str:
        """Name where it listens, with the real port number; `*` is every interface, IPv4 and IPv6."""
        return _place(self.port)

    def take_waiting(self) -> None:
        """Read what the kernel has already accepted for us: closing the port would throw it away."""
        if self.shared:
            return
        port: Any = self.port
        if hasattr(port, "numberAccepts"):
            # Twisted takes as many in one go as the last burst had; here it must be all that can wait.
            port.numberAccepts = BACKLOG
        getattr(port, "read_waiting" if self.datagrams else "doRead", lambda: None)()

    def stop(self) -> Deferred[Any]:
        """Close the port. Fires when it is closed; a failure to close is logged, as nothing else can be done."""
        self._spare()
        stopping = maybeDeferred(self.port.stopListening)
        stopping.addCallback(self._remove)
        return stopping.addErrback(self._not_closed)

    def abandon(self) -> None:
        """Close the port at once, before the reactor runs: a process that fails to start leaves no socket file."""
        self._spare()
        port: Any = self.port
        if hasattr(port, "stopReading"):
            port.stopReading()
            try:
                port.connectionLost(Failure(ConnectionDone()))
                self._remove(None)
            except (OSError, ValueError):
                self._not_closed(Failure())
        else:
            self.stop()

    def _spare(self) -> None:
        """Leave a file alone that is not the one which was made for this socket: somebody else listens there."""
        if self.file is not None and not self.file.is_there():
            self._files = []
            if isinstance(self.port, unix.Port):
                # Twisted removes what is there, whatever it is, unless the name is one of the abstract namespace.
                self.port._bindPath = b"\0" + self.port._bindPath

    def _not_closed(self, failure: Failure) -> None:
        error = failure.value
        port: Any = self.port
        if isinstance(port, unix.Port) and port.connected:
            # Twisted begins with the file, then the lock, and stops where one cannot be removed.
            _release(port)
            tcp.Port.connectionLost(port, Failure(ConnectionDone()))
            if isinstance(error, FileNotFoundError):
                # Somebody has removed it for us.
                return
        if isinstance(error, PermissionError):
            # After --uid the directory of a socket file may not be ours to change; the next start takes it over.
            _log.warn("{path} is left behind: {reason}", path=shown(os.fsdecode(error.filename)), reason=error.strerror)
        else:
            _log.failure("a port failed to close", failure)

    def _remove(self, _result: object) -> None:
        for file in self._files:
            Path(file).unlink(missing_ok=True)

    def files(self) -> list[str]:
        """List the absolute paths of the files that are removed when the port is closed: its socket, then its lock."""
        port: Any = self.port
        if not isinstance(port, unix.Port) or isinstance(port, SharedMixin):
            return [os.path.abspath(file) for file in self._files]
        bound = os.fsdecode(port._bindPath)
        # A name of the abstract namespace is no file.
        if bound.startswith("\0"):
            return []
        return [os.path.abspath(bound), *([os.path.abspath(f"{bound}.lock")] if port.lockFile is not None else [])]

    def share(self) -> None:
        """Leave who waits here, and the files, to another process."""
        self.shared = True
        self._files = []

    def own(self, files: list[str]) -> None:
        """Have nobody else serve who waits here, and remove these files when the port is closed."""
        self.shared = False
        self._files = files

    def let_go(self) -> None:
        """Close this process's descriptor, and nothing more: another one has the socket, who waits there, its files."""
        port: Any = self.port
        self.share()
        port.stopReading()
        port._shouldShutdown = False
        if isinstance(port, unix.Port):
            # Twisted would remove the file, and the lock.
            tcp.Port.connectionLost(port, Failure(ConnectionDone()))
        else:
            port.connectionLost(Failure(ConnectionDone()))


def _release(port: unix.Port) -> None:
    """Give up the lock of a UNIX socket, if it is ours: while this process runs, nobody could listen there again."""
    lock: Any = port.lockFile
    if lock is not None and lock.locked:
        with suppress(OSError, ValueError):
            lock.unlock()


def _release_failed(error: BaseException) -> None:
    """Do that for a port that failed to open, and close its socket.

    Nobody has got hold of either but Twisted's code that raised `error`.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        port, bound = frame.f_locals.get("self"), frame.f_locals.get("skt")
        if isinstance(port, unix.Port):
            _release(port)
            if isinstance(bound, socket.socket):
                bound.close()


def _place(port: IListeningPort) -> str:
    host: Any = port.getHost()
    name = getattr(host, "name", None)
    if name is not None:
        return shown(os.fsdecode(name))
    # Only a listener for every interface has this address: it serves IPv4 through the same socket.
    name = "*" if host.host == "::" and _serves_ipv4(port) else host.host
    return f"[{name}]:{host.port}" if ":" in name else f"{name}:{host.port}"


def _serves_ipv4(port: Any) -> bool:
    try:
        return not port.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except (AttributeError, OSError):
        return True


def check_address(address: Address) -> None:
    """Raise `ValueError` if nobody can make sense of an address. Opens no port, but reads certificates."""
    if address.tls is not None:
        check_tls(address.tls)
    # What systemd passes is not known where it is checked what would run: as little as whether a port is free.
    if address.kind == "stream" and address.scheme not in ("inet", "systemd"):
        _endpoint(address, None)


def listen(
    reactor: Any,
    address: Address,
    protocol: IProtocolFactory | AbstractDatagramProtocol,
    inherited: Inherited | None = None,
    refused: Callable[[str, str], None] = lambda reason, host: None,
) -> Deferred[Listening]:
    """Open the port or ports of one address for a stream factory or a datagram protocol.

    With `inherited`, nothing is bound: the sockets are those. The Deferred has its result at once for every kind
    of address but those of endpoint plugins that take their time. It fails with `ListenError`.

    A connection meets the PROXY header of `proxy:` first, then the factory, then the TLS of `tls:`, if the factory
    has an attribute `envelope` for that; around any other factory stands the TLS as well. `refused` is called with a
    reason and a host for each connection that `proxy:` refuses (`netsvc.listeners.proxy`).
    """
    return _listen(reactor, address, protocol, inherited, refused)


@inlineCallbacks
def _listen(
    reactor: Any, address: Address, protocol: Any, inherited: Inherited | None, refused: Callable[[str, str], None]
) -> Generator[Deferred[IListeningPort], Any, Listening]:
    path = certificates = None
    try:
        if address.tls is not None:
            certificates = Certificates(address.tls, reactor)
            if hasattr(protocol, "envelope"):
                protocol.envelope = certificates.wrap
            else:
                protocol = certificates.wrap(protocol)
        has_endpoint = address.kind == "stream" and address.scheme not in ("inet", "systemd")
        if address.proxy is not None and not has_endpoint:
            protocol = ProxyFactory(protocol, address.proxy, reactor, refused)
        if inherited and not has_endpoint:
            port = inherited.adopt(reactor, protocol)
        elif address.scheme == "inet":
            port = adopt(reactor, bound_socket(address), protocol)
        elif has_endpoint:
            with inherited.over(reactor) if inherited else nullcontext(reactor) as opener:
                opening = _endpoint(address, opener).listen(protocol)
            if address.proxy is not None:
                _expect_headers(opening, address, reactor, refused)
            try:
                port = yield opening
            except Exception as error:
                _release_failed(error)
                raise
            _use_own_transports(getattr(port, "factory", None))
        elif address.scheme == "unixgram":
            path = address.arguments["path"]
            port = adopt(reactor, bound_unix_datagram(path, int(address.arguments.get("mode", "666"), 8)), protocol)
        else:
            # As one that others have open as well, which systemd has: its file is not ours to remove.
            port = Inherited([passed_socket(address).detach()]).adopt(reactor, protocol)
    except (CannotListenError, OSError, ValueError) as error:
        raise ListenError(explain(error, address)) from error
    except Exception as error:  # a factory, protocol or endpoint of a plugin may raise anything as it starts
        raise ListenError(describe(error)) from error
    if hasattr(port, "numberAccepts"):
        accept_by(port)
    return Listening(port, path, certificates)


def _expect_headers(
    opening: Deferred[Any], address: Address, reactor: Any, refused: Callable[[str, str], None]
) -> None:
    """Put the PROXY header before whatever an endpoint has made of the factory. Raises `ValueError` if it cannot."""
    port: Any = getattr(opening, "result", None) if opening.called else None
    if isinstance(port, Failure):
        return
    if address.proxy is None or not hasattr(port, "factory"):
        # A connection could come first, and be served without a header.
        opening.addCallback(lambda port: port.stopListening())
        opening.addErrback(lambda failure: None)
        raise ValueError(f"proxy: cannot stand before {address.scheme}:; use tcp: or another endpoint of Twisted's")
    port.factory = ProxyFactory(port.factory, address.proxy, reactor, refused)


def _use_own_transports(factory: Any) -> None:
    """Have what Twisted put around a factory use transports that do what its own do not."""
    if isinstance(factory, ProxyFactory):
        _use_own_transports(factory.factory)
    elif isinstance(factory, TLSMemoryBIOFactory):
        factory.protocol = TLSTransport
    elif isinstance(factory, HAProxyWrappingFactory):
        factory.protocol = _ProxiedTransport  # type: ignore[assignment]


class _ProxiedTransport(HAProxyProtocolWrapper):
    """Twisted's transport behind a PROXY header, for headers that its parser does not expect.

    Of some it raises what Twisted does not catch: a traceback in the log for each connection.
    """

    def dataReceived(self, data: bytes) -> None:
        try:
            super().dataReceived(data)
        except Exception:
            if self._proxyInfo is not None:
                # The header was in order: it is the protocol that failed.
                raise
            self.loseConnection()


def _endpoint(address: Address, reactor: Any) -> Any:
    text = address.place
    if address.scheme in _WITH_BACKLOG and ":backlog=" not in text:
        text = f"{text}:backlog={BACKLOG}"
    try:
        return serverFromString(reactor, text)
    except (KeyError, IndexError) as error:
        if ":systemd:" in text:
            raise ValueError(not_passed(re.split("index=|name=", text)[-1])) from None
        raise ValueError(f"{error}") from None
    except (TypeError, AttributeError) as error:
        named = re.search(r"unexpected keyword argument '(.*)'", str(error))
        wrong = f"{address.scheme}: has no argument {named[1]}" if named else f"wrong arguments for {address.scheme}:"
        raise ValueError(f"{wrong}{_form(address)}") from None
    except ValueError as error:
        raise ValueError(f"{error}{_form(address)}") from None
    except OSError as error:
        # The certificate that ssl: names, or the one that it looks for if none is named.
        raise ValueError(f"{shown(str(error.filename))}: {error.strerror}{_form(address)}") from None
    except Exception as error:  # noqa: BLE001  (an endpoint plugin, or OpenSSL, may raise anything)
        if address.scheme == "ssl":
            raise ValueError(f"no key and certificate in PEM form that fit{_form(address)}") from None
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _form(address: Address) -> str:
    form = _FORMS.get(address.scheme)
    return f"; write {form}" if form else ""
