"""Real processes that reload, under a load of connections none of which may be refused or cut."""

from __future__ import annotations

import os
import re
import signal
import sysconfig
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.builders.facts import counted, drained, states
from tests.builders.processes import PATIENCE, TWISTD, Server, connect, datagrams, free_port, is_refused, read_all, run
from tests.builders.several import children, until_gone

#: Real processes, many of them.
pytestmark = pytest.mark.slow

NETSVC = str(Path(sysconfig.get_path("scripts"), "netsvc"))
#: Connections a second.
RATE = 200


class Load:
    """Connections at a steady rate, each of which asks three times; `faults` says of which one was not answered."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.faults: list[str] = []
        self._port = port
        self._stop = Event()
        self._threads = [Thread(target=self._ask, args=(number,)) for number in range(20)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        each = len(self._threads) / RATE
        due = time.monotonic() + number / RATE
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += each
            try:
                with connect(self._port) as client:
                    for _ in range(3):
                        client.sendall(b"ping")
                        if client.recv(100) != b"ping":
                            raise ConnectionError("cut")
                        self._stop.wait(each / 4)
            except OSError as error:
                self.faults.append(repr(error))
            else:
                self.answered += 1

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and see that nobody was refused or cut."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.faults == []


class Configured:
    """A server with a configuration file in a directory."""

    def __init__(self, place: Path, **values: object) -> None:
        self.place = place
        self.values = values
        self.port = free_port()
        self.write()

    def write(self, **values: object) -> None:
        self.values |= values
        given = self.values
        lines = [
            f"drain = {given.get('drain', 2)}",
            f"workers = {given.get('workers', 1)}",
            # Nobody reads what it logs while a command runs.
            'access = "off"',
            "[services.echo]",
            f'tcp = ["127.0.0.1:{self.port}"{given.get("more", "")}]',
            f'udp = "127.0.0.1:{self.port}"',
        ]
        if "reply" in given:
            lines += ["[services.reply]", f'tcp = "{given["reply"]}"', f'text = "{given.get("text", "hello")}"']
        (self.place / "netsvc.toml").write_text("\n".join(map(str, lines)) + "\n")

    def start(self) -> Server:
        server = Server([TWISTD, "-n", "--pidfile=", "netsvc", "--config", "netsvc.toml"], cwd=self.place)
        server.wait_for("ready$")
        return server

    def reload(self) -> str:
        """Reload with the command, which says what changed."""
        ended = run(NETSVC, "reload", cwd=self.place)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return ended.stdout.strip()


@pytest.mark.parametrize("workers", [1, 2])
def test_under_load_a_reload_refuses_none_and_cuts_none(tmp_path: Path, workers: int) -> None:
    configured = Configured(tmp_path, workers=workers, reply="127.0.0.1:0")
    others = [free_port() for _ in range(4)]
    with (
        configured.start() as server,
        Load(configured.port) as load,
        connect(configured.port) as first,
        datagrams(configured.port) as peer,
    ):
        for number, other in enumerate(others):
            configured.write(more=f', "127.0.0.1:{other}"', text=f"text {number}")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(r"reloaded: .*1 opened.*options of reply")
            with connect(other) as client:
                client.sendall(b"ping")
                assert client.recv(100) == b"ping"
            first.sendall(b"still")
            assert first.recv(100) == b"still"
            peer.send(b"a datagram")
            assert peer.recv(100) == b"a datagram"
            # It becomes the other service's.
            configured.write(more="", reply=f"127.0.0.1:{other}")
            summary = configured.reload()
            assert counted(summary)["closed"] == 1 and states(summary, f" 127.0.0.1:{other}")
        before = load.answered
        configured.reload()
        while load.answered < before + 100:
            time.sleep(0.01)
    assert load.answered > 200
    assert server.log.count("not reloaded") == 0


def test_under_load_the_number_of_workers_changes(tmp_path: Path) -> None:
    configured = Configured(tmp_path, workers=2)
    with configured.start() as server, Load(configured.port):
        old = children(server.process.pid)
        configured.write(workers=3)
        summary = configured.reload()
        assert states(summary, "reloaded: ", "3 workers") and counted(summary) == {"kept": 2}
        until_gone(old)
        assert len(children(server.process.pid)) == 3


def test_a_port_on_one_address_becomes_one_on_all_under_load(tmp_path: Path) -> None:
    configured = Configured(tmp_path)
    with configured.start(), Load(configured.port) as load:
        file = tmp_path / "netsvc.toml"
        for old, new in (("127.0.0.1:", ""), ("", "127.0.0.1:")):
            file.write_text(file.read_text().replace(f'"{old}{configured.port}"', f'"{new}{configured.port}"'))
            before = load.answered
            assert "2 opened, 2 closed" in configured.reload().replace("listeners ", "")
            while load.answered < before + 20:
                time.sleep(0.01)


def test_a_file_that_is_wrong_changes_nothing_and_every_mistake_is_on_stderr(tmp_path: Path) -> None:
    configured = Configured(tmp_path)
    with configured.start() as server, connect(configured.port) as client:
        file = tmp_path / "netsvc.toml"
        right = file.read_text()
        file.write_text(f"{right}wrong = 1\n[services.none]\n")
        ended = run(NETSVC, "reload", "--config", str(file))
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert len(ended.stderr.splitlines()) == 2
        assert all(line.startswith("netsvc: netsvc.toml:") for line in ended.stderr.splitlines()), ended.stderr
        client.sendall(b"ping")
        assert client.recv(100) == b"ping"
        file.write_text(right)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reloaded: 2 listeners kept$")
        assert "not reloaded: netsvc.toml:" in server.log
    ended = run(NETSVC, "reload", "--config", str(file))
    assert ended.returncode == 1
    assert states(ended.stderr.splitlines()[0], f"--config {file}; ")


def test_a_listener_that_goes_drains_and_the_others_go_on(tmp_path: Path) -> None:
    reply = free_port()
    configured = Configured(tmp_path, reply=f"127.0.0.1:{reply}", drain=3600)
    with configured.start() as server, connect(configured.port) as kept:
        with connect(reply) as gone:
            gone.sendall(b"x")
            assert gone.recv(100) == b"hello"
            del configured.values["reply"]
            configured.write()
            assert counted(configured.reload()) == {"kept": 2, "closed": 1}
            with pytest.raises(ConnectionRefusedError):
                connect(reply)
            gone.sendall(b"x")
            assert gone.recv(100) == b"hello"
        assert drained(server.wait_for("drained: .*")[0]) == (1, {}, {})
        configured.write(reply=f"127.0.0.1:{reply}", drain=0.5)
        configured.reload()
        with connect(reply) as gone:
            gone.sendall(b"x")
            assert gone.recv(100) == b"hello"
            del configured.values["reply"]
            configured.write()
            configured.reload()
            assert read_all(gone) == b""
        assert drained(server.wait_for("drained: .*")[0]) == (0, {"reply tcp": 1}, {})
        kept.sendall(b"ping")
        assert kept.recv(100) == b"ping"


def test_an_old_worker_serves_its_connections_to_their_end_and_drains_with_the_rest(tmp_path: Path) -> None:
    configured = Configured(tmp_path, workers=2, reply="127.0.0.1:0", drain=0.5)
    with configured.start() as server:
        old = children(server.process.pid)
        # So many that each worker has some.
        streams = [connect(configured.port) for _ in range(40)]
        reply = connect(server.port("reply tcp"))
        for stream in streams:
            stream.sendall(b"ping")
            assert stream.recv(100) == b"ping"
        del configured.values["reply"]
        configured.write()
        assert counted(configured.reload()) == {"kept": 2, "closed": 1}
        assert len(children(server.process.pid)) == 4
        assert read_all(reply) == b""
        for stream in streams[1:]:
            stream.sendall(b"ping")
            assert stream.recv(100) == b"ping"
            stream.close()
        reply.close()
        assert server.stop() == -signal.SIGTERM
        assert read_all(streams[0]) == b""
        streams[0].close()
        until_gone(old)


def test_a_daemon_reads_its_file_again_from_where_it_was_started(tmp_path: Path) -> None:
    configured = Configured(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    words = [TWISTD, "--rundir", "elsewhere", "--logfile", f"{tmp_path}/log", "--pidfile", f"{tmp_path}/pid"]
    assert run(*words, "netsvc", "--config", "netsvc.toml", cwd=tmp_path).returncode == 0
    log, pid = tmp_path / "log", tmp_path / "pid"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and "ready\n" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        configured.write(reply="127.0.0.1:0")
        assert counted(configured.reload()) == {"kept": 2, "opened": 1}
        number = int(re.search(r"reply tcp listens on .*:(\d+)", log.read_text())[1])  # type: ignore[index]
        with connect(number) as client:
            client.sendall(b"x")
            assert client.recv(100) == b"hello"
    finally:
        process = int(pid.read_text())
        os.kill(process, signal.SIGTERM)
        until_gone([process])


def test_without_a_file_a_signal_reads_the_lists_of_networks_again(tmp_path: Path) -> None:
    denied = tmp_path / "denied"
    denied.write_text("192.0.2.0/24\n")
    with Server.twistd("--tcp", f"guard:deny=@{denied}:127.0.0.1:0") as server:
        port = server.port("echo tcp")
        with connect(port) as before:
            # Let in, and not only on the way.
            before.sendall(b"ping")
            assert before.recv(100) == b"ping"
            denied.write_text("127.0.0.1\n")
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reloaded: 1 listener kept$")
            assert is_refused(port)
            before.sendall(b"ping")
            assert before.recv(100) == b"ping"


def test_a_server_in_a_terminal_ends_with_the_terminal(tmp_path: Path) -> None:
    import pty

    port = free_port()
    pid, terminal = pty.fork()
    if not pid:
        os.execv(
            TWISTD, [TWISTD, "-n", "--pidfile=", "--logfile", f"{tmp_path}/log", "netsvc", "--tcp", f"127.0.0.1:{port}"]
        )
    log = tmp_path / "log"
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and "ready\n" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(pid, signal.SIGHUP)
    while "reloaded" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert drained(re.findall(r"stopped: .*", log.read_text())[-1]) == (0, {}, {})


def test_the_load_notices_who_is_not_served() -> None:
    load = Load(free_port())
    while not load.faults:
        time.sleep(0.01)
    with pytest.raises(AssertionError, match="refused"):
        load.__exit__()
