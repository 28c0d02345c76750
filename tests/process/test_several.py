"""Several worker processes, as users run them: they serve, log, die, are replaced, and drain."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.builders.facts import drained
from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server, connect, datagrams, read_all, run
from tests.builders.several import ask, children, make, start, until, until_all_answer, until_gone

#: Real processes, many of them.
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a directory with the service, to work in."""
    return make(tmp_path)


def test_two_workers_serve_every_kind_of_port(place: Path) -> None:
    words = [
        "--who",
        "127.0.0.1:0",
        "--who-udp",
        "0",
        "--who",
        f"unix:{place}/sock",
        "--who-udp",
        f"unixgram:{place}/gram",
    ]
    with start(place, *words, "--who", "tcp6:0:interface=\\:\\:1") as server:
        workers = set(children(server.process.pid))
        assert len(workers) == 2
        for number, host in enumerate(("127.0.0.1", "::1")):
            port = server.port("who tcp", number)

            def ask_stream(port: int = port, host: str = host) -> int:
                with connect(port, host) as stream:
                    return ask(stream)

            until_all_answer(workers, ask_stream)
        for host in ("127.0.0.1", "::1"):

            def ask_datagrams(host: str = host) -> int:
                with datagrams(server.port("who udp"), host) as peer:
                    [same] = {ask(peer) for _ in range(5)}
                    return same

            until_all_answer(workers, ask_datagrams)
        for kind, name in ((socket.SOCK_STREAM, "sock"), (socket.SOCK_DGRAM, "gram")):
            with socket.socket(socket.AF_UNIX, kind) as peer:
                peer.settimeout(PATIENCE)
                if kind == socket.SOCK_DGRAM:
                    peer.bind(f"{place}/peer")
                peer.connect(f"{place}/{name}")
                assert ask(peer) in workers
        assert server.log.count("who tcp listens on") == 3
        assert server.stop() == -signal.SIGTERM
    assert not (place / "sock").exists()
    assert not (place / "gram").exists()
    assert "stopped: 2 workers ended" in server.log
    until_gone(workers)


def test_a_killed_worker_is_replaced_and_nobody_else_notices(place: Path) -> None:
    with start(place, "--who", "127.0.0.1:0") as server:
        port = server.port("who tcp")
        streams = [connect(port) for _ in range(20)]
        served = {stream: ask(stream) for stream in streams}
        victim, other = children(server.process.pid)
        # Until it is gone, there is no next worker.
        (place / "broken").touch()
        os.kill(victim, signal.SIGKILL)
        server.wait_for(rf"worker 1 \(pid {victim}\) .*\bsignal 9; .*\b1 s\b")
        # None of them waits for the next worker.
        during = [connect(port) for _ in range(40)]
        assert {ask(stream) for stream in during} == {other}
        (place / "broken").unlink()
        for stream, pid in served.items():
            if pid == other:
                assert ask(stream) == other
            else:
                assert read_all(stream) == b""
            stream.close()
        server.wait_for(r"worker 1 \(pid \d+\) is ready")

        def ask_new() -> int:
            with connect(port) as stream:
                return ask(stream)

        # The other one hears of it a moment later, and accepts for both before that.
        until_all_answer(set(children(server.process.pid)), ask_new)
        for stream in during:
            stream.close()


def test_what_a_worker_logs_prints_and_raises_is_in_the_one_log_with_its_number(place: Path) -> None:
    with start(place, "--who", "127.0.0.1:0") as server:
        for data, line in (
            (b"log", r"\[who#warn\] \[worker \d\] told to log$"),
            (b"raise", r"RuntimeError: told to raise"),
            (b"part", r"\[stdout#info\] \[worker \d\] the last words, and no end$"),
        ):
            with connect(server.port("who tcp")) as stream:
                stream.send(data)
                server.wait_for(line)
        server.wait_for(r"\bsignal 9; .*\b1 s\b")
        server.stop()
        assert "Traceback" in server.log
        server.lines.clear()


def test_nothing_is_left_when_the_parent_is_killed(place: Path) -> None:
    server = start(place, "--who", "127.0.0.1:0", "--drain", "0.2")
    workers = children(server.process.pid)
    with connect(server.port("who tcp")) as stream:
        ask(stream)
        server.process.kill()
        assert read_all(stream) == b""
    until_gone(workers)
    server.wait()


@pytest.mark.parametrize("cuts", [False, True])
def test_terminated_workers_drain_and_say_what_they_cut(place: Path, cuts: bool) -> None:
    with start(place, "--who", "127.0.0.1:0", "--drain", "0.5" if cuts else "3600") as server:
        workers = children(server.process.pid)
        streams = [connect(server.port("who tcp")) for _ in range(20)]
        count = Counter(map(ask, streams))
        server.process.send_signal(signal.SIGTERM)
        if not cuts:
            for _ in workers:
                server.wait_for("draining")
            server.process.send_signal(signal.SIGTERM)
            assert Counter(map(ask, streams)) == count
        for stream in streams:
            if cuts:
                assert read_all(stream) == b""
            stream.close()
        assert server.wait() == -signal.SIGTERM
        for number, pid in enumerate(workers, 1):
            [stopped] = [line for line in server.log.splitlines() if f"[worker {number}] stopped: " in line]
            if count[pid]:
                by_themselves, closed, cut = drained(stopped)
                # Cut are those that this test did not close within half a second.
                ended = Counter(closed) + Counter(cut)
                assert (by_themselves, ended) == ((0, {"who tcp": count[pid]}) if cuts else (count[pid], {}))


def test_ctrl_c_of_a_terminal_drains_once_and_the_second_does_not_wait(place: Path) -> None:
    with start(place, "--who", "127.0.0.1:0", "--drain", "3600") as server:
        with connect(server.port("who tcp")) as stream:
            ask(stream)
            server.signal_group(signal.SIGINT)
            server.wait_for("draining: 1 connection")
            ask(stream)
            server.signal_group(signal.SIGINT)
            assert server.wait() == -signal.SIGINT
        assert any("cut off" in line and drained(line)[2] == {"who tcp": 1} for line in server.log.splitlines())
        assert "KeyboardInterrupt" not in server.log


def test_a_worker_that_does_not_stop_is_killed(place: Path) -> None:
    with start(place, "--who", "127.0.0.1:0", "--drain", "0.1") as server:
        with connect(server.port("who tcp")) as stream:
            stream.send(b"block")
            server.wait_for("blocks$")
            assert server.stop() == -signal.SIGTERM
    assert "stopped: 2 workers ended, 1 of them killed" in server.log


def test_a_daemon_has_one_log(place: Path) -> None:
    words = [
        TWISTD,
        f"--pidfile={place}/pid",
        f"--logfile={place}/log",
        "netsvc",
        "--workers",
        "2",
        "--who",
        "127.0.0.1:0",
    ]
    assert run(*words, cwd=place, env={"PYTHONPATH": f"{ROOT}:{place}"}).returncode == 0
    log = place / "log"
    until(lambda: "ready\n" in log.read_text())
    pid = int((place / "pid").read_text())
    workers = children(pid)
    with connect(int(re.search(r"listens on .*:(\d+)", log.read_text())[1])) as stream:  # type: ignore[index]
        stream.send(b"log")
        assert int(stream.recv(100)) in workers
    os.kill(pid, signal.SIGTERM)
    until_gone([pid, *workers])
    assert "told to log" in log.read_text()
    assert "stopped: 2 workers ended" in log.read_text()


def test_a_replacement_that_cannot_start_is_tried_again(place: Path) -> None:
    with start(place, "--who", "127.0.0.1:0") as server:
        (place / "broken").touch()
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        server.wait_for("worker 1 cannot start: the file broken is there")
        server.wait_for(r"worker 1 \(pid \d+\) .*\bstatus 1; .*\b2 s\b")
        (place / "broken").unlink()
        server.wait_for(r"worker 1 \(pid \d+\) is ready")


def test_no_datagram_goes_from_one_service_to_another_of_any_worker() -> None:
    with Server.twistd("--workers", "2", "--udp", "127.0.0.1:0", "--reply-udp", "127.0.0.1:0") as server:
        echo = ("127.0.0.1", server.port("echo udp"))
        for last in range(2, 22):
            with socket.socket(type=socket.SOCK_DGRAM) as forged, datagrams(echo[1]) as client:
                forged.bind((f"127.0.0.{last}", server.port("reply udp")))
                forged.sendto(b"hello", echo)
                # A question of the same kind to each worker, so that both have had the forged one before.
                client.send(b"hello")
                assert client.recv(100) == b"hello"
                forged.setblocking(False)
                with pytest.raises(BlockingIOError):
                    forged.recv(100)


def test_files_are_served_and_logged_by_every_worker(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"contents")
    with Server.twistd("--workers", "2", "--files", "127.0.0.1:0", "--files-root", str(tmp_path)) as server:

        def both_have_served() -> bool:
            with connect(server.port("files classic")) as stream:
                stream.sendall(b"name\n")
                assert read_all(stream) == b"contents"
            server.read_log()
            return all(re.search(rf"\[worker {number}\] .*name", server.log) for number in (1, 2))

        until(both_have_served)
