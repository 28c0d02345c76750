"""Upgrades of real processes: nobody is refused, nothing is lost, and what goes wrong changes nothing."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.builders.facts import states
from tests.builders.loaded import Load
from tests.builders.processes import (
    PATIENCE,
    TWISTD,
    Server,
    connect,
    datagrams,
    free_port,
    read_all,
    read_exactly,
    run,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

NETSVC = str(Path(TWISTD).parent / "netsvc")


def upgrade(pid: int) -> tuple[int, str]:
    """Run `netsvc upgrade`; return its exit status, and what it says."""
    done = run(NETSVC, "upgrade", "--pid", str(pid))
    return done.returncode, done.stdout + done.stderr


def served_by(said: str) -> int:
    """Return the process that serves now."""
    found = re.fullmatch(r"upgraded: process (\d+) serves now in the place of \d+\n", said)
    assert found, said
    return int(found[1])


def is_there(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something, for as long as a loaded machine may need."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def talks(port: int) -> bool:
    """Tell whether echo answers."""
    with connect(port) as connection:
        connection.sendall(b"hello\n")
        return read_exactly(connection, 6) == b"hello\n"


def children(pid: int) -> list[int]:
    """List the processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def for_nobody() -> bool:
    """Tell whether a user who may do nothing could run this Python."""
    found = [parent.stat().st_mode & 0o001 for parent in Path(sys.executable).resolve().parents]
    return all(found)


def session_of(pid: int) -> list[int]:
    """List the processes that run in the session that a process began."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_there(int(entry.name)):
            with suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == pid:
                    found.append(int(entry.name))
    return found


@contextmanager
def served(*words: str, before: Sequence[str] = ()) -> Iterator[Server]:
    """Run a server to its end, which is that of all processes that have followed it."""
    server = Server([TWISTD, "-n", "--pidfile=", *before, "netsvc", *words])
    try:
        with server:
            server.wait_for("ready$")
            yield server
        wait_until(lambda: not session_of(server.process.pid))
    finally:
        for pid in session_of(server.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_three_upgrades_under_load_refuse_nobody_and_lose_nothing(tmp_path: Path, workers: tuple[str, ...]) -> None:
    port, path = free_port(), str(tmp_path / "echo.sock")
    # Nobody reads the log meanwhile.
    limits = ("--limit", "perip=none", "--limit", "periprate=none", "--access", "off", "--drain", "600")
    with served(*workers, "--tcp", str(port), "--udp", str(port), "--echo-tcp", f"unix:{path}", *limits) as server:
        serving = server.process.pid
        with Load(port, path) as load:
            for _ in range(3):
                before = load.connected
                with connect(port) as kept:
                    kept.sendall(b"before\n")
                    assert read_exactly(kept, 7) == b"before\n"
                    status, said = upgrade(serving)
                    assert status == 0, said
                    serving = served_by(said)
                    # It has until the drain ends.
                    kept.sendall(b"after\n")
                    assert read_exactly(kept, 6) == b"after\n"
                wait_until(lambda before=before: load.connected > before + 100)  # type: ignore[misc]
        assert not load.failures
        assert load.lost == 0
        assert len(load.sent) > 1000
        assert os.readlink(f"{path}.lock") == str(serving)
        assert server.stop() == -signal.SIGTERM
        wait_until(lambda: not is_there(serving))
        assert not Path(path).exists()
        assert not os.path.lexists(f"{path}.lock")


#: A protocol whose module takes its time, or fails, when a file is there.
SLOW = """
import time
from pathlib import Path
from twisted.internet.protocol import Protocol

if Path(__file__).with_name("fail").exists():
    raise RuntimeError("a new version with a mistake")
for _ in range(30000):
    if not Path(__file__).with_name("wait").exists():
        break
    Path(__file__).with_name("here").touch()
    time.sleep(0.01)


class Echo(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)
"""


@contextmanager
def slow_server(directory: Path, port: int) -> Iterator[Server]:
    """Run a server whose next version is as slow, or as wrong, as a test wants it."""
    (directory / "slow.py").write_text(SLOW)
    serve = f"{directory}/slow.py:Echo={port}"
    with served("--serve", serve, "--udp", str(port)) as server:
        yield server


def test_a_new_version_that_cannot_start_changes_nothing_and_its_reason_is_told(tmp_path: Path) -> None:
    port = free_port()
    with slow_server(tmp_path, port) as server:
        (tmp_path / "fail").touch()
        status, said = upgrade(server.process.pid)
        assert status == 1
        assert "a new version with a mistake" in said
        assert "Traceback" not in said
        assert talks(port)
        server.wait_for("not upgraded: .*a new version with a mistake")
        wait_until(lambda: not children(server.process.pid))
        (tmp_path / "fail").unlink()
        status, said = upgrade(server.process.pid)
        assert status == 0, said
        assert talks(port)


def test_a_new_process_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    with slow_server(tmp_path, port) as server:
        (tmp_path / "wait").touch()
        server.process.send_signal(signal.SIGUSR2)
        pid = int(server.wait_for(r"upgrading: process (\d+) starts")[1])
        status, said = upgrade(server.process.pid)
        assert status == 1 and states(said, "netsvc: ", "upgrade")
        assert talks(port)
        os.kill(pid, signal.SIGKILL)
        server.wait_for(r"not upgraded: .*\bsignal 9\b")
        assert talks(port)
        (tmp_path / "wait").unlink()
        served_by(upgrade(server.process.pid)[1])
        assert talks(port)


def test_a_stop_meanwhile_ends_the_new_process_as_well(tmp_path: Path) -> None:
    port = free_port()
    with slow_server(tmp_path, port) as server:
        (tmp_path / "wait").touch()
        server.process.send_signal(signal.SIGUSR2)
        pid = int(server.wait_for(r"upgrading: process (\d+) starts")[1])
        assert server.stop() == -signal.SIGTERM
        wait_until(lambda: not is_there(pid))


def test_a_new_process_that_is_not_ready_ends_when_the_old_one_is_killed(tmp_path: Path) -> None:
    port = free_port()
    with slow_server(tmp_path, port) as server:
        server.process.send_signal(signal.SIGUSR2)
        pid = int(server.wait_for(r"upgrading: process (\d+) starts")[1])
        server.process.kill()
        # Where it was by then does not matter: it serves, or it is gone.
        wait_until(lambda: not is_there(pid) or (is_there(pid) and _answers(port)))
        if is_there(pid):
            os.kill(pid, signal.SIGTERM)
        assert server.wait() == -signal.SIGKILL
        wait_until(lambda: not is_there(pid))


def test_a_new_process_that_is_ready_serves_when_the_old_one_is_killed(tmp_path: Path) -> None:
    port = free_port()
    with slow_server(tmp_path, port) as server:
        (tmp_path / "wait").touch()
        server.process.send_signal(signal.SIGUSR2)
        pid = int(server.wait_for(r"upgrading: process (\d+) starts")[1])
        wait_until((tmp_path / "here").exists)
        server.process.send_signal(signal.SIGSTOP)
        (tmp_path / "wait").unlink()
        server.wait_for("echo udp listens on")
        wait_until(lambda: has_reported(server.process.pid))
        server.process.kill()
        server.wait_for("serves in its place")
        assert talks(port)
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == -signal.SIGKILL


def has_reported(stopped: int) -> bool:
    """Tell whether anything waits for a process that is stopped in a pipe other than its own output."""
    links = Path(f"/proc/{stopped}/fd")
    output = {os.readlink(links / name) for name in ("1", "2")}
    for link in links.iterdir():
        if os.readlink(link).startswith("pipe:") and os.readlink(link) not in output:
            # A pipe that is opened anew is the same one, not another.
            opened = os.open(link, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if int.from_bytes(fcntl.ioctl(opened, termios.FIONREAD, bytes(4)), sys.byteorder):
                    return True
            finally:
                os.close(opened)
    return False


def _answers(port: int) -> bool:
    try:
        return talks(port)
    except OSError:
        return False


def test_a_changed_file_holds_for_the_new_process(tmp_path: Path) -> None:
    first, second, third = free_port(), free_port(), free_port()
    config = tmp_path / "netsvc.toml"
    config.write_text(f"[services.echo]\ntcp = {first}\nudp = {second}\n")
    with served("--config", str(config)) as server:
        config.write_text("[services.echo]\ntcp = 'nowhere'\n")
        status, said = upgrade(server.process.pid)
        assert status == 1
        assert re.match(r"netsvc: .*netsvc.toml:2: ", said)
        assert talks(first)
        config.write_text(f"[services.echo]\ntcp = [{first}, {third}]\n")
        done = run(NETSVC, "upgrade", "--config", str(config))
        served_by(done.stdout)
        assert talks(first)
        assert talks(third)
        # The old process may still be about to end.
        wait_until(lambda: is_refused(second))
        # The name of the file finds the new process, and that can be reloaded, as any.
        config.write_text(f"[services.echo]\ntcp = {third}\nudp = {second}\n")
        wait_until(lambda: run(NETSVC, "reload", "--config", str(config)).returncode == 0)
        assert talks(third)
        wait_until(lambda: not _answers(first))


def is_refused(port: int) -> bool:
    """Tell whether nobody receives datagrams at a port."""
    with datagrams(port) as peer:
        peer.send(b"gone?")
        try:
            peer.recv(10)
        except ConnectionRefusedError:
            return True
    return False


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (3, 2)])
def test_the_number_of_processes_may_change(tmp_path: Path, before: int, after: int) -> None:
    port, path = free_port(), str(tmp_path / "echo.sock")
    config = tmp_path / "netsvc.toml"
    text = (
        "workers = {}\naccess = 'off'\n[limits]\nperip = 'none'\nperiprate = 'none'\n"
        f"[services.echo]\ntcp = [{port}, 'unix:{path}']\nudp = {port}\n"
    )
    config.write_text(text.format(before))
    with served("--config", str(config)) as server:
        config.write_text(text.format(after))
        with Load(port, path) as load:
            wait_until(lambda: load.connected > 50)
            status, said = upgrade(server.process.pid)
            assert status == 0, said
            count = load.connected
            wait_until(lambda: load.connected > count + 100)
        assert not load.failures
        assert load.lost == 0
        pid = served_by(said)
        assert len(children(pid)) == (after if after > 1 else 0)


def test_what_else_listens_is_handed_over_too(tmp_path: Path) -> None:
    path, port = str(tmp_path / "echo.dgram"), free_port()
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("a page")
    web = f"web --listen tcp:{port}:interface=127.0.0.1 --path {tmp_path}/page"
    with served("--tcp", "127.0.0.1:0", "--udp", f"unixgram:{path}", "--with", web) as server:
        number = server.port("echo tcp")
        serving = server.process.pid
        for turn in range(2):
            serving = served_by(upgrade(serving)[1])
            assert talks(number)
            with connect(port) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"a page" in read_all(connection)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                peer.bind(str(tmp_path / f"peer{turn}"))
                peer.settimeout(PATIENCE)
                peer.sendto(b"hello", path)
                assert peer.recv(10) == b"hello"
        assert server.stop() == -signal.SIGTERM
        assert not Path(path).exists()


def test_a_daemon_keeps_its_pid_file_and_its_log(tmp_path: Path) -> None:
    port, pid_file, log = free_port(), tmp_path / "netsvc.pid", tmp_path / "netsvc.log"
    words = [f"--pidfile={pid_file}", f"--logfile={log}", "netsvc", "--tcp", str(port)]
    started = run(TWISTD, *words)
    assert started.returncode == 0, started.stderr
    first = int(pid_file.read_text())
    pids = [first]
    try:
        wait_until(lambda: log.read_text().count("] ready\n") == 1)
        beside = run(TWISTD, *words)
        assert beside.returncode == 1
        assert f"pid file {pid_file} " in beside.stderr
        assert re.search(rf" process {first}\b", beside.stderr)
        status, said = upgrade(first)
        pids.append(served_by(said))
        assert status == 0
        assert int(pid_file.read_text()) == pids[1]
        wait_until(lambda: not is_there(first))
        assert int(pid_file.read_text()) == pids[1]
        assert log.read_text().count("] ready\n") == 2
        assert talks(port)
    finally:
        for pid in pids:
            if is_there(pid):
                os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any(map(is_there, pids)))
    assert not pid_file.exists()


def test_the_first_process_stands_in_for_the_one_in_charge() -> None:
    port = free_port()
    with served("--tcp", str(port)) as server:
        second = served_by(upgrade(server.process.pid)[1])
        words = Path(f"/proc/{server.process.pid}/cmdline")
        wait_until(lambda: b"proxy_process" in words.read_bytes())
        # What is sent to it reaches the other: here, the request for the next upgrade.
        server.process.send_signal(signal.SIGUSR2)
        third = int(server.wait_for(rf"upgraded: process (?!{second} )(\d+) serves")[1])
        wait_until(lambda: children(server.process.pid) == [third])
        assert talks(port)
        # It ends as that one does.
        os.kill(third, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL


def test_who_kills_the_stand_in_ends_the_service() -> None:
    port = free_port()
    with served("--tcp", str(port)) as server:
        second = served_by(upgrade(server.process.pid)[1])
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not is_there(second))


def test_a_command_to_the_old_process_reaches_the_one_that_serves() -> None:
    port = free_port()
    with served("--tcp", str(port), "--drain", "600") as server, connect(port) as kept:
        kept.sendall(b"hello\n")
        assert read_exactly(kept, 6) == b"hello\n"
        old = str(server.process.pid)
        second = served_by(upgrade(server.process.pid)[1])
        # An upgrade, too: of the process that serves.
        done = run(NETSVC, "upgrade", "--pid", old)
        third = served_by(done.stdout)
        assert third not in (server.process.pid, second)
        wait_until(lambda: not is_there(second))
        reloaded = run(NETSVC, "reload", "--pid", old)
        assert (reloaded.returncode, reloaded.stdout) == (0, "reloaded: 1 listener kept\n")
        draining = run(NETSVC, "drain", "--pid", old)
        assert draining.returncode == 0, draining.stderr
        wait_until(lambda: not is_there(third))
        # The conversation of the old process goes on until it ends, as after a SIGTERM.
        kept.sendall(b"still\n")
        assert read_exactly(kept, 6) == b"still\n"


def test_a_stop_while_the_old_process_still_drains_stops_both() -> None:
    port = free_port()
    with served("--tcp", str(port), "--drain", "3") as server, connect(port) as kept:
        kept.sendall(b"hello\n")
        assert read_exactly(kept, 6) == b"hello\n"
        second = served_by(upgrade(server.process.pid)[1])
        assert server.stop() == -signal.SIGTERM
        wait_until(lambda: not is_there(second))


@pytest.mark.skipif(os.geteuid() != 0 or not for_nobody(), reason="needs root, and a Python that everybody may run")
def test_after_its_privileges_are_dropped_it_is_upgraded_as_that_user(tmp_path: Path) -> None:
    port = free_port()
    tmp_path.chmod(0o777)
    with served("--tcp", str(port), before=["--uid", "65534", "--gid", "65534"]) as server:
        status, said = upgrade(server.process.pid)
        assert status == 0, said
        assert Path(f"/proc/{served_by(said)}").stat().st_uid == 65534
        assert talks(port)
        server.stop()
        assert "tried to drop privileges" not in server.log + server.stderr
