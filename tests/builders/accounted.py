"""A running host whose accounts are looked at: what its connections have left behind, and what is to be seen of it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netsvc.plan.record import Record
from netsvc.plan.status import ConnectionQuery, ConnectionStatus, ProcessStatus
from tests.builders.processes import PATIENCE
from tests.builders.reloaded import ONE, RunningServer, plan, world

TCP, UDP = "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0"


class Accounts:
    """A running host, and the records of what has ended there."""

    def __init__(self, made: RunningServer) -> None:
        self.world = made
        self.records: list[Record] = []
        made.host.guard.book.record = self.records.append

    def last(self) -> Record:
        """Turn until there is a record, and take it out."""
        self._until(self.records)
        return self.records.pop()

    def status(self, most: int = 100, order: str = "rate", *words: str) -> ProcessStatus:
        found: list[list[ProcessStatus]] = []
        self.world.host.status(ConnectionQuery(most, order, words)).addCallback(found.append)
        self._until(found)
        [[status]] = found
        return status

    def _until(self, found: list[Any]) -> None:
        """Turn until there is something in a list."""
        deadline = time.monotonic() + PATIENCE
        while not found:
            assert time.monotonic() < deadline
            self.world.turn()

    def connections(self, order: str = "rate", *words: str) -> list[ConnectionStatus]:
        return self.status(100, order, *words).connections


@contextmanager
def accounts(*listeners: str, uses: Any = ONE, **limits: Any) -> Iterator[Accounts]:
    with world(plan(uses, *listeners, **limits)) as made:
        yield Accounts(made)


def reset(client: socket.socket) -> None:
    """Break a connection off."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
