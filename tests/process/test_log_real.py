"""A real server's log is opened anew, and a disk that is full, or a reader that is gone, stops nothing."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netsvc.log.formats import ACCESS_FIELDS, LOG_FIELDS
from tests.builders.facts import states
from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server, connect, datagrams, read_exactly, run, twistd

pytestmark = pytest.mark.slow


def start(log: Path, *words: str, before: tuple[str, ...] = ()) -> tuple[Server, int]:
    """Start an echo server whose log is a file; return it and its port."""
    server = Server(
        [TWISTD, "-n", "--pidfile=", f"--logfile={log}", *before, "netsvc", "--tcp", "127.0.0.1:0", *words],
        cwd=log.parent,
    )
    wait_until(server, lambda: bool(log.exists() and re.search(r"ready\W*$", log.read_text(), re.M)))
    found = re.search(r"echo tcp listens on 127.0.0.1:(\d+)", log.read_text())
    assert found
    return server, int(found[1])


def wait_until(server: Server, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert server.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def echo(port: int, count: int = 1) -> None:
    """Have something echoed, over so many connections."""
    for _ in range(count):
        with connect(port) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"


def records(*logs: Path) -> list[str]:
    return [line for log in logs for line in log.read_text().splitlines() if "[netsvc.access#info]" in line]


def test_a_log_that_was_moved_is_opened_anew_and_no_record_is_lost(tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.old"
    server, port = start(log)
    with server:
        echo(port, 5)
        log.rename(moved)
        echo(port)
        server.process.send_signal(signal.SIGUSR1)
        wait_until(server, log.exists)
        echo(port, 3)
        assert server.stop() == -signal.SIGTERM
    assert len(records(moved, log)) == 9
    line = r"\S+ \[netsvc.access#info\] echo tcp 127.0.0.1:\d+ listener=127.0.0.1:\d+ bytes_in=5 bytes_out=5 seconds="
    assert all(re.match(line, record) for record in records(moved, log))
    assert log.read_text().endswith("Server Shut Down.\n")


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_as_json_every_line_is_an_object_with_the_documented_fields(tmp_path: Path, workers: tuple[str, ...]) -> None:
    log = tmp_path / "log"
    limited = "guard:idle=0.3:127.0.0.1:0"
    server, port = start(log, "--log", "json", "--udp", "127.0.0.1:0", "--tcp", limited, *workers)
    with server:
        echo(port, 20)
        found = re.search(r"echo udp listens on 127.0.0.1:(\d+)", log.read_text())
        assert found
        with datagrams(int(found[1])) as peer:
            peer.send(b"hello")
            assert peer.recv(100) == b"hello"
        with connect(int(re.findall(r"echo tcp listens on 127.0.0.1:(\d+)", log.read_text())[1])) as stream:
            assert stream.recv(1) == b""
        os.kill(server.process.pid, signal.SIGUSR1)
        assert server.stop() == -signal.SIGTERM
    objects = [json.loads(line) for line in log.read_text().splitlines()]
    ended = [each for each in objects if each["kind"] == "access"]
    assert all(set(each) <= set(ACCESS_FIELDS) for each in ended)
    assert all(set(each) <= set(LOG_FIELDS) for each in objects if each["kind"] == "log")
    assert [each["limit"] for each in ended if each["reason"] == "limit"] == ["idle"]
    [session] = [each for each in ended if each["transport"] == "datagram"]
    assert (session["bytes_in"], session["datagrams_in"], session["datagrams_out"]) == (5, 1, 1)
    assert sum(each["bytes_out"] == 5 for each in ended if each["transport"] == "stream") == 20
    assert {each.get("worker") for each in ended} <= ({1, 2} if workers else {None})
    assert any(each["text"] == "ready" and each["source"] == "netsvc" for each in objects if each["kind"] == "log")


def test_workers_records_are_in_the_file_of_their_own_and_it_is_opened_anew(tmp_path: Path) -> None:
    log, file = tmp_path / "log", tmp_path / "records"
    server, port = start(log, "--workers", "2", "--access", str(file))
    with server:
        echo(port, 10)
        # Theirs are written within a moment, and those of a moment before are not lost.
        wait_until(server, lambda: len(records(file)) == 10)
        file.rename(tmp_path / "moved")
        # To all of them, as `pkill -USR1` does.
        server.signal_group(signal.SIGUSR1)
        wait_until(server, file.exists)
        echo(port, 10)
        assert server.stop() == -signal.SIGTERM
    assert len(records(file)) == 10 and not records(log)
    assert all(re.search(r" worker=[12]$", record) for record in records(file))


def test_nothing_is_said_of_connections_where_that_is_off(tmp_path: Path) -> None:
    server, port = start(tmp_path / "log", "--access", "off")
    with server:
        echo(port, 3)
        server.stop()
    assert not records(tmp_path / "log")


def test_records_are_events_in_a_log_that_is_somebody_else_s(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom twisted.logger import textFileLogObserver\nmake = lambda: textFileLogObserver(sys.stdout)"
    )
    (tmp_path / "ours.py").write_text(program)
    words = ["-n", "--pidfile=", "--logger=ours.make", "netsvc", "--tcp", "127.0.0.1:0", "--workers", "2"]
    with Server([TWISTD, *words], env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}) as server:
        server.wait_for("ready$")
        echo(server.port("echo tcp"))
        server.wait_for(r"\[netsvc.access#info\] echo tcp 127.0.0.1:\d+ listener=\S+ bytes_in=5 .* worker=[12]$")
        assert server.stop() == -signal.SIGTERM


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", directory], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def fill_up(file: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), open(file, "wb", buffering=0) as opened:
        while opened.write(b"x" * 100):
            pass


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_disk_that_is_full_stops_nothing_and_what_was_lost_is_counted(small_disk: Path, form: str) -> None:
    log = small_disk / "log"
    server, port = start(log, "--log", form)
    with server:
        fill = small_disk / "fill"
        fill.touch()
        fill_up(fill)
        sent = 0
        while b"reason" not in log.read_bytes() or log.stat().st_size % 4096:
            # To the end of the page that the log has.
            echo(port, 20)
            sent += 20
            time.sleep(0.25)
        echo(port, 30)
        fill.unlink()
        echo(port, 10)
        wait_until(server, lambda: bool(re.search(rb"\d+ lines? \w+ lost", log.read_bytes())))
        assert server.stop() == -signal.SIGTERM
    lines = log.read_text().splitlines()
    [lost] = [int(match[1]) for line in lines if (match := re.search(r"(\d+) lines? .*lost.*log file", line))]
    kept = sum("reason" in line for line in lines)
    assert lost and kept + lost == sent + 40
    for line in lines:
        if form == "json":
            json.loads(line)
        elif "reason" in line:
            assert re.search(r"^2\S+ \[netsvc.access#info\] .* reason=peer$", line)
    assert server.stderr.count("no space left on device") == 1


def test_a_log_that_is_always_full_is_said_once_on_stderr() -> None:
    program = [TWISTD, "-n", "--pidfile=", "--logfile=/dev/full", "netsvc", "--tcp", "127.0.0.1:0"]
    with Server([*program, "--access", "off"]) as server:
        port = listening_port(server)
        echo(port, 5)
        assert server.stop() == -signal.SIGTERM
    assert re.fullmatch("netsvc: log file /dev/full .*no space left on device.*\n", server.stderr)


def listening_port(server: Server) -> int:
    """Find the port of a server that cannot say it."""
    found: list[int] = []

    def look() -> bool:
        inodes = set()
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(link))
            except FileNotFoundError:
                continue
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                found.append(int(words[1].partition(":")[2], 16))
        return bool(found)

    wait_until(server, look)
    return found[0]


def test_a_reader_of_stdout_that_is_gone_stops_nothing() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0") as server, open(os.devnull, "rb") as nothing:
        assert server.process.stdout
        server.process.stdout.close()
        # The rest that `Server.wait` reads.
        server.process.stdout = nothing
        port = server.port("echo tcp")
        echo(port, 5)
        time.sleep(0.3)
        echo(port, 5)
        server.stop()
    assert re.fullmatch("netsvc: stdout .*broken pipe.*\n", server.stderr)


LOUD = """
import os
import sys
import warnings

from twisted.internet.protocol import Protocol
from twisted.logger import Logger

from netsvc.service import Service

TEXT = ("x" * 499 + "\\n") * 20


class Loud(Protocol):
    def dataReceived(self, data):
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            print(TEXT, file=stream, flush=True)
        warnings.warn_explicit(TEXT, UserWarning, "loud.py", 1)
        Logger().info("{text}", text=TEXT)
        self.transport.write(data)


service = Service("loud", "Prints", streams={"tcp": Loud}, parallel=True)
"""

PROGRAMS = {
    "one process": ["twistd", "-n", "--pidfile=", "netsvc"],
    "netsvc run": ["netsvc", "run"],
    "two workers": ["twistd", "-n", "--pidfile=", "netsvc", "--workers", "2"],
    "twist": ["twist", "--log-format=text", "netsvc"],
    "another's log": ["twistd", "-n", "--pidfile=", "--logger=loud.log", "netsvc"],
    "a file that is stdout": ["twistd", "-n", "--pidfile=", "--logfile=/dev/stdout", "netsvc"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_log_that_is_not_read_stops_nothing_whatever_writes_it(tmp_path: Path, program: str) -> None:
    (tmp_path / "loud.py").write_text(
        f"{LOUD}\n\ndef log():\n    from twisted.logger import textFileLogObserver\n"
        "    return textFileLogObserver(sys.stdout)\n"
    )
    (tmp_path / "twisted/plugins").mkdir(parents=True)
    (tmp_path / "twisted/plugins/loud_plugin.py").write_text(
        'from netsvc.service import ServicePlugin\nloud = ServicePlugin("loud", "loud:service", "Prints")\n'
    )
    command, *words = PROGRAMS[program]
    reading, writing = os.pipe()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    process = subprocess.Popen(
        [str(Path(TWISTD).with_name(command)), *words, "--loud", "127.0.0.1:0", "--access", "off"],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
        cwd=tmp_path,
        env=environment,
    )
    os.close(writing)
    try:
        found = re.search(r" listens on 127.0.0.1:(\d+)", read_to(reading, r"\bready\n"))
        assert found
        # Megabytes, far more than the pipe and the queue have room for.
        echo(int(found[1]), 60)
        text = read_to(reading, r"\d+ lines? \w+ lost.*does not read")
        assert "Traceback" not in text
        echo(int(found[1]), 60)
        process.terminate()
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def read_to(descriptor: int, pattern: str) -> str:
    """Read until something matches."""
    text = ""
    while not re.search(pattern, text[-100_000:]):
        assert select.select([descriptor], [], [], PATIENCE)[0]
        chunk = os.read(descriptor, 65536)
        assert chunk, text[-1000:]
        text += chunk.decode()
    return text


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Make a directory that everybody may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_after_uid_a_log_that_cannot_be_opened_anew_goes_on(open_directory: Path) -> None:
    user = pwd.getpwnam("nobody")
    log, moved = open_directory / "log", open_directory / "moved"
    server, port = start(log, before=("--uid", str(user.pw_uid), "--gid", str(user.pw_gid)))
    with server:
        log.rename(moved)
        server.process.send_signal(signal.SIGUSR1)
        wait_until(server, lambda: "permission denied" in moved.read_text())
        echo(port)
        wait_until(server, lambda: len(records(moved)) == 1)
        # As `create` of logrotate does it.
        log.touch()
        os.chown(log, user.pw_uid, user.pw_gid)
        server.process.send_signal(signal.SIGUSR1)
        wait_until(server, lambda: reopened(server.process.pid, log))
        echo(port)
        assert server.stop() == -signal.SIGTERM
    assert len(records(moved)) == len(records(log)) == 1


def reopened(pid: int, log: Path) -> bool:
    """Tell whether a process has this file open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # A descriptor may be closed meanwhile.
        with suppress(FileNotFoundError):
            if os.readlink(link) == str(log):
                return True
    return False


def test_a_server_whose_log_cannot_be_opened_says_so_in_a_line(tmp_path: Path) -> None:
    ended = twistd("-n", "--pidfile=", f"--logfile={tmp_path}/no/log", "netsvc", "--tcp", "127.0.0.1:0")
    assert ended.returncode == 1
    assert states(ended.stderr, f"netsvc: log file {tmp_path}/no/log: ", os.strerror(errno.ENOENT).lower(), "--logfile")


def test_a_start_that_fails_is_a_line_on_stderr_in_json_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = twistd("-n", "--pidfile=", "netsvc", "--log", "json", "--tcp", f"127.0.0.1:{port}")
    assert ended.returncode == 1
    assert states(ended.stderr.splitlines()[0], "netsvc: echo tcp ", f" 127.0.0.1:{port}: ")
    assert all(json.loads(line)["kind"] == "log" for line in ended.stdout.splitlines())
    # Once, whoever reads both.
    assert (ended.stdout + ended.stderr).count("cannot listen") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_fails_is_in_a_log_file_and_once_on_stderr(tmp_path: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        log = f"--logfile={tmp_path}/log"
        ended = twistd("-n", "--pidfile=", log, "netsvc", "--tcp", address, "--workers", workers)
    assert ended.returncode == 1
    assert (ended.stdout + ended.stderr).count("cannot listen") == 1
    assert (tmp_path / "log").read_text().count("cannot listen") == 1


def test_its_lines_have_short_names_and_the_ends_of_ports_are_no_news(tmp_path: Path) -> None:
    words = ["--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--tcp", f"unix:{tmp_path}/sock", "--admin", "127.0.0.1:0"]
    with Server.twistd(*words) as server:
        server.stop()
    names = {match[1] for line in server.lines if (match := re.match(r"\S+ \[(.*?)\]", line))}
    assert names <= {"twistd#info", "twisted.internet#info", "netsvc#info", "netsvc#warn", "netsvc.drain#info"}
    assert "Closed" not in server.log


def test_a_logger_of_the_user_s_is_used() -> None:
    words = ["-n", "--pidfile=", "--logger=twisted.logger.eventAsText", "netsvc", "--tcp", "127.0.0.1:0"]
    ended = run(sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *words)
    assert ended.returncode != 0
    assert "TypeError" in ended.stderr
