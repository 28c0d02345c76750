"""What is not in memory is read by a thread, while the others go on."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from netsvc.services.files.download import Download
from netsvc.services.files.file import AHEAD, THREADS, OpenFile, ReadAhead
from netsvc.testing.wire import FakeTransport, MemoryReactor, attach
from tests.builders.files import ColdFile, ThreadedClock, ThreadedReactor, make_core, open_below, open_cold, pattern


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "big").write_bytes(pattern(3 * AHEAD + 1))
    return tmp_path


class Bench:
    """A core, and downloads of cold files over it."""

    def __init__(self, root: Path) -> None:
        self.reactor = ThreadedReactor()
        self.core, self.events = make_core(root, self.reactor)
        self.core.start()
        self.ended: list[str | None] = []

    def download(self, name: bytes, transport: Any) -> ColdFile:
        file = open_cold(self.core, name)
        Download(file, transport, self.ended.append, self.core.ahead, self.core.shares).start()
        return file


@pytest.fixture
def bench(root: Path) -> Iterator[Bench]:
    made = Bench(root)
    yield made
    assert made.core.ahead.busy == 0
    assert made.core.shares.eager == 0
    assert made.core.downloads == 0
    made.core.stop()
    assert open_below(root) == []


class Quiet:
    """A protocol that says nothing."""

    def makeConnection(self, transport: Any) -> None:
        pass

    def connectionLost(self, reason: Any) -> None:
        pass


def plain(bench: Bench) -> FakeTransport:
    return attach(Quiet(), bench.reactor, window=1 << 30)  # type: ignore[arg-type]


def test_a_small_file_waits_for_the_disk_and_is_sent_then(bench: Bench) -> None:
    transport = plain(bench)
    bench.download(b"f", transport)
    bench.reactor.turn()
    assert (transport.value(), bench.ended) == (b"", [])
    bench.reactor.work()
    bench.reactor.turn()
    assert (transport.value(), bench.ended) == (b"content", [None])


def test_a_big_file_waits_for_each_part_of_it_and_is_sent_whole(bench: Bench) -> None:
    transport = plain(bench)
    bench.download(b"big", transport)
    waits = 0
    while not bench.ended:
        bench.reactor.turn()
        waits += len(bench.reactor.jobs)
        bench.reactor.work()
        bench.reactor.turn()
    assert transport.value() == pattern(3 * AHEAD + 1)
    assert waits == 4


@pytest.mark.parametrize("name", [b"f", b"big"])
def test_a_transport_that_looks_for_more_while_the_disk_is_waited_for_gets_none_and_is_not_ended(
    bench: Bench, root: Path, name: bytes
) -> None:
    transport = plain(bench)
    file = bench.download(name, transport)
    # As the host does at the end of a drain; the transport then asks its producer.
    transport.loseWriteConnection()
    bench.reactor.turn()
    assert not transport.ended
    file.cold = False
    bench.reactor.work()
    bench.reactor.turn()
    assert transport.value() == (root / os.fsdecode(name)).read_bytes()
    assert transport.ended


def test_a_connection_that_is_lost_while_the_disk_is_waited_for_leaves_nothing(bench: Bench) -> None:
    small, big, waiting = plain(bench), plain(bench), [plain(bench) for _ in range(THREADS)]
    bench.download(b"big", big)
    file = bench.download(b"f", small)
    for transport in waiting:
        bench.download(b"big", transport)
    assert len(bench.reactor.jobs) == THREADS
    for transport in (big, *waiting):
        transport.lose()
    file.close()
    small.lose()
    assert bench.core.downloads == 0
    bench.reactor.work()
    assert bench.ended == []


def test_a_drain_waits_for_a_download_that_waits_for_the_disk(bench: Bench) -> None:
    transport = plain(bench)
    bench.download(b"f", transport)
    done = bench.core.drain()
    assert isinstance(done, Deferred)
    bench.reactor.turn()
    assert not done.called
    bench.reactor.work()
    assert done.called


def test_a_file_that_shrinks_while_it_is_waited_for_is_cut(bench: Bench, root: Path) -> None:
    for name in (b"f", b"big"):
        bench.download(name, plain(bench))
        os.truncate(root / os.fsdecode(name), 0)
    bench.reactor.work()
    assert bench.ended == ["file shrank"] * 2
    for transport in list(bench.reactor.connections):
        transport.lose()


def test_a_few_files_are_read_at_once_and_the_others_in_the_order_in_which_they_asked(root: Path) -> None:
    threads, ready = ThreadedClock(), []
    ahead = ReadAhead(threads)
    files = [OpenFile(os.open(root / "f", os.O_RDONLY), 7, _ignore, ahead.forget) for _ in range(3 * THREADS)]
    for number, file in enumerate(files):
        assert ahead.fetch(file, lambda number=number: ready.append(number))  # type: ignore[misc]
    assert len(threads.jobs) == ahead.busy == THREADS
    # One that is being read, and one that waits.
    files[1].close()
    files[THREADS].close()
    assert len(open_below(root)) == 3 * THREADS - 2 + THREADS
    threads.work()
    assert ready == [number for number in range(3 * THREADS) if number not in (1, THREADS)]
    assert ahead.busy == 0
    for file in files:
        file.close()
    assert open_below(root) == []


def test_with_no_descriptor_left_the_loop_reads_itself(root: Path) -> None:
    threads, ready = ThreadedClock(), []
    ahead = ReadAhead(threads)
    file = OpenFile(os.open(root / "f", os.O_RDONLY), 7, _ignore, ahead.forget)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        assert ahead.fetch(file, lambda: ready.append(1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (threads.jobs, ready) == ([], [])
    threads.advance(0)
    assert (ready, ahead.busy) == ([1], 0)
    file.close()


def test_a_file_that_the_disk_does_not_give_is_ready_all_the_same(root: Path) -> None:
    threads, ready = ThreadedClock(), []
    ahead = ReadAhead(threads)
    file = OpenFile(os.open(root, os.O_RDONLY), 7, _ignore, ahead.forget)
    ahead.fetch(file, lambda: ready.append(1))
    threads.work()
    assert ready == [1]
    file.close()


def test_a_reactor_without_threads_reads_itself(root: Path) -> None:
    reactor = MemoryReactor()
    core, _ = make_core(root, reactor)
    core.start()
    ended: list[str | None] = []
    for name in ("f", "big"):
        transport = attach(Quiet(), reactor, window=1 << 30)  # type: ignore[arg-type]
        Download(open_cold(core, os.fsencode(name)), transport, ended.append, core.ahead, core.shares).start()
        reactor.turn()
        assert transport.value() == (root / name).read_bytes()
        transport.lose()
    assert ended == [None, None]
    core.stop()


def _ignore(file: OpenFile) -> None:
    pass
