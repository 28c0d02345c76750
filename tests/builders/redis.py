"""A real Redis for tests, on a UNIX socket, and a link to it whose answers come at once."""

from __future__ import annotations

import atexit
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from netsvc.services.chat.store.interface import StoreLimits
from netsvc.services.chat.store.redis import RedisStore
from netsvc.services.chat.store.redis_link import LinkError, RedisAddress, RefusedError
from netsvc.services.chat.store.redis_scripts import BATCH
from tests.builders.stores import Kit

_PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """A redis-server without a port. It keeps nothing, unless `arguments` say so."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        if _PROGRAM is None:
            pytest.skip("no redis-server here")
        self.path = str(directory / "redis.sock")
        self._command = [_PROGRAM, "--port", "0", "--unixsocket", self.path, "--dir", str(directory)]
        self._command += ["--save", "", "--appendonly", "no", *arguments]
        self.start()

    def start(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self.process.stdout
        for line in self.process.stdout:
            if b"eady to accept connections" in line:
                return
        raise AssertionError("redis-server did not start")

    def stop(self) -> None:
        self.process.terminate()
        self._wait()

    def kill(self) -> None:
        self.process.kill()
        self._wait()

    def _wait(self) -> None:
        assert self.process.stdout
        self.process.stdout.close()
        self.process.wait()


@cache
def shared_server() -> RedisServer:
    """The one that the tests of a process share, each with a prefix of its own."""
    directory = Path(tempfile.mkdtemp())
    server = RedisServer(directory)

    def end() -> None:
        server.stop()
        shutil.rmtree(directory)

    atexit.register(end)
    return server


def new_prefix() -> str:
    return f"{secrets.token_hex(8)}:"


class DirectLink:
    """A link that waits for each answer. What a test appends to `faults` happens to the next commands.

    Each fault is given a function that asks Redis, and returns the answer or raises.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        #: Why it cannot connect now.
        self.away = ""
        self.faults: list[Callable[[Callable[[], Any]], Any]] = []
        #: What happens to the next script that writes.
        self.write_fault: Callable[[Callable[[], Any]], Any] | None = None
        #: Whether answers wait until the test calls `go_on`.
        self.held = False
        self._waiting: list[Callable[[], None]] = []
        self.sent: list[tuple[Any, ...]] = []

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    def connect(self) -> Deferred[None]:
        self.close()
        if self.away:
            return fail(LinkError(self.away))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(self._path)
        self._file = self._socket.makefile("rb")
        return succeed(None)

    def close(self) -> None:
        if self._socket is not None:
            self._file.close()
            self._socket.close()
            self._socket = None

    def command(self, *arguments: str | bytes | int) -> Deferred[Any]:
        self.sent.append(arguments)
        if self.away:
            self.close()
        if self._socket is None:
            return fail(LinkError(self.away or "not connected"))
        if self.write_fault and arguments[1] == BATCH:
            self.faults.append(self.write_fault)
            self.write_fault = None
        try:
            result = self.faults.pop(0)(lambda: self.ask(*arguments)) if self.faults else self.ask(*arguments)
        except (LinkError, RefusedError) as error:
            if isinstance(error, LinkError):
                self.close()
            result = error
        answer: Deferred[Any] = Deferred()

        def fire() -> None:
            answer.errback(result) if isinstance(result, Exception) else answer.callback(result)

        if self.held:
            self._waiting.append(fire)
        else:
            fire()
        return answer

    def go_on(self) -> None:
        self.held = False
        waiting, self._waiting = self._waiting, []
        for fire in waiting:
            fire()

    def ask(self, *arguments: str | bytes | int) -> Any:
        """Send a command, and read its answer."""
        encoded = [each if isinstance(each, bytes) else str(each).encode() for each in arguments]
        parts = [b"$%d\r\n%s\r\n" % (len(each), each) for each in encoded]
        assert self._socket is not None
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(parts))
        return self._read()

    def _read(self) -> Any:
        line = self._file.readline()[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RefusedError(rest.decode())
        if kind == b":":
            return int(rest)
        count = int(rest)
        if count < 0:
            return None
        if kind == b"$":
            return self._file.read(count + 2)[:-2]
        return [self._read() for _ in range(count)]


def lose_before(_ask: Callable[[], Any]) -> Any:
    """The connection is lost before Redis gets the command."""
    raise LinkError("the connection was lost")


def lose_after(ask: Callable[[], Any]) -> Any:
    """The connection is lost before the answer comes: Redis has done it."""
    ask()
    raise LinkError("the connection was lost")


def refuse(text: str) -> Callable[[Callable[[], Any]], Any]:
    """Redis answers with an error."""

    def fault(_ask: Callable[[], Any]) -> Any:
        raise RefusedError(text)

    return fault


class RedisKit(Kit):
    """A store in Redis, in the hands of a test."""

    def __init__(self, limits: StoreLimits | None = None, prefix: str = "", server: RedisServer | None = None) -> None:
        self.server = server or shared_server()
        self.address = RedisAddress(path=self.server.path, prefix=prefix or new_prefix())
        self.links: list[DirectLink] = []

        def build(kit: Kit) -> RedisStore:
            self.links.append(DirectLink(self.server.path))
            limits_ = limits or StoreLimits()
            return RedisStore(
                self.address, limits_, kit.clock, Logger("netsvc.chat"), now=lambda: kit.time, link=self.links[-1]
            )

        super().__init__(build)

    @property
    def link(self) -> DirectLink:
        return self.links[-1]


def redis_kit(_directory: Path, limits: StoreLimits) -> Kit:
    return RedisKit(limits)
