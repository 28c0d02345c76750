"""The programs of socket tutorials, as their bytes go over the wire, against a real server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.processes import Server, connect, datagrams, read_all, read_exactly

#: Real processes, many of them.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process with all that the tutorials' clients talk to."""
    root = tmp_path_factory.mktemp("root")
    (root / "1.txt").write_bytes(b"a file\r\n" * 20_000)
    (root / "文件.txt").write_bytes("中文".encode())
    words = ["--tcp", "0", "--udp", "0", "--files", "0", "--files-root", str(root)]
    words += ["--reply", "0", "--reply-udp", "0", "--reply-text", "i am udp,i got it"]
    with Server.twistd(*words) as running:
        yield running


def test_a_tcp_client_sends_stamped_lines_and_gets_each_back(server: Server) -> None:
    with connect(server.port("echo tcp")) as client:
        for text in ("hello", "你好", "x" * 1000):
            message = f"[{time.ctime()}]:{text}".encode()
            client.sendall(message)
            assert read_exactly(client, len(message)) == message


def test_a_gbk_client_gets_its_bytes_back(server: Server) -> None:
    with connect(server.port("echo tcp")) as client:
        for text in ("你好，世界", "退出"):
            client.sendall(text.encode("gbk"))
            assert read_exactly(client, len(text.encode("gbk"))).decode("gbk") == text


def test_a_udp_client_gets_its_datagrams_back_an_empty_one_too(server: Server) -> None:
    with datagrams(server.port("echo udp")) as client:
        for data in (b"hello", b"", "你好".encode("gbk"), b"q"):
            client.send(data)
            assert client.recv(2048) == data


def test_no_udp_client_can_stop_the_server(server: Server) -> None:
    for word in (b"hi", b"exit", b"EXIT", b"q"):
        with datagrams(server.port("reply udp")) as client:
            client.send(word)
            assert client.recv(1024) == b"i am udp,i got it"


def test_a_tcp_client_that_says_exit_closes_its_own_connection_only(server: Server) -> None:
    with connect(server.port("reply tcp")) as first, connect(server.port("reply tcp")) as second:
        for client in (first, second):
            client.sendall(b"hello")
            assert read_exactly(client, 17) == b"i am udp,i got it"
        first.sendall(b"exit")
        assert read_all(first) == b""
        second.sendall(b"still here")
        assert read_exactly(second, 17) == b"i am udp,i got it"


@pytest.mark.parametrize(("text", "encoding"), [("thank you !", "gbk"), ("谢谢 !", "gbk"), ("谢谢 !", "utf-8")])
def test_the_reply_comes_in_the_clients_encoding(text: str, encoding: str) -> None:
    with Server.twistd("--reply", "0", "--reply-text", text, "--reply-encoding", encoding) as server:
        with connect(server.port("reply tcp")) as client:
            for data in ("你好".encode(encoding), b"\xff\xfe\x00 not text"):
                client.sendall(data)
                expected = text.encode(encoding)
                assert read_exactly(client, len(expected)) == expected


def test_the_default_replies_are_the_tutorials_own() -> None:
    with Server.twistd("--reply", "0", "--reply-udp", "0") as server:
        with connect(server.port("reply tcp")) as client:
            client.sendall(b"hi")
            assert read_exactly(client, 18) == b"hello, tcp client!"
        with datagrams(server.port("reply udp")) as client_:
            client_.send(b"are you there, server?")
            assert client_.recv(1024) == b"i am udp,i got it"


def download(server: Server, *segments: bytes, end: bool = False) -> bytes:
    """Send a name in segments of their own, and read what comes until the server closes."""
    with connect(server.port("files classic")) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            client.sendall(segment)
        if end:
            client.shutdown(socket.SHUT_WR)
        return read_all(client)


@pytest.mark.parametrize(
    "segments", [[b"1.txt"], [b"1.", b"txt"], [b"1.txt\n"], [b"1.txt\r\n"], [b"1", b".txt\r", b"\n"]]
)
def test_a_file_is_downloaded_by_a_name_with_and_without_an_end(server: Server, segments: list[bytes]) -> None:
    assert download(server, *segments) == b"a file\r\n" * 20_000


def test_a_client_that_half_closes_after_the_name_gets_its_file(server: Server) -> None:
    assert download(server, b"1.txt", end=True) == b"a file\r\n" * 20_000


def test_a_name_in_gbk_or_utf_8_is_found(server: Server) -> None:
    for encoding in ("gbk", "utf-8"):
        assert download(server, "文件.txt".encode(encoding)) == "中文".encode()


@pytest.mark.parametrize("name", [b"missing.txt", b"../../etc/passwd", b"/etc/passwd", b".", b"\x00", b"\xff\xff"])
def test_a_name_that_is_not_there_closes_with_no_bytes(server: Server, name: bytes) -> None:
    assert download(server, name) == b""
    assert download(server, name + b"\n") == b""


def test_many_downloads_run_at_once(server: Server, tmp_path: Path) -> None:
    clients = [connect(server.port("files classic")) for _ in range(50)]
    for client in clients:
        client.sendall(b"1.txt\n")
    for client in clients:
        with client:
            assert read_all(client) == b"a file\r\n" * 20_000
