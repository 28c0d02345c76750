"""Opens the listening port of an address for a protocol."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy

from netsvc.base.errors import describe
from netsvc.base.text import escape
from netsvc.base.values import Kind
from netsvc.listen.certificates import escape_path
from netsvc.listen.handoff import Sockets, asked_path, asked_port
from netsvc.listen.port import OpenPort, adopt, listen_unix
from netsvc.listen.proxy import ProxyFactory
from netsvc.listen.sockets import bind, bind_unix_datagram, explain, join_group
from netsvc.listen.systemd import not_passed, passed_at, passed_socket, systemd_socket
from netsvc.listen.tls import Certificates, check_tls, inside_tls, use_tls
from netsvc.plan.address import Address, bound_path
from netsvc.reactor.accept import BACKLOG, pause_when_full
from netsvc.reactor.tls import TLSTransport

#: The default backlog of Twisted's endpoints, services and reactors.
_TWISTEDS_BACKLOG = 50

#: The syntax of endpoints for which Twisted reports errors as Python exceptions.
_FORMS = {
    "tcp": "tcp:PORT[:interface=ADDR]",
    "tcp6": "tcp6:PORT[:interface=ADDR]",
    "ssl": "ssl:PORT:privateKey=KEY.pem:certKey=CERT.pem[:interface=ADDR]",
    "unix": "unix:PATH[:mode=660]",
    "haproxy": "haproxy: before another endpoint, such as haproxy:tcp:9001",
}


class ListenError(Exception):
    """A port could not be opened. The text has the port, the reason and the cure."""


class PortReactor:
    """A wrapper of the reactor whose listening methods an endpoint or service of Twisted uses.

    It uses a socket of `sockets` in place of a new one, replaces the default backlog by ours, and removes the lock and
    the socket of a UNIX port that cannot be opened. All other attributes are the reactor's.
    """

    def __init__(self, reactor: Any, sockets: Sockets | None = None, *, has_headers: bool = False) -> None:
        self._reactor = reactor
        self._sockets = sockets
        #: Whether PROXY headers come before TLS.
        self._has_headers = has_headers
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(
        self, port: int, factory: Any, backlog: int = _TWISTEDS_BACKLOG, interface: str = ""
    ) -> IListeningPort:
        """Listen for TCP connections; see `IReactorTCP`."""
        passed = _open_passed(self._reactor, self._sockets, "stream", (interface, port), factory)
        return passed or self._reactor.listenTCP(port, factory, _backlog(backlog), interface)  # type: ignore[no-any-return]

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = _TWISTEDS_BACKLOG, interface: str = ""
    ) -> IListeningPort:
        """Listen for TLS connections; see `IReactorSSL`."""
        if self._sockets is not None or self._has_headers:
            wrapped = TLSMemoryBIOFactory(contextFactory, False, factory)
            return PortReactor.listenTCP(self, port, wrapped, backlog, interface)
        return self._reactor.listenSSL(port, factory, contextFactory, _backlog(backlog), interface)  # type: ignore[no-any-return]

    def listenUNIX(
        self,
        address: Any,
        factory: Any,
        backlog: int = _TWISTEDS_BACKLOG,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> IListeningPort:
        """Listen for UNIX connections; see `IReactorUNIX`. `@NAME` is in the abstract namespace."""
        lock = wantPID
        if isinstance(address, str) and address.startswith("@"):
            lock = False
            # It has no file, and no lock beside it: the system keeps the name as long as the socket is open.
            address = bound_path(address)
        passed = _open_passed(self._reactor, self._sockets, "stream", address, factory)
        return passed or listen_unix(self._reactor, address, factory, _backlog(backlog), mode, lock=lock)


def _backlog(asked: int) -> int:
    return BACKLOG if asked == _TWISTEDS_BACKLOG else asked


def lengthen_backlog(port: Any) -> None:
    """Replace Twisted's default backlog of an open stream port by ours."""
    bound = getattr(port, "socket", None)
    if getattr(port, "backlog", None) == _TWISTEDS_BACKLOG and isinstance(bound, socket.socket):
        # listen(2) may be repeated for that.
        bound.listen(BACKLOG)
        port.backlog = BACKLOG


def _open_passed(
    reactor: Any, sockets: Sockets | None, kind: Kind, place: tuple[str, int] | str | bytes, protocol: Any
) -> Any:
    """Open a port on the passed socket of an interface and port, or of a path; return None if there is none."""
    asked = asked_port(*place) if isinstance(place, tuple) else asked_path(place)
    bound = None if sockets is None else sockets.take(kind, asked)
    if bound is None:
        return None
    opened: Any = adopt(reactor, bound, protocol)
    if isinstance(place, tuple):
        # Read by `netsvc.listen.handoff.asked_of` when the port is handed on.
        opened.interface, opened.port = place
    return opened


@contextmanager
def offered(sockets: Sockets | None, reactor: Any) -> Iterator[None]:
    """Make the fast reactor use `sockets` for the ports that it opens meanwhile. Other reactors are not changed."""
    if sockets is None or not hasattr(reactor, "find_port"):
        yield
        return
    before, reactor.find_port = reactor.find_port, partial(_open_passed, reactor, sockets)
    try:
        yield
    finally:
        reactor.find_port = before


def check_address(address: Address) -> None:
    """Raise `ValueError` if an address cannot be used. Opens no port, but reads certificates."""
    if address.tls is not None:
        check_tls(address.tls)
    # A check cannot know which sockets systemd will pass, or whether a port will be free.
    if address.kind == "stream" and address.scheme not in ("inet", "systemd"):
        _endpoint(address, None)


@inlineCallbacks
def listen(
    reactor: Any,
    address: Address,
    protocol: Any,
    sockets: Sockets | None = None,
    refused: Callable[[str, str], None] = lambda reason, host: None,
) -> Generator[Deferred[IListeningPort], Any, OpenPort]:
    """Open the port of one address for a stream factory or a datagram protocol.

    With `sockets`, nothing is bound: the next of them is used. Without them, a socket that systemd has passed is used
    if it is bound as the address would be. The Deferred has fired already, except for endpoint plugins that need time.
    It fails with `ListenError`.

    A connection passes the PROXY header of `proxy:` first, then the factory, then the TLS of `tls:` if the factory has
    an attribute `envelope` for it; for any other factory TLS comes before the factory. `refused` is called with a
    reason and a host for each connection that `proxy:` refuses (`netsvc.listen.proxy`).
    """
    path = certificates = None
    try:
        if address.tls is not None:
            certificates = Certificates(address.tls, reactor)
            protocol = inside_tls(protocol, certificates)
        served = protocol
        if sockets is None and (passed := passed_socket(address, reactor)) is not None:
            sockets = Sockets([passed.detach()])
        has_endpoint = address.kind == "stream" and address.scheme not in ("inet", "systemd")
        if address.proxy is not None and not has_endpoint:
            protocol = ProxyFactory(protocol, address.proxy, reactor, refused)
        if has_endpoint:
            asked = address
            if sockets is not None:
                # Take the socket from `sockets`, not from the sockets that systemd has passed to this process.
                asked = replace(address, endpoint=re.sub(":systemd:.*", ":tcp:0", address.endpoint))
            listener = PortReactor(reactor, sockets, has_headers=address.proxy is not None)
            opening = _endpoint(asked, listener).listen(protocol)
            if address.proxy is not None:
                _expect_headers(opening, address, reactor, refused)
            port = yield opening
            _use_own_transports(getattr(port, "factory", None))
            if sockets is None and ":systemd:" not in address.endpoint:
                # An endpoint plugin may have used its own reactor.
                lengthen_backlog(port)
        elif sockets is not None:
            bound = sockets.take()
            if bound is None:
                raise LookupError("no socket was passed for this address")
            port = adopt(reactor, bound, protocol)
        elif address.scheme == "inet":
            port = adopt(reactor, bind(address), protocol)
        elif address.scheme == "unixgram":
            name = address.arguments["path"]
            path = None if name.startswith("@") else name
            mode = int(address.arguments.get("mode", "666"), 8)
            port = adopt(reactor, bind_unix_datagram(bound_path(name), mode), protocol)
        else:
            bound = systemd_socket(address)
            join_group(bound)
            port = adopt(reactor, bound, protocol)
    except (CannotListenError, OSError, ValueError) as error:
        named = passed_at(address.port, address.kind)
        hint = f"; systemd has passed this port as {escape(named)}: use that address" if named else ""
        raise ListenError(f"{explain(error, address)}{hint}") from error
    except Exception as error:  # a factory, protocol or endpoint plugin may raise anything on start
        raise ListenError(describe(error)) from error
    if certificates is not None:
        # Without them, the port of ssl: has its own.
        use_tls(port, served, certificates)
    pause_when_full(port)
    return OpenPort(port, path, certificates)


def _expect_headers(
    opening: Deferred[Any], address: Address, reactor: Any, refused: Callable[[str, str], None]
) -> None:
    """Wrap the factory of an endpoint's port in a `ProxyFactory`. Raises `ValueError` if that is not possible."""
    port: Any = getattr(opening, "result", None) if opening.called else None
    if isinstance(port, Failure):
        return
    if address.proxy is None or not hasattr(port, "factory"):
        # A connection could be accepted before, and be served without a header.
        opening.addCallback(lambda port: port.stopListening())
        opening.addErrback(lambda failure: None)
        raise ValueError(f"proxy: cannot be used with {address.scheme}:; use tcp: or another endpoint of Twisted")
    port.factory = ProxyFactory(port.factory, address.proxy, reactor, refused)


def _use_own_transports(factory: Any) -> None:
    """Replace the transports in Twisted's TLS and PROXY wrappers by our fixed ones."""
    from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory

    from netsvc.listen.haproxy import ProxiedTransport

    if isinstance(factory, ProxyFactory):
        _use_own_transports(factory.factory)
    elif isinstance(factory, TLSMemoryBIOFactory):
        factory.protocol = TLSTransport
    elif isinstance(factory, HAProxyWrappingFactory):
        factory.protocol = ProxiedTransport  # type: ignore[assignment]


def _endpoint(address: Address, reactor: Any) -> Any:
    # Imported late, as it loads OpenSSL's name checks.
    from twisted.internet.endpoints import serverFromString

    text = address.endpoint
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
        # The certificate of ssl:, named or by default.
        raise ValueError(f"{escape_path(str(error.filename))}: {error.strerror}{_form(address)}") from None
    except Exception as error:  # noqa: BLE001  (an endpoint plugin, or OpenSSL, may raise anything)
        if address.scheme == "ssl":
            raise ValueError(f"no matching key and certificate in PEM form{_form(address)}") from None
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _form(address: Address) -> str:
    form = _FORMS.get(address.scheme)
    return f"; write {form}" if form else ""
