"""Small servers for the clients' tests, in threads, on loopback; and a terminal for the client's process."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from tests.builders.certificates import write_certificate

#: Seconds; no test waits for it unless something is broken.
PATIENCE = 60.0
NETSVC = [sys.executable, "-m", "netsvc"]


@contextmanager
def stream_server(
    converse: Callable[[socket.socket], object], tls: ssl.SSLContext | None = None, path: str | None = None
) -> Iterator[int]:
    """Serve one connection after another with `converse`, which gets a blocking socket."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(path or ("127.0.0.1", 0))
    listener.listen()
    ended = threading.Event()

    def serve() -> None:
        while True:
            accepted = listener.accept()[0]
            with accepted:
                if ended.is_set():
                    return
                accepted.settimeout(PATIENCE)
                with suppress(OSError):
                    if tls is None:
                        converse(accepted)
                    else:
                        with tls.wrap_socket(accepted, server_side=True, suppress_ragged_eofs=False) as wrapped:
                            converse(wrapped)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield 0 if path else listener.getsockname()[1]
    finally:
        ended.set()
        with socket.socket(listener.family) as wake:
            wake.connect(listener.getsockname())
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def datagram_server(answer: Callable[[bytes], bytes | None], path: str | None = None) -> Iterator[int]:
    """Answer datagrams; None is no answer."""
    server = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(path or ("127.0.0.1", 0))

    def serve() -> None:
        while (received := server.recvfrom(65535))[0] != b"end of the test":
            reply = answer(received[0])
            if reply is not None:
                server.sendto(reply, received[1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield 0 if path else server.getsockname()[1]
    finally:
        with socket.socket(server.family, socket.SOCK_DGRAM) as wake:
            wake.sendto(b"end of the test", server.getsockname())
        thread.join(PATIENCE)
        server.close()
        assert not thread.is_alive()


def echo(connection: socket.socket) -> None:
    """Send everything back, and close after the client's end."""
    while data := connection.recv(65536):
        connection.sendall(data)


def read_line(connection: socket.socket) -> bytes:
    """Read up to a line feed, and no further."""
    line = b""
    while not line.endswith(b"\n") and (byte := connection.recv(1)):
        line += byte
    return line


def reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def make_certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """Write a certificate for `localhost`; return its file and the context of a server that has it."""
    key, certificate = write_certificate(directory, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


def netsvc(*words: str, feed: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, with pipes."""
    return subprocess.run([*NETSVC, *words], input=feed, capture_output=True, timeout=PATIENCE, cwd=cwd)


class OnTerminal:
    """The command in a process of its own, on a terminal."""

    def __init__(self, *words: str, cwd: Path | None = None, kind: str = "xterm") -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 100))
        environment = {
            **os.environ,
            "TERM": kind,
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "PYTHONIOENCODING": "utf-8",
            "LC_ALL": "C.UTF-8",
        }
        self.seen = ""
        self.process = subprocess.Popen(
            # The leader of a new session that opens a terminal has it as its own, and so Ctrl-C reaches it.
            ["/bin/sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave), *NETSVC, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        os.close(self._master)

    def echoes(self) -> bool:
        """Tell whether the terminal shows what is typed by itself, as a shell left it."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def read_until(self, text: str) -> str:
        """Read until `text` has been shown; return what was shown since the last call, `text` included."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert self._read(deadline), f"{text!r} was not shown: {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def end(self) -> int:
        """Read to the end; return the exit status. `seen` has what was shown."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:
            # A terminal that nobody has open any more (EIO).
            data = b""
        self.seen += data.decode("utf-8", "replace")
        return bool(data)
