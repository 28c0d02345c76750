from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsvc.cli.chat import chat
from netsvc.cli.command import main
from netsvc.cli.errors import ClientError
from netsvc.cli.options import RemoteServer
from netsvc.cli.terminal import Terminal
from netsvc.plan.address import parse_server
from tests.builders.client_peer import make_certificate, netsvc, read_line, stream_server

LONG = 60.0


def chat_in_pipe(
    serve: Callable[[socket.socket], object], feed: bytes, directory: Path, first: list[str], wait: float = LONG
) -> bytes:
    with stream_server(serve) as port:
        return chat_with(RemoteServer(parse_server(str(port))), feed, directory, first, wait)


def chat_with(server: RemoteServer, feed: bytes, directory: Path, first: list[str], wait: float = LONG) -> bytes:
    (directory / "in").write_bytes(feed)
    with (
        (directory / "in").open("rb") as source,
        (directory / "out").open("wb") as sink,
    ):
        terminal = Terminal(source.fileno(), sink.fileno())
        assert asyncio.run(chat(server, first, "utf-8", wait, terminal)) == 0
    return (directory / "out").read_bytes()


class Room:
    """Greets, remembers the lines, and says goodbye after /quit."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(b"* welcome\x1b[2J\r\n")
        while line := read_line(connection):
            self.lines.append(line)
            if line == b"/quit\n":
                connection.sendall("* 再见\n".encode())
                return


def test_says_each_line_and_leaves_politely(tmp_path: Path) -> None:
    room = Room()
    shown = chat_in_pipe(room, b"hello\r\n\nlast", tmp_path, ["/nick alice", "/join tea"])
    assert room.lines == [b"/nick alice\n", b"/join tea\n", b"hello\n", b"\n", b"last\n", b"/quit\n"]
    assert shown.decode() == "* welcome\\x1b[2J\n* 再见\n"


def test_quit_is_said_once_and_nothing_after_it(tmp_path: Path) -> None:
    room = Room()
    chat_in_pipe(room, b"/QUIT\nnever said\n", tmp_path, [])
    assert room.lines == [b"/QUIT\n"]


def test_a_line_that_is_too_long_stays_one_line(tmp_path: Path) -> None:
    room = Room()
    connections = []

    def serve(connection: socket.socket) -> None:
        data = b""
        while received := connection.recv(65536):
            data += received
        connections.append(data)

    chat_in_pipe(serve, b"x" * 200_000 + b"\n", tmp_path, [])
    assert connections == [b"x" * 200_000 + b"\n/quit\n"]
    assert not room.lines


def test_a_server_that_never_closes_is_left_with_an_error_after_the_wait(tmp_path: Path) -> None:
    held = []

    def hold(connection: socket.socket) -> None:
        connection.sendall(b"* hello\n")
        held.append(connection.dup())

    with pytest.raises(ClientError, match=r"did not close .*0\.5 s"):
        chat_in_pipe(hold, b"a\n", tmp_path, [], wait=0.5)
    assert (tmp_path / "out").read_bytes() == b"* hello\n"
    held[0].close()


def test_says_when_the_server_closes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    with (
        stream_server(lambda connection: connection.sendall(b"* full, goodbye")) as port,
        (tmp_path / "out").open("wb") as sink,
    ):
        terminal = Terminal(reader, sink.fileno())
        assert asyncio.run(chat(RemoteServer(parse_server(str(port))), [], "utf-8", LONG, terminal)) == 0
    os.close(reader)
    os.close(writer)
    assert (tmp_path / "out").read_bytes() == b"* full, goodbye\n"
    assert capfd.readouterr().err == "netsvc: the server closed the connection\n"


def test_a_lost_connection_is_made_again_and_what_was_missed_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"* welcome to the chat; you are guest1\r\n* you joined lobby; no one else is here yet\r\n")
        if not heard:
            heard.append(read_line(connection))
            connection.sendall(b"* you are now ann\r\n[lobby] bob: one\r\n* the server is stopping, goodbye\r\n")
            return
        connection.sendall(b"(1 second ago) [lobby] bob: one\r\n(just now) [lobby] bob: two\r\n")
        while (line := read_line(connection)) and line != b"/quit\n":
            heard.append(line)
        connection.sendall(b"* goodbye\r\n")

    reader, writer = os.pipe()
    with stream_server(serve) as port, (tmp_path / "out").open("wb") as sink:
        terminal = Terminal(reader, sink.fileno())

        async def leave_when_back(talking: asyncio.Task[int]) -> int:
            while b"two" not in (tmp_path / "out").read_bytes():
                await asyncio.sleep(0.01)
            os.write(writer, b"hi\n")
            os.close(writer)
            return await talking

        async def both() -> int:
            server = RemoteServer(parse_server(str(port)))
            talking = chat(server, ["/nick ann"], "utf-8", LONG, terminal, retry=0.01)
            return await leave_when_back(asyncio.create_task(talking))

        assert asyncio.run(both()) == 0
    os.close(reader)
    assert heard == [b"/nick ann\n", b"/nick ann\n", b"hi\n"]
    shown = (tmp_path / "out").read_text()
    assert shown.count("bob: one") == 1 and shown.count("bob: two") == 1 and shown.endswith("* goodbye\n")
    first, second, *rest = capfd.readouterr().err.splitlines()
    assert not rest
    assert "closed the connection" in first and "connected again" in second


def test_a_connection_that_does_not_come_back_is_given_up_in_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with stream_server(lambda connection: connection.sendall(b"* hi\n")) as port, (tmp_path / "out").open("wb") as sink:
        terminal = Terminal(reader, sink.fileno())
        with pytest.raises(ClientError, match=r"made again within 0\.2 s"):
            asyncio.run(chat(RemoteServer(parse_server(str(port))), [], "utf-8", 0.2, terminal, retry=0.01))
    os.close(reader)
    os.close(writer)


def test_talks_tls_to_a_trusted_server(tmp_path: Path) -> None:
    authority, context = make_certificate(tmp_path)
    room = Room()
    with stream_server(room, context) as port:
        server = RemoteServer(parse_server(f"tls:localhost:{port}"), str(authority))
        shown = chat_with(server, b"hello\n", tmp_path, ["/nick ann"])
        assert room.lines == [b"/nick ann\n", b"hello\n", b"/quit\n"]
        assert shown.endswith("再见\n".encode())
        with pytest.raises(ClientError, match="certificate"):
            chat_with(RemoteServer(parse_server(f"tls:localhost:{port}")), b"secret\n", tmp_path, [])
    assert len(room.lines) == 3


@pytest.mark.slow
def test_the_command_names_and_enters(tmp_path: Path) -> None:
    room = Room()
    with stream_server(room) as port:
        done = netsvc("chat", str(port), "--nick", "爱丽丝", "--room", "tea", "--encoding", "gbk", feed=b"hi\n")
    assert done.returncode == 0
    assert done.stderr == b""
    assert room.lines == ["/nick 爱丽丝\n".encode("gbk"), b"/join tea\n", b"hi\n", b"/quit\n"]


@pytest.mark.slow
def test_text_that_the_encoding_lacks_is_one_line_in_a_pipe() -> None:
    with stream_server(Room()) as port:
        done = netsvc("chat", str(port), "--encoding", "latin-1", feed="你\n".encode())
    assert done.returncode == 1
    assert re.fullmatch('netsvc: "你" .*iso8859-1.*--encoding\n', done.stderr.decode())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["udp:9002"], "chat needs a connection"),
        (["9002", "--nick", ""], "--nick needs a name"),
        (["9002", "--room", "a\n/msg b"], "--room needs a name"),
        ([], "ADDRESS"),
    ],
)
def test_a_mistake_is_told(words: list[str], says: str) -> None:
    result = CliRunner().invoke(main, ["chat", *words])
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
