"""A real chat in a real Redis: nothing that anyone has seen is lost when either of them is killed."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, Server, connect, free_port, read_all
from tests.builders.redis import DirectLink, RedisServer

pytestmark = pytest.mark.slow

#: Messages that the receiver must have seen before a kill.
SEEN = 300
UNLIMITED = (
    *("--chat-rate", "1000000", "--chat-burst", "1000000", "--chat-backlog", "1000000"),
    *("--chat-keep-messages", "1000000"),
)
#: As docs/howto/chat-redis.md has it.
PERMISSIONS = ("~netsvc:chat:*", "+@all", "-@dangerous", "+config|get", "+info")


class Receiver(threading.Thread):
    """Reads what one member gets. `reached` waits for so many messages, `told` for a line with a text."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.connection = connect(port)
        self.texts: list[str] = []
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.start()

    def run(self) -> None:
        rest = b""
        while data := self._read():
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                for line in lines:
                    self.lines.append(line.decode().rstrip("\r"))
                    if found := re.match(r"\[lobby\] guest\d+: (\d+)$", self.lines[-1]):
                        self.texts.append(found[1])
                self._changed.notify_all()

    def _read(self) -> bytes:
        try:
            return self.connection.recv(1 << 16)
        except OSError:
            return b""

    def reached(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.texts) >= count, PATIENCE), self.lines[-5:]

    def told(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(text in line for line in self.lines), PATIENCE), self.lines[-5:]


def send(port: int) -> None:
    """Send numbers without end, and read what comes, so that nobody waits for this member."""
    with connect(port) as connection:
        threading.Thread(target=read_to_the_end, args=(connection,), daemon=True).start()
        with suppress(OSError):
            for number in count():
                connection.sendall(b"%d\n" % number)


def read_to_the_end(connection: socket.socket) -> None:
    with suppress(OSError):
        read_all(connection)


def kept(redis: RedisServer) -> list[str]:
    link = DirectLink(redis.path)
    link.connect()
    entries = link.ask("XRANGE", "netsvc:chat:log:lobby", "-", "+")
    link.close()
    return [json.loads(fields[1])[2] for _, fields in entries]


def end_lease(redis: RedisServer) -> None:
    """Let the lease of who was killed end sooner, if it has not ended by itself."""
    link = DirectLink(redis.path)
    link.connect()
    link.ask("PEXPIRE", "netsvc:chat:owner", 100)
    link.close()


def test_nothing_that_was_seen_is_lost_when_redis_and_then_netsvc_are_killed(tmp_path: Path) -> None:
    redis = RedisServer(
        tmp_path, "--appendonly", "yes", "--appendfsync", "always", "--user", "chat", "on", ">geheim", *PERMISSIONS
    )
    (tmp_path / "password").write_text("geheim\n")
    store = f"redis+unix://chat@{redis.path}?password-file={tmp_path / 'password'}"
    port, other = free_port(), free_port()
    try:
        with Server.twistd("--chat", f"127.0.0.1:{port}", "--chat-store", store, *UNLIMITED) as server:
            server.wait_for("survives a crash of Redis and of its machine")
            receiver = Receiver(port)
            receiver.told("you joined")
            threading.Thread(target=send, args=(port,), daemon=True).start()
            receiver.reached(SEEN)
            redis.kill()
            redis.start()
            receiver.told("cannot keep messages now")
            receiver.told("can keep messages again")
            receiver.reached(len(receiver.texts) + SEEN)
            with Server.twistd("--chat", f"127.0.0.1:{other}", "--chat-store", store) as standby:
                standby.wait_for("serves this chat; waiting")
                server.process.send_signal(signal.SIGKILL)
                server.wait()
                end_lease(redis)
                receiver.join(PATIENCE)
                receiver.connection.close()
                with connect(other) as connection:
                    connection.sendall(b"/history 2\n/quit\n")
                    shown = read_all(connection).decode()
                # Not before: until the other one serves, Redis may still do what it got from the one that was killed.
                texts = kept(redis)
                assert receiver.texts == texts[: len(receiver.texts)]
                assert len(set(texts)) == len(texts)
                assert re.findall(r"\(\d{4}-.*: (\d+)\r?$", shown, re.M) == texts[-2:]
    finally:
        redis.stop()
