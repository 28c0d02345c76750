"""Who may fetch files over HTTP: those who know a token (RFC 6750), or users with passwords (RFC 7617).

A token is sent as `Authorization: Bearer TOKEN`, as a password with any name, or as the first part of the path,
`/TOKEN/docs/`, so that a link can be passed on. Passwords are checked in threads, a few at once; the ones that were
right are remembered for a while. An address that guesses is slowed down.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from hmac import compare_digest
from http import HTTPStatus
from math import ceil
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.bucket import PeerBuckets
from netsvc.base.errors import UserError
from netsvc.base.files import read_file
from netsvc.base.hosts import peer_key
from netsvc.base.passwords import PasswordError, check_hash, dummy_hash, verify_password
from netsvc.base.text import escape
from netsvc.base.tokens import may_be_read_by_others, read_token
from netsvc.http.connection import Exchange
from netsvc.http.request import Request
from netsvc.stream import is_confidential

#: Wrong passwords and tokens that an address may send at once, and a second from then on.
BURST, RATE = 10, 0.2
#: Passwords that are checked at once, each in 32 MiB and some tenths of a second; and that wait for it.
AT_ONCE, MOST_WAITING = 2, 64
#: Passwords that are remembered, and for how many seconds.
MOST_REMEMBERED, REMEMBERED = 1000, 600.0
#: Seconds between two looks at the files.
LOOK = 2.0
#: Bytes and users of a file.
LONGEST_FILE, MOST_USERS = 4 * 1024 * 1024, 10_000
_LONGEST_NAME = 255

#: Answers a request without a file: with a status, a reason for the log, and more headers.
Refuse = Callable[[Exchange, HTTPStatus, str, dict[str, str]], None]


class Credentials(NamedTuple):
    """What a client has sent: a password with the name of a user, or a token without one."""

    user: str | None
    secret: str


def parse_credentials(request: Request) -> Credentials | None:
    """Return the credentials of a request, None if it has none. Raises `ValueError` for malformed ones."""
    values = request.values(b"authorization")
    if not values:
        return None
    scheme, _, value = values[0].strip().partition(b" ")
    value = value.strip()
    if len(values) > 1 or not value:
        raise ValueError("malformed credentials")
    if scheme.lower() == b"bearer":
        return Credentials(None, value.decode("latin-1"))
    if scheme.lower() != b"basic":
        raise ValueError("unknown kind of credentials")
    decoded = base64.b64decode(value, validate=True)
    try:
        text = decoded.decode("utf-8")
    except UnicodeDecodeError:
        # What clients send that do not know the parameter charset (RFC 7617, section 2.1).
        text = decoded.decode("latin-1")
    user, colon, password = text.partition(":")
    if not colon or not text.isprintable():
        raise ValueError("malformed credentials")
    return Credentials(_plain_name(user), password)


def _plain_name(user: str) -> str:
    return unicodedata.normalize("NFC", user)


def parse_users(data: bytes, path: str) -> dict[str, str]:
    """Return the hashes of passwords by user, of lines such as `alice:$scrypt$…`, with comments after `#`.

    Raises `UserError` with the file and the line of each error; hashes are not in it.
    """
    users: dict[str, str] = {}
    errors: list[str] = []
    shown = escape(path, 4096)
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for number, written in enumerate(text.split("\n"), 1):
        line = written.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, hashed = line.partition(":")
        user = _plain_name(name)
        wrong = ""
        if not colon:
            wrong = "write USER:HASH, as `netsvc passwd USER` does"
        elif not user or len(user) > _LONGEST_NAME or not user.isprintable():
            wrong = f"a user name has 1 to {_LONGEST_NAME} printable characters"
        elif user in users:
            wrong = f"{escape(user)} is there twice; remove one of the lines"
        else:
            try:
                check_hash(hashed)
            except PasswordError as error:
                wrong = f"{error}; make the line with: netsvc passwd USER"
        if wrong:
            errors.append(f"{shown}:{number}: {wrong}")
        users[user] = hashed
    if len(users) > MOST_USERS:
        errors.append(f"{shown}: more than {MOST_USERS} users")
    if not users:
        errors.append(f"{shown}: no user; add one with: netsvc passwd USER FILE")
    if errors:
        raise UserError(errors[:10])
    return users


class FilesAccess:
    """The token and the users in force. Changed files are read again; if they cannot be, the old ones stay in force.

    `plain`: also over connections that others can read.
    """

    def __init__(self, token_file: str | None, users_file: str | None, clock: Any, log: Logger, *, plain: bool) -> None:
        self.plain = plain
        self._token_file = token_file
        self._users_file = users_file
        self._files = [path for path in (token_file, users_file) if path is not None]
        self._clock = clock
        self._log = log
        self._token = b""
        self.users: Mapping[str, str] = {}
        self._stamps: list[object] = []
        self._looked = 0.0
        #: The last error, which is logged once.
        self._error = ""

    @property
    def schemes(self) -> str:
        """The value of WWW-Authenticate. Browsers ask for a name and a password."""
        return 'Basic realm="files", charset="UTF-8"' + (", Bearer" if self._token_file is not None else "")

    def read(self) -> None:
        """Read the files. Raises `UserError`."""
        stamps = [_stamp(path) for path in self._files]
        token, users = b"", dict[str, str]()
        if self._token_file is not None:
            try:
                token = read_token(self._token_file)
            except ValueError as error:
                raise UserError([f"files token {error}"]) from None
        if self._users_file is not None:
            try:
                data = read_file(self._users_file, LONGEST_FILE)
            except OSError as error:
                cure = "write one with: netsvc passwd USER FILE"
                raise UserError([f"files users {escape(self._users_file, 4096)}: {error.strerror}; {cure}"]) from None
            users = parse_users(data, self._users_file)
        self._token, self.users, self._stamps = token, users, stamps

    def start(self) -> None:
        """Read the files, and warn if others can. Raises `UserError`."""
        self.read()
        self._looked = self._clock.seconds()
        for path in self._files:
            if may_be_read_by_others(path):
                self._log.warn("{path} can be read by other users; run: chmod 600 {path}", path=escape(path, 4096))

    def refresh(self) -> None:
        """Read the files again if they have changed, after a look at most once in `LOOK` seconds."""
        now = self._clock.seconds()
        if 0 <= now - self._looked < LOOK:
            return
        self._looked = now
        if [_stamp(path) for path in self._files] == self._stamps:
            return
        try:
            self.read()
        except UserError as error:
            if str(error) != self._error:
                self._error = str(error)
                self._log.error("{reason}; the previous content stays in force", reason="; ".join(error.errors))
        else:
            self._error = ""
            self._log.info("tokens and users were read again")

    def is_token(self, secret: bytes) -> bool:
        """Return whether it is the token."""
        return bool(self._token) and compare_digest(_digest(secret), _digest(self._token))


def _stamp(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class GuardedSite:
    """Passes on the requests of clients with the right credentials, and refuses all others.

    A request for OPTIONS needs none: browsers send it without (Fetch, CORS-preflight fetch).
    """

    def __init__(self, access: FilesAccess, clock: Any, serve: Callable[[Exchange], object], refuse: Refuse) -> None:
        self._access = access
        self._clock = clock
        self._serve = serve
        self._refuse = refuse
        self._guesses = PeerBuckets(RATE, BURST, clock.seconds())
        self._turns = DeferredSemaphore(AT_ONCE)
        self._secret = secrets.token_bytes(32)
        #: Passwords that were right, by their keyed digests: the hash that they have, and until when it holds.
        self._right: dict[bytes, tuple[str, float]] = {}
        #: The requests that wait for the same password to be checked.
        self._pending: dict[bytes, list[Exchange]] = {}

    def serve(self, exchange: Exchange) -> None:
        """Answer a request; see `HTTPFactory`."""
        request, access = exchange.request, self._access
        if request.method == b"OPTIONS":
            self._serve(exchange)
            return
        if not access.plain and not is_confidential(exchange.connection.transport):
            self._deny(exchange, HTTPStatus.FORBIDDEN, "not encrypted")
            return
        access.refresh()
        first, slash, rest = request.path[1:].partition(b"/")
        if access.is_token(first):
            self._admit_below(exchange, first, slash + rest)
            return
        try:
            credentials = parse_credentials(request)
        except ValueError as error:
            self._challenge(exchange, str(error))
            return
        if credentials is None:
            self._challenge(exchange, "no credentials")
            return
        now, peer = self._clock.seconds(), peer_key(getattr(exchange.peer, "host", ""))
        key = self._key(credentials)
        if self._is_right(key, credentials, now):
            exchange.user = credentials.user or ""
            self._serve(exchange)
            return
        if key in self._pending:
            self._pending[key].append(exchange)
            return
        if (wait := self._guesses.wait(peer, now)) > 0:
            headers = {"Retry-After": str(ceil(wait))}
            self._deny(exchange, HTTPStatus.TOO_MANY_REQUESTS, "too many wrong credentials", headers)
            return
        if access.is_token(credentials.secret.encode("utf-8", "surrogatepass")):
            self._serve(exchange)
            return
        self._guesses.take(peer, now)
        if credentials.user is None or not access.users:
            self._challenge(exchange, "wrong credentials")
        elif len(self._turns.waiting) >= MOST_WAITING:
            self._guesses.give_back(peer, now)
            self._deny(exchange, HTTPStatus.SERVICE_UNAVAILABLE, "too many logins", {"Retry-After": "5"})
        else:
            self._verify(key, credentials.user, credentials.secret, peer, exchange)

    def _admit_below(self, exchange: Exchange, token: bytes, path: bytes) -> None:
        """Serve a path below one that begins with the token, which no log gets to see."""
        request = exchange.request
        if not path:
            # Links are relative to a directory.
            where, _, query = request.target.partition(b"?")
            target = b"/" + where.strip(b"/") + b"/" + (b"?" + query if query else b"")
            self._deny(exchange, HTTPStatus.MOVED_PERMANENTLY, "moved", {"Location": target.decode("ascii")})
            return
        request.path = path
        exchange.target = b"/" + request.target[1:].partition(b"/")[2]
        self._serve(exchange)

    def _key(self, credentials: Credentials) -> bytes:
        text = f"{credentials.user}\0{credentials.secret}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._secret, digest_size=32).digest()

    def _is_right(self, key: bytes, credentials: Credentials, now: float) -> bool:
        hashed, until = self._right.get(key, ("", 0.0))
        return bool(hashed) and now < until and self._access.users.get(credentials.user or "") == hashed

    def _verify(self, key: bytes, user: str, password: str, peer: str, exchange: Exchange) -> None:
        self._pending[key] = [exchange]
        hashed = self._access.users.get(user, "")
        checking = self._turns.run(self._in_thread, password, hashed or dummy_hash())

        def checked(result: bool | Failure) -> None:
            waiting = self._pending.pop(key)
            now = self._clock.seconds()
            if isinstance(result, Failure):
                for each in waiting:
                    self._deny(each, HTTPStatus.SERVICE_UNAVAILABLE, f"cannot be checked ({result.value})")
            elif not (result and hashed):
                for each in waiting:
                    self._challenge(each, "wrong credentials")
            else:
                self._guesses.give_back(peer, now)
                self._right[key] = (hashed, now + REMEMBERED)
                if len(self._right) > MOST_REMEMBERED:
                    del self._right[next(iter(self._right))]
                for each in waiting:
                    each.user = user
                    self._serve(each)

        checking.addBoth(checked)

    def _in_thread(self, password: str, hashed: str) -> Deferred[bool]:
        clock = self._clock
        if not hasattr(clock, "getThreadPool"):
            return maybeDeferred(verify_password, password, hashed)
        return deferToThreadPool(clock, clock.getThreadPool(), verify_password, password, hashed)

    def _challenge(self, exchange: Exchange, reason: str) -> None:
        self._deny(exchange, HTTPStatus.UNAUTHORIZED, reason, {"WWW-Authenticate": self._access.schemes})

    def _deny(self, exchange: Exchange, status: HTTPStatus, reason: str, headers: dict[str, str] | None = None) -> None:
        # What the client asks for could be a token with a slip of the pen, and is not logged.
        exchange.request.path = exchange.target = b"/"
        self._refuse(exchange, status, reason, headers or {})
