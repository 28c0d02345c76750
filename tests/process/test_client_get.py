from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from netsvc.cli.command import main
from netsvc.cli.errors import ClientError
from netsvc.cli.get import FileTarget, OutputTarget, check_target, default_target, get
from netsvc.cli.options import RemoteServer
from netsvc.cli.terminal import Terminal
from netsvc.plan.address import parse_server
from tests.builders.client_peer import NETSVC, PATIENCE, make_certificate, netsvc, read_line, reset, stream_server

DATA = bytes(range(256)) * 4000


@contextmanager
def files(content: bytes = DATA) -> Iterator[int]:
    """A files service with one file, `a/b.bin`."""

    def answer(connection: socket.socket) -> None:
        if read_line(connection) == b"a/b.bin\n":
            connection.sendall(content)

    with stream_server(answer) as port:
        yield port


@pytest.mark.slow
class TestCommand:
    def test_gets_a_file_under_its_own_name(self, tmp_path: Path) -> None:
        with files() as port:
            done = netsvc("get", str(port), "a/b.bin", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert (tmp_path / "b.bin").read_bytes() == DATA
        assert os.listdir(tmp_path) == ["b.bin"]

    def test_the_file_has_the_rights_of_any_new_file(self, tmp_path: Path) -> None:
        with files() as port:
            subprocess.run(
                ["/bin/sh", "-c", 'umask 027; exec "$@"', "sh", *NETSVC, "get", str(port), "a/b.bin"],
                cwd=tmp_path,
                check=True,
                timeout=PATIENCE,
            )
        assert stat.S_IMODE((tmp_path / "b.bin").stat().st_mode) == 0o640

    def test_writes_to_standard_output(self, tmp_path: Path) -> None:
        with files() as port:
            done = netsvc("get", str(port), "a/b.bin", "-o", "-", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, DATA, b"")
        assert not os.listdir(tmp_path)

    def test_asks_in_the_encoding_of_the_server(self, tmp_path: Path) -> None:
        asked = []

        def answer(connection: socket.socket) -> None:
            asked.append(read_line(connection))
            connection.sendall(b"x")

        with stream_server(answer) as port:
            assert netsvc("get", str(port), "目录/文件", "--encoding", "gbk", cwd=tmp_path).returncode == 0
        assert asked == ["目录/文件\n".encode("gbk")]
        assert os.listdir(tmp_path) == ["文件"]

    @pytest.mark.parametrize("words", [[], ["-o", "-"]])
    def test_a_name_that_the_server_lacks_is_an_error(self, words: list[str], tmp_path: Path) -> None:
        with files() as port:
            done = netsvc("get", str(port), "none", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == f'netsvc: 127.0.0.1:{port}: no such file (or it is empty): "none"\n'
        assert not os.listdir(tmp_path)

    def test_a_file_that_exists_is_kept_and_the_server_is_not_asked(self, tmp_path: Path) -> None:
        (tmp_path / "b.bin").write_bytes(b"old")
        done = netsvc("get", "1", "a/b.bin", cwd=tmp_path)
        assert done.returncode == 1
        assert re.fullmatch(rb"netsvc: b\.bin .*exists.*-o .*--force.*\n", done.stderr)
        assert (tmp_path / "b.bin").read_bytes() == b"old"

    def test_force_replaces_it(self, tmp_path: Path) -> None:
        (tmp_path / "b.bin").write_bytes(b"old")
        with files() as port:
            assert netsvc("get", str(port), "a/b.bin", "--force", cwd=tmp_path).returncode == 0
        assert (tmp_path / "b.bin").read_bytes() == DATA

    def test_a_failure_with_force_keeps_the_old_file(self, tmp_path: Path) -> None:
        (tmp_path / "none").write_bytes(b"old")
        with files() as port:
            assert netsvc("get", str(port), "none", "--force", cwd=tmp_path).returncode == 1
        assert (tmp_path / "none").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["none"]

    def test_a_reset_half_way_leaves_nothing(self, tmp_path: Path) -> None:
        def half(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(DATA)
            reset(connection)

        with stream_server(half) as port:
            done = netsvc("get", str(port), "file", cwd=tmp_path)
        assert done.returncode == 1
        assert re.fullmatch(rf"netsvc: 127\.0\.0\.1:{port}: .*connection\n", done.stderr.decode())
        assert not os.listdir(tmp_path)

    @pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_leaves_nothing(self, signal_number: signal.Signals, tmp_path: Path) -> None:
        def half(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(DATA)
            connection.recv(1)

        with stream_server(half) as port:
            process = subprocess.Popen(
                [*NETSVC, "get", str(port), "file"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            deadline = time.monotonic() + PATIENCE
            while not any(entry.stat().st_size == len(DATA) for entry in tmp_path.iterdir()):
                assert time.monotonic() < deadline
                os.sched_yield()
            process.send_signal(signal_number)
            said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal_number
        assert said == (b"", b"")
        assert not os.listdir(tmp_path)

    def test_a_silent_server_is_given_up(self, tmp_path: Path) -> None:
        with stream_server(lambda connection: connection.recv(99) and connection.recv(1)) as port:
            done = netsvc("get", str(port), "file", "--timeout", "0.2", cwd=tmp_path)
        assert done.returncode == 1
        assert re.search(rb"\b0\.2 s; .*--timeout", done.stderr)
        assert not os.listdir(tmp_path)

    def test_a_disk_that_is_full_is_one_line(self, tmp_path: Path) -> None:
        with files() as port:
            done = subprocess.run(
                ["/bin/sh", "-c", 'ulimit -f 100; exec "$@"', "sh", *NETSVC, "get", str(port), "a/b.bin"],
                cwd=tmp_path,
                capture_output=True,
                timeout=PATIENCE,
            )
        assert (done.returncode, done.stderr) == (1, b"netsvc: cannot write b.bin: file too large\n")
        assert not os.listdir(tmp_path)

    def test_an_output_that_is_full_is_one_line(self) -> None:
        with files() as port, Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*NETSVC, "get", str(port), "a/b.bin", "-o", "-"], stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE
            )
        assert done.returncode == 1
        assert done.stderr == b"netsvc: cannot write to standard output: no space left on device\n"

    def test_tls_that_is_cut_is_not_taken_for_the_end(self, tmp_path: Path) -> None:
        authority, context = make_certificate(tmp_path)

        def cut(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(b"half")
            connection.shutdown(socket.SHUT_RDWR)

        with stream_server(cut, context) as port:
            done = netsvc("get", f"tls:localhost:{port}", "file", "--ca", str(authority), "-o", str(tmp_path / "got"))
        assert done.returncode == 1
        assert done.stderr.endswith(b"the connection was cut off before the end, after 4 bytes\n")
        assert not (tmp_path / "got").exists()

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["9003", ""], "NAME"),
            (["9003", "a\nb"], "line end"),
            (["9003", ".."], "-o FILE"),
            (["9003", "/"], "-o FILE"),
            (["9003", "🙂", "--encoding", "gbk"], "gbk"),
            (["udp:9003", "a"], "datagrams"),
            (["9003", "a", "--timeout", "0"], "--timeout"),
            (["9003"], "NAME"),
        ],
    )
    def test_a_mistake_is_told(self, words: list[str], says: str) -> None:
        result = CliRunner().invoke(main, ["get", *words])
        assert result.exit_code == 2
        assert says in " ".join(result.stderr.split())


def test_any_last_part_of_a_name_is_a_file_here() -> None:
    assert default_target("../../etc/passwd") == Path("passwd")
    assert default_target("dir/") == Path("dir")
    with pytest.raises(click.UsageError):
        default_target("a/..")


def test_counts_what_it_gets() -> None:
    class Kept:
        data = b""

        def write(self, data: bytes) -> None:
            self.data += data

        def keep(self) -> None:
            raise AssertionError("that is the caller's")

    kept, counts = Kept(), list[int]()
    with files() as port:
        server = RemoteServer(parse_server(str(port)))
        asyncio.run(get(server, "b", b"a/b.bin\n", kept, timeout=PATIENCE, count=counts.append))
    assert kept.data == DATA
    assert sum(counts) == len(DATA)


class TestFileTarget:
    def test_a_file_that_appears_meanwhile_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with FileTarget(path, force=False) as target:
            target.write(b"new")
            path.write_bytes(b"other")
            with pytest.raises(ClientError, match=r"\bexists\b"):
                target.keep()
        assert path.read_bytes() == b"other"
        assert os.listdir(tmp_path) == ["file"]

    def test_works_where_there_are_no_hard_links(self, tmp_path: Path) -> None:
        def refuse(_source: str, _name: str, **_directories: int) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        path = tmp_path / "file"
        with FileTarget(path, force=False, link=refuse) as target:
            target.write(b"new")
            target.keep()
        assert path.read_bytes() == b"new"
        with FileTarget(path, False, refuse) as target:
            target.write(b"newer")
            with pytest.raises(ClientError, match=r"\bexists\b"):
                target.keep()
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["file"]

    def test_another_failure_to_link_is_told(self, tmp_path: Path) -> None:
        def fail(_source: str, _name: str, **_directories: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with (
            pytest.raises(ClientError, match=r"cannot write .*file: input/output error"),
            FileTarget(tmp_path / "file", False, fail) as target,
        ):
            target.keep()
        assert not os.listdir(tmp_path)

    def test_a_link_that_leads_nowhere_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "file").symlink_to("elsewhere")
        with pytest.raises(ClientError, match=r"\bexists\b"):
            check_target(tmp_path / "file", force=False)
        check_target(tmp_path / "file", force=True)
        with FileTarget(tmp_path / "file", force=True) as target:
            target.write(b"new")
            target.keep()
        assert os.listdir(tmp_path) == ["file"]

    def test_a_directory_is_no_target(self, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="is a directory"):
            check_target(tmp_path, force=True)

    def test_a_directory_that_is_missing_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match=r"none: .*no such directory"):
            check_target(tmp_path / "none" / "file", force=False)
        with pytest.raises(ClientError, match="no such file or directory"):
            FileTarget(tmp_path / "none" / "file", force=False).__enter__()

    def test_a_name_that_is_too_long_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="file name too long"):
            check_target(tmp_path / ("x" * 300), force=False)

    def test_the_longest_name_works(self, tmp_path: Path) -> None:
        with FileTarget(tmp_path / ("x" * 255), force=False) as target:
            target.keep()
        assert os.listdir(tmp_path) == ["x" * 255]

    def test_a_device_is_never_replaced(self) -> None:
        with pytest.raises(ClientError, match=r"/dev/null .*regular file"):
            check_target(Path("/dev/null"), force=True)


def test_a_terminal_gets_a_file_made_safe() -> None:
    import pty

    master, slave = pty.openpty()
    with OutputTarget(Terminal(None, slave), "utf-8") as target:
        target.write(b"a\x1b[2J\r")
        target.keep()
    shown = b""
    while not shown.endswith(b"\n"):
        shown += os.read(master, 99)
    assert shown == b"a\\x1b[2J\\r\r\n"
    os.close(slave)
    os.close(master)
