"""Puts a server under load, and counts what is refused or lost."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from types import TracebackType

#: A second, each: connections over TCP and UNIX together, and datagrams.
CONNECTIONS, DATAGRAMS = 200, 1000
#: UDP sockets that they come from: each is a peer.
PEERS = 20
#: Seconds for an answer to come on a loaded machine.
PATIENCE = 60.0


class Load:
    """Connects and sends datagrams at a steady rate to echo services, from a thread of its own, until it is left.

    `failures` counts what went wrong with connections, by what; `connected`, `sent` and `answered` what did not.
    """

    def __init__(self, port: int, path: str | None = None, datagrams: bool = True) -> None:
        self.failures: Counter[str] = Counter()
        self.connected = 0
        self.sent: set[bytes] = set()
        self.answered: set[bytes] = set()
        self._port = port
        self._path = path
        self._datagrams = datagrams
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    @property
    def lost(self) -> int:
        """How many datagrams had no answer."""
        return len(self.sent - self.answered)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(self._connect_all(), self._send_all())

    async def _connect_all(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        number = 0
        while not self._ending.is_set():
            task = asyncio.create_task(self._talk(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            await asyncio.sleep(1 / CONNECTIONS)
        if tasks:
            await asyncio.wait(tasks)

    async def _talk(self, number: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                if self._path is not None and number % 2:
                    reader, writer = await asyncio.open_unix_connection(self._path)
                else:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                words = b"connection %d\n" % number
                writer.write(words)
                said = await reader.readline()
                writer.close()
                await writer.wait_closed()
                if said != words:
                    self.failures[f"{said!r} in place of {words!r}"] += 1
                self.connected += 1
        except (OSError, TimeoutError) as error:
            self.failures[f"{number % 2}: {error!r}"] += 1

    async def _send_all(self) -> None:
        if not self._datagrams:
            return
        loop = asyncio.get_running_loop()
        sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(PEERS)]
        for each in sockets:
            each.setblocking(False)
            each.connect(("127.0.0.1", self._port))
            loop.add_reader(each, self._read, each)
        number = 0
        while not self._ending.is_set():
            for each in sockets:
                words = b"datagram %d" % number
                number += 1
                self.sent.add(words)
                each.send(words)
            await asyncio.sleep(PEERS / DATAGRAMS)
        deadline = loop.time() + PATIENCE
        while self.lost and loop.time() < deadline:
            await asyncio.sleep(0.01)
        for each in sockets:
            loop.remove_reader(each)
            each.close()

    def _read(self, connected: socket.socket) -> None:
        while True:
            try:
                self.answered.add(connected.recv(100))
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self.failures["a datagram was refused"] += 1
