"""A real chat with a file: what anyone has seen survives a kill, an upgrade passes the file on, and no two share it."""

from __future__ import annotations

import re
import resource
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, Server, connect, free_port, read_all, twistd

pytestmark = pytest.mark.slow

#: Acknowledged messages: as many as each receiver must have seen before the process is killed.
SEEN = 10_000
SENDERS = 4

#: All that was seen must be there: nothing is trimmed.
UNLIMITED = (
    *("--chat-rate", "1000000", "--chat-burst", "1000000", "--chat-backlog", "1000000"),
    *("--chat-keep-messages", "1000000"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chat.sqlite"


def serve(file: Path, port: int, *more: str) -> Server:
    return Server.twistd("--chat", f"127.0.0.1:{port}", "--chat-store", f"sqlite:{file}", *more)


def kept(file: Path) -> list[str]:
    connection = sqlite3.connect(file)
    try:
        return [text for (text,) in connection.execute("SELECT text FROM message WHERE room = 'lobby' ORDER BY id")]
    finally:
        connection.close()


class Receiver(threading.Thread):
    """Reads the messages that one member of the lobby gets, until the connection ends."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.connection = connect(port)
        self.connection.sendall(b"/topic\n")
        wait_for(self.connection, "no topic")
        self.texts: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        for line in self._lines():
            if found := re.match(r"\[lobby\] guest\d+: (\d+ \d+)$", line):
                self.texts.append(found[1])
                if len(self.texts) == SEEN:
                    self.enough.set()

    def _lines(self) -> Iterator[str]:
        rest = b""
        while True:
            try:
                data = self.connection.recv(1 << 16)
            except ConnectionError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode().rstrip("\r") for line in lines)


def read_to_the_end(connection: socket.socket) -> None:
    with suppress(OSError):
        read_all(connection)


def send(port: int, sender: int) -> None:
    """Send without end, and read what comes, so that nobody waits for this member."""
    with connect(port) as connection:
        threading.Thread(target=read_to_the_end, args=(connection,), daemon=True).start()
        try:
            for number in range(100 * SEEN):
                connection.sendall(b"%d %d\n" % (sender, number))
        except OSError:
            return


def test_none_of_ten_thousand_messages_that_were_seen_is_missing_after_a_kill_and_all_saw_one_order(file: Path) -> None:
    port = free_port()
    with serve(file, port, *UNLIMITED) as server:
        receivers = [Receiver(port) for _ in range(3)]
        senders = [threading.Thread(target=send, args=(port, number), daemon=True) for number in range(SENDERS)]
        for thread in (*receivers, *senders):
            thread.start()
        for receiver in receivers:
            assert receiver.enough.wait(3 * PATIENCE)
        server.process.send_signal(signal.SIGKILL)
        server.wait()
        for receiver in receivers:
            receiver.join(PATIENCE)
            receiver.connection.close()
    texts = kept(file)
    assert len(set(texts)) == len(texts)
    for receiver in receivers:
        assert len(receiver.texts) >= SEEN
        assert receiver.texts == texts[: len(receiver.texts)]
    # Each sender's are in the order in which it sent them, and none is left out.
    for sender in range(SENDERS):
        sent = [text for text in texts if text.startswith(f"{sender} ")]
        assert sent == [f"{sender} {number}" for number in range(len(sent))]
    # And it all is there for the next process.
    with serve(file, port), connect(port) as connection:
        connection.sendall(b"/history 2\n/quit\n")
        shown = read_all(connection).decode()
        assert re.findall(r"\(\d{4}-.*: (\d+ \d+)\r?$", shown, re.M) == texts[-2:]


def test_an_upgrade_passes_the_file_on_and_connections_wait_for_it(file: Path) -> None:
    port = free_port()
    with serve(file, port) as server:
        with connect(port) as ann:
            ann.sendall(b"before\n/topic\n")
            seen = b""
            while b"no topic" not in seen:
                seen += ann.recv(4096)
            server.process.send_signal(signal.SIGUSR2)
            assert b"goodbye" in read_all(ann)
        with connect(port) as bob:
            bob.sendall(b"/quit\n")
            assert b"guest1: before" in read_all(bob)
        server.wait_for("waiting until it has ended")
    assert kept(file) == ["before"]


def test_a_disk_that_takes_no_more_is_reported_to_all_and_found_to_work_again(file: Path) -> None:
    port = free_port()
    with serve(file, port) as server, connect(port) as ann, connect(port) as bob:
        for name, connection in (("ann", ann), ("bob", bob)):
            connection.sendall(f"/nick {name}\n".encode())
            wait_for(connection, f"you are now {name}")
        # When it is delivered, all that was to be written before it is written, the record of the room among it.
        ann.sendall(b"before\n")
        wait_for(bob, "ann: before")
        # What a write beyond the limit gets is no error of a full disk: EFBIG.
        before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        ann.sendall(b"lost\n")
        seen = wait_for(ann, "not sent")
        assert "lost" in seen and "the disk has an error" in seen
        assert "cannot keep messages now" in wait_for(bob, "the chat cannot keep")
        ann.sendall(b"refused\n")
        wait_for(ann, "not sent")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        wait_for(ann, "can keep messages again")
        ann.sendall(b"kept\n")
        assert "refused" not in wait_for(bob, "ann: kept")
    assert kept(file) == ["before", "kept"]


def wait_for(connection: socket.socket, text: str) -> str:
    """Read until a text has come; return all that came."""
    seen = b""
    while text.encode() not in seen:
        data = connection.recv(4096)
        assert data, seen
        seen += data
    return seen.decode()


def test_a_second_netsvc_on_the_file_is_refused_in_one_line(file: Path) -> None:
    with serve(file, free_port()) as server:
        second = twistd(
            "-n", "--pidfile=", "netsvc", "--chat", f"127.0.0.1:{free_port()}", "--chat-store", f"sqlite:{file}"
        )
        assert second.returncode == 1
        lines = [line for line in second.stderr.splitlines() if line.startswith("netsvc: ")]
        assert len(lines) == 1 and str(file) in lines[0] and str(server.process.pid) in lines[0]
