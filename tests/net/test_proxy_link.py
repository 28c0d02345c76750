from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from netsvc.upgrade.proxy import ProxyLink, ProxyProcess


class Reading(Clock):
    """Notes who is read."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    removeWriter = removeReader


@pytest.fixture
def orphaned() -> list[str]:
    return []


def ward(reactor: Reading, orphaned: list[str]) -> tuple[socket.socket, ProxyLink]:
    mine, theirs = socket.socketpair()
    return mine, ProxyLink(reactor, theirs.detach(), lambda: orphaned.append("orphaned"))


def test_who_takes_charge_says_so_and_watches_the_stand_in(orphaned: list[str]) -> None:
    reactor = Reading()
    mine, charge = ward(reactor, orphaned)
    charge.take_charge()
    assert reactor.readers == {charge}
    assert mine.recv(100) == b"%d\n" % os.getpid()
    assert charge.doRead() is None
    mine.send(b"what nobody says")
    assert charge.doRead() is None
    mine.close()
    reason = charge.doRead()
    assert reason is not None
    charge.connectionLost(Failure(reason))
    assert orphaned == ["orphaned"]
    assert not reactor.readers
    assert isinstance(charge.doRead(), ConnectionLost)


def test_who_hands_over_watches_it_no_more(orphaned: list[str]) -> None:
    reactor = Reading()
    mine, charge = ward(reactor, orphaned)
    mine.close()
    # It has gone in this moment.
    charge.take_charge()
    charge.hand_over()
    assert not reactor.readers
    assert not orphaned


def test_one_that_is_not_needed_leaves_nothing() -> None:
    standin = ProxyProcess()
    descriptor = standin.remote.fileno()
    standin.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
