"""A running host whose accounts are looked at: what its connections have left behind, and what is to be seen of it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netsvc.records import Record
from netsvc.status import ConnectionQuery, ConnectionStatus, ProcessStatus
from tests.reloaded import ONE, World, plan, world

TCP, UDP = "one tcp 127.0.0.1:0", "one udp 127.0.0.1:0"


class Accounts:
    """A running host, and the records of what has ended there."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.records: list[Record] = []
        made.host.guard.book.record = self.records.append

    def last(self) -> Record:
        """Turn until there is a record, and take it out."""
        for _ in range(1000):
            if self.records:
                return self.records.pop()
            self.world.turn()
        raise AssertionError("no record")

    def status(self, most: int = 100, order: str = "rate", *words: str) -> ProcessStatus:
        found: list[list[ProcessStatus]] = []
        self.world.host.status(ConnectionQuery(most, order, words)).addCallback(found.append)
        for _ in range(1000):
            if found:
                [[status]] = found
                return status
            self.world.turn()
        raise AssertionError("no status")

    def connections(self, order: str = "rate", *words: str) -> list[ConnectionStatus]:
        return self.status(100, order, *words).connections


@contextmanager
def accounts(*listeners: str, **limits: Any) -> Iterator[Accounts]:
    with world(plan(ONE, *listeners, **limits)) as made:
        yield Accounts(made)


def reset(client: socket.socket) -> None:
    """Break a connection off."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
