"""Downloads: every size, every client, every end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from netsvc.services.files.classic import Classic
from netsvc.services.files.core import ON_ITS_WAY
from netsvc.services.files.download import BLOCK, Download
from netsvc.services.files.transport import LINGER
from tests.builders.files import Served, pattern, serve


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from serve(tmp_path)


def test_a_half_close_ends_the_name_and_the_client_still_gets_its_file(served: Served) -> None:
    transport = served.ask(b"%d" % (5 * BLOCK), window=1000)
    transport.half_close()
    assert not transport.ended
    transport.take(1 << 30)
    assert transport.value() == pattern(5 * BLOCK)
    assert not transport.connected
    assert served.results == [(str(5 * BLOCK), 5 * BLOCK, "sent")]


def test_a_half_close_in_the_middle_of_a_download_does_not_end_it(served: Served) -> None:
    transport = served.ask(b"%d\n" % (5 * BLOCK), window=1000)
    transport.half_close()
    transport.take(1 << 30)
    assert transport.value() == pattern(5 * BLOCK)
    assert not transport.connected


def test_a_half_close_while_the_last_block_is_on_its_way_loses_nothing(served: Served) -> None:
    transport = served.ask(b"f\n", window=3)
    transport.half_close()
    assert served.results == []
    transport.take(10)
    assert transport.value() == b"content"
    assert not transport.connected
    assert served.results == [("f", 7, "sent")]


def test_what_follows_the_name_is_read_so_that_the_file_is_not_cut_by_a_reset(served: Served) -> None:
    transport = served.ask(b"%d\nmore" % (5 * BLOCK), window=1000)
    transport.feed(b"x" * 100_000)
    assert transport.reading
    transport.take(1 << 30)
    transport.feed(b"x" * 100_000)
    assert transport.reading
    assert transport.value() == pattern(5 * BLOCK)
    assert served.results == [(str(5 * BLOCK), 5 * BLOCK, "sent")]


def test_a_client_that_does_not_close_is_closed_after_a_while(served: Served) -> None:
    transport = served.ask(b"f\n")
    served.clock.advance(LINGER - 0.1)
    assert transport.connected
    transport.feed(b"more")
    served.clock.advance(0.1)
    assert not transport.connected
    assert not transport.aborted


def test_a_client_that_reads_slowly_costs_one_block_and_has_all_the_time(served: Served) -> None:
    size = 5 * BLOCK
    transport = served.ask(b"%d\n" % size, window=0)
    most = 0
    for _ in range(size // 1000 + 1):
        most = max(most, len(transport.dataBuffer) + transport._tempDataLen)
        served.clock.advance(60)
        transport.take(1000)
    assert transport.value() == pattern(size)
    assert most <= BLOCK
    ((_, sent, result),) = served.results
    assert (sent, result) == (size, "sent")
    assert served.events[0]["seconds"] > 600


def test_a_client_that_goes_away_is_logged_and_its_file_is_closed(served: Served) -> None:
    transport = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    assert served.bench.core.downloads == 1
    transport.lose()
    assert served.bench.core.downloads == 0
    assert served.results == [(str(5 * BLOCK), BLOCK, "client went away")]


def test_a_connection_that_the_server_cuts_off_is_not_laid_to_the_client(served: Served) -> None:
    transport = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    transport.abortConnection()
    served.clock.advance(0)
    assert served.results == [(str(5 * BLOCK), BLOCK, "cut off")]


def test_a_client_that_goes_away_before_the_last_bytes_is_no_success(served: Served) -> None:
    transport = served.ask(b"f\n", window=3)
    transport.lose()
    assert served.results == [("f", 7, "client went away")]


@pytest.mark.parametrize("shorter", [0, 100, BLOCK])
def test_a_file_that_shrinks_ends_with_a_reset(served: Served, shorter: int) -> None:
    transport = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    os.truncate(served.root / str(5 * BLOCK), shorter)
    transport.take(1 << 30)
    assert transport.aborted
    assert not transport.connected
    assert served.results == [(str(5 * BLOCK), BLOCK, "file shrank")]


def test_a_small_file_that_shrinks_is_cut_as_well(served: Served) -> None:
    file = served.bench.core.open(b"f")
    os.truncate(served.root / "f", 3)
    ended: list[str | None] = []
    core = served.bench.core
    Download(file, StringTransport(), ended.append, core.ahead, core.shares).start()
    assert ended == ["file shrank"]


def test_a_file_that_grows_is_sent_at_its_old_size(served: Served) -> None:
    transport = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    with (served.root / str(5 * BLOCK)).open("ab") as more:
        more.write(b"more")
    transport.take(1 << 30)
    assert transport.value() == pattern(5 * BLOCK)
    assert transport.ended


def test_a_file_that_is_replaced_or_removed_is_sent_as_it_was(served: Served) -> None:
    transport = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    (served.root / str(5 * BLOCK)).unlink()
    transport.take(1 << 30)
    assert transport.value() == pattern(5 * BLOCK)


def test_downloads_over_the_limit_are_reset_and_not_taken_for_missing_files(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(pattern(2 * BLOCK))
    served = Served(tmp_path, downloads="2")
    busy = [served.ask(b"big\n", window=10) for _ in range(2)]
    third = served.ask(b"big\n")
    assert (third.value(), third.aborted) == (b"", True)
    assert served.results == [("big", 0, "too many downloads")]
    busy[0].lose()
    assert served.ask(b"big\n").value() == pattern(2 * BLOCK)
    for transport in list(served.clock.connections):
        transport.lose()
    served.bench.stop()


def test_clients_that_never_read_cannot_keep_every_place(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(pattern(9 * BLOCK))
    served = Served(tmp_path, downloads="10")
    stalled = [served.ask(b"big\n", window=10) for _ in range(10)]
    slow = stalled.pop()
    served.clock.advance(29)
    slow.take(BLOCK)
    served.clock.advance(1)
    for transport in stalled:
        newcomer = served.ask(b"big\n", window=10)
        assert (newcomer.aborted, transport.aborted) == (False, True)
    assert served.ask(b"big\n").aborted
    assert not slow.aborted
    results = [result for _, _, result in served.results]
    assert results == ["stalled, and gave way to another"] * 9 + ["too many downloads"]
    slow.take(1 << 30)
    assert slow.value() == pattern(9 * BLOCK)
    for transport in list(served.clock.connections):
        transport.lose()
    served.bench.stop()


def test_a_drain_closes_what_waits_and_lets_downloads_finish(served: Served) -> None:
    idle, partly = served.connect(), served.ask(b"f")
    busy = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    done = served.bench.drain()
    assert done is not None
    # A name that is on its way is waited for.
    on_its_way = served.ask(b"f\n")
    assert on_its_way.value() == b"content"
    served.clock.advance(ON_ITS_WAY)
    # Closed in order, they would take the file for missing.
    assert (idle.value(), idle.connected, idle.aborted) == (b"", 0, True)
    assert (partly.value(), partly.connected, partly.aborted) == (b"", 0, True)
    late = served.connect()
    assert (late.value(), late.aborted) == (b"", True)
    assert not done.called
    busy.take(1 << 30)
    assert busy.value() == pattern(5 * BLOCK)
    assert done.called
    assert served.results == [("f", 7, "sent"), (str(5 * BLOCK), 5 * BLOCK, "sent")]


def test_a_connection_that_the_host_half_closes_ends_and_answers_no_name(served: Served) -> None:
    transport = served.connect()
    transport.loseWriteConnection()
    served.clock.advance(0)
    assert not transport.connected


def test_a_download_that_the_host_half_closes_goes_on_to_its_end(served: Served) -> None:
    transport = served.ask(b"%d\n" % (5 * BLOCK), window=10)
    transport.loseWriteConnection()
    transport.take(1 << 30)
    assert transport.value() == pattern(5 * BLOCK)
    assert served.results == [(str(5 * BLOCK), 5 * BLOCK, "sent")]


class LoudTransport(StringTransport):
    """Loses the connection in the middle of a write, as a transport may that sends at once."""

    protocol: Classic

    def write(self, data: bytes) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def loseConnection(self) -> None:
        raise AssertionError("the connection is lost already")

    abortConnection = loseConnection


@pytest.mark.parametrize("name", ["f", str(5 * BLOCK)])
def test_a_connection_lost_in_the_middle_of_a_write_is_left_alone(served: Served, name: str) -> None:
    protocol: Any = served.bench.factory("classic").buildProtocol(None)  # type: ignore[arg-type]
    transport: Any = LoudTransport()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    protocol.dataReceived(name.encode() + b"\n")
    if transport.producer is not None:
        transport.producer.resumeProducing()
    assert [result for _, _, result in served.results] == ["client went away"]
    assert served.bench.core.downloads == 0


def test_a_transport_that_cannot_half_close_is_closed(served: Served) -> None:
    protocol: Any = served.bench.factory("classic").buildProtocol(None)  # type: ignore[arg-type]
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(b"f\n")
    assert transport.value() == b"content"
    assert transport.disconnecting
    assert served.events == []
    protocol.connectionLost(Failure(ConnectionDone()))
    assert served.results == [("f", 7, "sent")]
