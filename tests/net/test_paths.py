"""The file of a UNIX socket that was removed is created again, and files of other programs are left alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from netsvc.listen.port import OpenPort, adopt
from netsvc.listen.socket_file import LOOK_INTERVAL, SocketFiles, watch_file
from tests.builders.facts import states
from tests.builders.listening import opened
from tests.builders.logs import Lines, collected

lines = pytest.fixture(collected)

KINDS = pytest.mark.parametrize("kind", ["stream", "datagram"])


class Watched:
    """One listener whose file is looked at."""

    def __init__(self, text: str, kind: str = "stream") -> None:
        self.clock = Clock()
        self.listening = opened(text, kind)
        self.paths = SocketFiles(self.clock, lambda: [("x y", self.listening)])
        self.paths.note()

    def look(self) -> str:
        """Wait for the next look; return what it has found."""
        self.clock.advance(LOOK_INTERVAL)
        return self.listening.file.problem if self.listening.file else ""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def watched(kind: str, place: Path) -> Iterator[Watched]:
    scheme = "unix" if kind == "stream" else "unixgram"
    made = Watched(f"{scheme}:{place}:mode=640", kind)
    yield made
    made.paths.close()
    made.listening.abandon()
    assert not made.clock.getDelayedCalls()


def taken(kind: str, place: Path) -> socket.socket:
    """Bind a socket of another program there."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
    bound.bind(str(place))
    return bound


def reaches(listening: OpenPort, place: Path) -> bool:
    """Tell whether who goes by the path comes to the port."""
    port: Any = listening.port
    with socket.socket(socket.AF_UNIX, port.socket.type) as peer:
        try:
            peer.connect(str(place))
            if port.socket.type == socket.SOCK_DGRAM:
                peer.send(b"there?")
                return bool(port.socket.recv(99) == b"there?")
            port.socket.accept()[0].close()
        except OSError:
            return False
        return True


@KINDS
def test_a_file_that_is_there_is_left_as_it_is(watched: Watched, place: Path, lines: Lines) -> None:
    before = place.lstat()
    for _ in range(3):
        assert watched.look() == ""
    assert place.lstat() == before
    assert lines == []


@KINDS
def test_a_file_that_is_gone_is_made_again_and_told_of(watched: Watched, place: Path, lines: Lines) -> None:
    for _ in range(2):
        place.unlink()
        assert not reaches(watched.listening, place)
        assert watched.look() == ""
        assert reaches(watched.listening, place)
        assert stat.S_IMODE(place.lstat().st_mode) == 0o640
        assert states(lines.pop(), "x y", place, "removed", "created")
        assert lines == []
    port: Any = watched.listening.port
    assert port in port.reactor.getReaders()


def test_so_is_its_lock(place: Path) -> None:
    watched = Watched(f"unix:{place}")
    lock = Path(f"{place}.lock")
    place.unlink()
    lock.unlink()
    assert watched.look() == ""
    assert os.readlink(lock) == str(os.getpid())
    watched.paths.close()
    watched.listening.abandon()
    assert not lock.is_symlink()


def test_a_lock_of_another_process_is_left_to_it(place: Path, lines: Lines) -> None:
    watched = Watched(f"unix:{place}")
    lock = Path(f"{place}.lock")
    place.unlink()
    lock.unlink()
    lock.symlink_to(str(os.getppid()))
    problem = f"{place}: its file was removed, and cannot be created: another process holds its lock"
    assert [watched.look() for _ in range(3)] == [problem] * 3
    lock.unlink()
    lock.symlink_to(str(os.getpid()))
    assert watched.look() == ""
    # Once each, however long it lasts.
    assert len(lines) == 3
    watched.paths.close()
    watched.listening.abandon()


@KINDS
def test_another_s_file_is_told_of_once_and_not_removed(kind: str, watched: Watched, place: Path, lines: Lines) -> None:
    place.unlink()
    with taken(kind, place):
        problem = f"{place}: its file has been replaced; stop the program that uses this path, and remove the file"
        assert [watched.look() for _ in range(3)] == [problem] * 3
        assert len(lines) == 1 and states(lines[0], "x y", "not reachable", problem)
    place.unlink()
    assert watched.look() == ""
    _, created, reachable = lines
    assert states(created, "x y", place, "removed", "created")
    assert states(reachable, "x y", "reachable", place)


@KINDS
@pytest.mark.parametrize("by", ["abandon", "stop"])
def test_at_the_end_another_s_file_is_still_there(kind: str, by: str, watched: Watched, place: Path) -> None:
    place.unlink()
    with taken(kind, place):
        if by == "abandon":
            watched.listening.abandon()
        else:
            # What it does in the reactor's next turn it would do to this name.
            watched.listening._spare_file()
            watched.listening.abandon()
        assert place.is_socket()
        watched.listening.abandon = lambda: None  # type: ignore[method-assign]


@KINDS
def test_a_directory_that_is_gone_is_told_of_and_waited_for(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    scheme = "unix" if kind == "stream" else "unixgram"
    watched = Watched(f"{scheme}:{directory}/s:{'lockfile=0' if kind == 'stream' else 'mode=666'}", kind)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    assert states(watched.look(), "removed", "cannot be created", "no such file or directory")
    directory.mkdir()
    assert watched.look() == ""
    assert reaches(watched.listening, directory / "s")
    watched.paths.close()
    watched.listening.abandon()


def test_what_cannot_be_seen_is_not_touched(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    watched = Watched(f"unixgram:{directory}/s", "datagram")
    # As a path that became too long would be: another error than that there is nothing.
    (directory / "s").unlink()
    directory.rmdir()
    directory.symlink_to(directory)
    assert watched.look() == ""
    assert watched.listening.file is not None and watched.listening.file.is_there()
    directory.unlink()
    watched.paths.close()
    watched.listening.abandon()


@KINDS
def test_who_waits_at_the_old_socket_is_served_first(watched: Watched, place: Path, kind: str) -> None:
    port: Any = watched.listening.port
    got: list[Any] = []
    if kind == "stream":
        port.factory.buildProtocol = got.append
    else:
        port.protocol.datagramReceived = lambda data, peer: got.append(data)
    with socket.socket(socket.AF_UNIX, port.socket.type) as peer:
        peer.connect(str(place))
        peer.send(b"x")
        place.unlink()
        assert watched.look() == ""
        assert len(got) == 1


def test_a_socket_that_several_processes_have_is_only_told_of(place: Path) -> None:
    watched = Watched(f"unix:{place}")
    held = watched.listening
    held.port.stopReading()  # type: ignore[attr-defined]
    shared = adopted(held.port.socket)  # type: ignore[attr-defined]
    other = SocketFiles(watched.clock, lambda: [("x y", shared)])
    other.note()
    place.unlink()
    watched.paths.close()
    watched.clock.advance(LOOK_INTERVAL)
    assert shared.file is not None
    assert states(shared.file.problem, place, "removed; ", "restart netsvc")
    other.close()
    shared.abandon()
    held.abandon()


@KINDS
def test_a_file_that_goes_again_at_once_is_waited_for(watched: Watched, place: Path) -> None:
    place.unlink()
    take, watched.listening.take_waiting = watched.listening.take_waiting, place.unlink  # type: ignore[method-assign]
    assert states(watched.look(), place, "cannot be created", "removed again")
    watched.listening.take_waiting = take  # type: ignore[method-assign]
    assert watched.look() == ""
    assert reaches(watched.listening, place)


@KINDS
def test_a_port_that_is_paused_stays_so(watched: Watched, place: Path) -> None:
    port: Any = watched.listening.port
    port.stopReading()
    place.unlink()
    watched.look()
    assert port not in port.reactor.getReaders()


def adopted(bound: socket.socket) -> OpenPort:
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, Protocol

    factory = Factory.forProtocol(Protocol)
    factory.noisy = False
    return OpenPort(adopt(reactor, socket.socket(fileno=os.dup(bound.fileno())), factory))


def test_ports_without_a_file_cost_no_look(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0netsvc-test-{os.getpid()}")
        abstract.listen()
        for listening in (opened("127.0.0.1:0"), adopted(abstract)):
            clock = Clock()
            SocketFiles(clock, lambda listening=listening: [("x", listening)]).note()  # type: ignore[misc]
            assert not clock.getDelayedCalls()
            assert listening.file is None
            listening.abandon()
    # Nor one whose file is not to be seen, in another root say.
    listening = opened(f"unix:{tmp_path}/s")
    (tmp_path / "s").unlink()
    watch_file(listening, "x")
    assert listening.file is None
    listening.abandon()
