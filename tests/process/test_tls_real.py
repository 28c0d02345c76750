"""TLS with real processes: a certificate renewed under load, our own clients, and workers of another user."""

from __future__ import annotations

import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from tests.builders.pems import KEY, Pem, client_context
from tests.builders.processes import PATIENCE, Server, connect, run
from tests.builders.several import anybody_may_run_python, children

pytestmark = pytest.mark.slow

NETSVC = [sys.executable, "-m", "netsvc"]


def serial(port: int, name: str = "localhost") -> int:
    """Shake hands, have something echoed, and return the serial number of the server's certificate."""
    with client_context().wrap_socket(connect(port), server_hostname=name) as stream:
        stream.sendall(b"hello")
        assert stream.recv(5) == b"hello"
        der = stream.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


class Load:
    """Connects all the time, and remembers in which order which certificates came."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self.failures: list[BaseException] = []
        self.seen: list[int] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.seen.append(serial(self._port))
            except Exception as error:  # noqa: BLE001  (told at the end)
                self.failures.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, self.failures[:3]
            time.sleep(0.01)


def replaced(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


@pytest.mark.parametrize(
    ("how", "workers"),
    [("one file", "1"), ("two files", "1"), ("two files, in place", "1"), ("a directory", "1"), ("two files", "2")],
)
def test_a_certificate_renewed_under_load_fails_no_connection(how: str, workers: str, tmp_path: Path) -> None:
    pems = [Pem("localhost"), Pem("localhost")]
    cert, key = pems[0].write(tmp_path)
    both = tmp_path / "both.pem"
    if how == "one file":
        both.write_bytes(pems[0].both)
        where = f"cert={both}"
    else:
        where = f"directory={tmp_path}" if how == "a directory" else f"cert={cert}:key={key}"
    # Nobody reads the log meanwhile.
    words = ["--access", "off", *(["--workers", workers] if workers != "1" else [])]
    with Server.twistd(*words, "--tcp", f"tls:0:{where}:interface=127.0.0.1") as server:
        with Load(server.port("echo tcp")) as load:
            load.wait(lambda: load.seen.count(pems[0].serial) >= 20)
            new = pems[1]
            if how == "one file":
                replaced(both, new.both)
            elif how == "two files, in place":
                key.write_bytes(new.key)
                time.sleep(0.01)
                cert.write_bytes(new.cert)
            else:
                replaced(cert, new.cert)
                replaced(key, new.key)
            load.wait(lambda: load.seen.count(new.serial) >= 20)
            # A second later nobody sees the old one any more, but who is just being told.
            deadline = time.monotonic() + 1.2
            load.wait(lambda: time.monotonic() > deadline)
            mark = len(load.seen) + 2
            load.wait(lambda: len(load.seen) >= mark + 20)
            assert set(load.seen[mark:]) == {new.serial}
            # Each process looks when it accepts a connection.
            for _ in range(int(workers)):
                server.wait_for(f"{both if how == 'one file' else cert} is now in use")
        assert load.failures == []
        assert set(load.seen) == {pem.serial for pem in pems}
        server.stop()
        assert server.log.count(" is now in use") == int(workers)


def test_a_broken_renewal_is_one_line_and_stops_nobody(tmp_path: Path) -> None:
    pem, other = Pem("localhost"), Pem("localhost")
    cert, key = pem.write(tmp_path)
    with Server.twistd("--access", "off", "--tcp", f"tls:0:cert={cert}:key={key}:interface=127.0.0.1") as server:
        with Load(server.port("echo tcp")) as load:
            load.wait(lambda: len(load.seen) >= 5)
            replaced(key, other.key)
            server.wait_for("does not match the first certificate; the previous certificate stays in use$")
            deadline = time.monotonic() + 2.5
            load.wait(lambda: time.monotonic() > deadline)
        assert load.failures == []
        assert set(load.seen) == {pem.serial}
        server.stop()
        assert server.log.count("stays in use") == 1


def test_names_choose_among_the_certificates_of_a_directory(tmp_path: Path) -> None:
    one, two = Pem("one.example", key=KEY), Pem("two.example", "*.two.example", key=KEY)
    one.write(tmp_path, "one")
    two.write(tmp_path, "two")
    with Server.twistd("--tcp", f"tls:0:directory={tmp_path}:interface=127.0.0.1") as server:
        port = server.port("echo tcp")
        names = ("one.example", "two.example", "x.two.example", "three.example")
        assert [serial(port, name) for name in names] == [one.serial, two.serial, two.serial, one.serial]


def test_our_own_clients_talk_to_it(tmp_path: Path) -> None:
    cert, key = Pem("localhost").write(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_bytes(bytes(100_000))
    place = f"tls:0:cert={cert}:key={key}:interface=127.0.0.1"
    words = ["--tcp", place, "--chat", place, "--files", place, "--files-root", str(tmp_path / "root")]
    with Server.twistd(*words) as server:
        echo, chat, files = (
            f"tls:localhost:{server.port(label)}" for label in ("echo tcp", "chat line", "files classic")
        )
        ended = run(*NETSVC, "talk", echo, "--wait", "5", "--ca", str(cert), stdin="hello\n")
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "hello\n", "")
        ended = run(*NETSVC, "talk", echo, "--wait", "5", "--insecure", stdin="hello\n")
        assert (ended.returncode, ended.stdout) == (0, "hello\n")
        assert ended.stderr.startswith("netsvc: warning: --insecure")
        ended = run(*NETSVC, "talk", echo, stdin="hello\n")
        assert ended.returncode == 1
        assert "certificate" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        ended = run(*NETSVC, "chat", chat, "--ca", str(cert), stdin="hello\n/quit\n")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout
        ended = run(*NETSVC, "get", files, "file", "--ca", str(cert), "-o", str(tmp_path / "got"))
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / "got").read_bytes() == bytes(100_000)


def test_old_versions_are_refused_by_the_process_as_well(tmp_path: Path) -> None:
    cert, key = Pem("localhost").write(tmp_path)
    with Server.twistd("--tcp", f"tls:0:cert={cert}:key={key}:interface=127.0.0.1") as server:
        context = client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with context.wrap_socket(connect(server.port("echo tcp"))) as stream:
            assert stream.version() == "TLSv1.2"


@pytest.mark.parametrize("form", ["cert={0}/a.crt:key={0}/a.key", "directory={0}"])
def test_a_key_that_only_root_may_read_serves_workers_of_another_user(form: str, tmp_path: Path) -> None:
    if not anybody_may_run_python():
        pytest.skip("needs root, and an interpreter and a checkout that anybody may read")
    directory = tmp_path / "private"
    directory.mkdir(mode=0o700)
    pem = Pem("localhost")
    pem.write(directory)
    shed = ["--uid", "65534", "--gid", "65534"]
    address = f"tls:0:{form.format(directory)}:interface=127.0.0.1"
    with Server.twistd("--workers", "2", "--tcp", address, before=shed) as server:
        port = server.port("echo tcp")
        for _ in range(10):
            assert serial(port) == pem.serial
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        server.wait_for(r"\) is ready$")
        for _ in range(10):
            assert serial(port) == pem.serial
        time.sleep(1.1)
        for _ in range(10):
            assert serial(port) == pem.serial
        server.stop()
        # Each of the three workers says it once.
        assert server.log.count("Permission denied") == 3
