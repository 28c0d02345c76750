"""One connection to Redis or Valkey: its address, its errors, and a time limit for each answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure

from netsvc.base.errors import UserError
from netsvc.base.files import read_file
from netsvc.base.text import escape

__all__ = ["Link", "LinkError", "RedisAddress", "RedisLink", "RefusedError", "parse_address"]

#: Seconds until a connection that does not open, or a command that is not answered, is given up.
_PATIENCE = 5.0
_PORT = 6379
_DATABASES = 1_000_000


class LinkError(Exception):
    """The connection failed, or was lost: it is not known whether Redis did what was asked last. The text is why."""


class RefusedError(Exception):
    """Redis answered with an error, whose first word (`OOM`, `READONLY`) says which, and did nothing."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is: `redis://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE]`, and the options behind a `?`."""

    host: str = ""
    port: int = _PORT
    tls: bool = False
    #: The path of a UNIX socket, instead of a host.
    path: str = ""
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    ca_file: str = ""
    #: What the names of all keys begin with.
    prefix: str = "netsvc:chat:"

    def __str__(self) -> str:
        """Return it without the password, for a terminal and the log."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = f"unix:{self.path}" if self.path else f"redis{'s' if self.tls else ''}://{host}:{self.port}"
        return escape(f"{where}/{self.database}" if self.database else where, 1000)


def parse_address(text: str) -> RedisAddress:
    """Return the address in a URL. Raises `ValueError` with what is accepted."""
    try:
        url = urlsplit(text)
        port = url.port
        options = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
        database = url.path.strip("/")
        is_local = url.scheme == "redis+unix"
        number = int(options.pop("db", "0") if is_local else database or "0")
        address = RedisAddress(
            host="" if is_local else url.hostname or "",
            port=port or _PORT,
            tls=url.scheme == "rediss",
            path=unquote(url.path) if is_local else "",
            database=number,
            user=unquote(url.username or ""),
            password=unquote(url.password or ""),
            password_file=options.pop("password-file", ""),
            ca_file=options.pop("ca-file", ""),
            prefix=options.pop("prefix", RedisAddress().prefix),
        )
        is_known = url.scheme in {"redis", "rediss", "redis+unix"} and not options and not url.fragment
        is_whole = bool(address.path or address.host) and 0 <= number < _DATABASES and "\0" not in text
        if not (is_known and is_whole and address.prefix):
            raise ValueError
    except ValueError:
        raise ValueError(
            "redis://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE], rediss://… with TLS, or redis+unix:///PATH"
            " (?password-file=FILE, ca-file=FILE, prefix=TEXT)"
        ) from None
    return address


class Link(Protocol):
    """A connection to Redis, as the store needs it. `connect` can be called again when it was lost."""

    @property
    def is_connected(self) -> bool:
        """Whether commands can be sent."""

    def connect(self) -> Deferred[None]:
        """Connect, log in and select the database. Fails with `LinkError`, or with `RefusedError`."""

    def command(self, *arguments: str | bytes | int) -> Deferred[Any]:
        """Send a command; return its answer, with texts as bytes. Fails as `connect` does."""

    def close(self) -> None:
        """Close the connection. Commands that are not answered fail."""


class RedisLink:
    """A connection over TCP, TLS or a UNIX socket.

    A command that is not answered in `patience` seconds ends the connection: a dead one is never mistaken for a slow
    one, and nothing that comes late is taken for the answer to something else.
    """

    def __init__(self, address: RedisAddress, reactor: Any, *, patience: float = _PATIENCE) -> None:
        self._address = address
        self._reactor = reactor
        self._patience = patience
        self._protocol: Any = None

    @property
    def is_connected(self) -> bool:
        """Whether commands can be sent."""
        return self._protocol is not None and bool(self._protocol.connected)

    def connect(self) -> Deferred[None]:
        """Connect, log in and select the database."""
        return Deferred.fromCoroutine(self._connect())

    async def _connect(self) -> None:
        # It imports the reactor.
        from txredisapi import RedisProtocol

        self.close()
        address = self._address
        try:
            password = _read_password(address)
            endpoint = self._endpoint()
        except UserError as error:
            raise LinkError(str(error)) from None
        factory = Factory.forProtocol(lambda: RedisProtocol(charset=None, convertNumbers=False))
        factory.noisy = False
        connecting: Deferred[Any] = endpoint.connect(factory)
        connecting.addTimeout(self._patience, self._reactor)
        try:
            protocol = await connecting
        except DeferredTimeoutError:
            raise LinkError("no connection") from None
        except Exception as error:  # noqa: BLE001  (each endpoint has its own)
            raise LinkError(_reason(error)) from None
        self._protocol = protocol
        try:
            if password:
                await self.command("AUTH", *([address.user] if address.user else []), password)
            if address.database:
                await self.command("SELECT", address.database)
            # A server that wants a password says so now.
            await self.command("PING")
        except BaseException:
            self.close()
            raise

    def _endpoint(self) -> Any:
        address = self._address
        if address.path:
            return UNIXClientEndpoint(self._reactor, address.path)
        endpoint = HostnameEndpoint(self._reactor, address.host, address.port)
        if not address.tls:
            return endpoint
        trust = None
        if address.ca_file:
            shown = escape(address.ca_file, 1000)
            try:
                trust = trustRootFromCertificates([Certificate.loadPEM(read_file(Path(address.ca_file), 1 << 20))])
            except OSError as error:
                raise UserError([f"{shown}: {error.strerror}"]) from None
            except Exception:  # noqa: BLE001  (whatever the TLS library raises)
                raise UserError([f"{shown}: not a certificate in PEM"]) from None
        return wrapClientTLS(optionsForClientTLS(address.host, trustRoot=trust), endpoint)

    def command(self, *arguments: str | bytes | int) -> Deferred[Any]:
        """Send a command."""
        answer: Deferred[Any] = Deferred()
        if not self.is_connected:
            answer.errback(LinkError("not connected"))
            return answer
        protocol = self._protocol
        # In UTF-8 here: the library would have a charset for the answers, too.
        encoded = [each if isinstance(each, bytes) else str(each).encode("utf-8", "replace") for each in arguments]
        patience = self._reactor.callLater(self._patience, self._give_up, protocol, answer)

        def done(result: Any) -> None:
            if patience.active():
                patience.cancel()
            if not answer.called:
                answer.callback(result) if not isinstance(result, Failure) else answer.errback(_translate(result))

        protocol.execute_command(*encoded).addBoth(done)
        return answer

    def _give_up(self, protocol: Any, answer: Deferred[Any]) -> None:
        protocol.transport.abortConnection()
        # The others fail when the connection is lost.
        if not answer.called:
            answer.errback(LinkError("no answer"))

    def close(self) -> None:
        """Close the connection."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None and protocol.connected:
            protocol.transport.abortConnection()


def _read_password(address: RedisAddress) -> str:
    if not address.password_file:
        return address.password
    shown = escape(address.password_file, 1000)
    try:
        return read_file(Path(address.password_file), 65536).decode().strip()
    except OSError as error:
        raise UserError([f"{shown}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise UserError([f"{shown}: not text in UTF-8"]) from None


def _translate(failure: Failure) -> Exception:
    from txredisapi import ResponseError

    error = failure.value
    if isinstance(error, ResponseError):
        return RefusedError(escape(str(error), 200))
    return LinkError("the connection was lost")


def _reason(error: BaseException) -> str:
    text = getattr(error, "osError", None)
    if isinstance(text, OSError) and text.strerror:
        return text.strerror
    return escape(str(error), 200) or type(error).__name__


#: What builds a link.
MakeLink = Callable[[], Link]
