from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from netsvc.cli.connection import UNREAD_LIMIT, ClientDatagrams, ClientStream, Conversation, connect, resolve
from netsvc.cli.errors import ClientError, explain
from netsvc.plan.address import ServerAddress, parse_server
from tests.builders.client_peer import (
    PATIENCE,
    datagram_server,
    echo,
    make_certificate,
    read_line,
    reset,
    stream_server,
)


def converse(
    address: ServerAddress | str, talk: Callable[[Conversation], Awaitable[Any]], tls: ssl.SSLContext | None = None
) -> Any:
    async def run() -> Any:
        place = parse_server(address) if isinstance(address, str) else address
        async with connect(place, tls) as conversation:
            return await talk(conversation)

    return asyncio.run(run())


async def everything(conversation: Conversation) -> bytes:
    parts = []
    while (data := await conversation.receive()) is not None:
        parts.append(data)
    return b"".join(parts)


async def ask_and_finish(conversation: Conversation) -> bytes:
    await conversation.send(b"hello")
    conversation.finish()
    return await everything(conversation)


class TestStream:
    def test_half_closes_and_still_receives(self) -> None:
        with stream_server(echo) as port:
            assert converse(f"localhost:{port}", ask_and_finish) == b"hello"

    def test_talks_to_a_unix_socket(self, tmp_path: Path) -> None:
        path = str(tmp_path / "echo")
        with stream_server(echo, path=path):
            assert converse(f"unix:{path}", ask_and_finish) == b"hello"

    def test_what_came_before_a_reset_is_received_first(self) -> None:
        async def talk(conversation: Conversation) -> bytes:
            assert isinstance(conversation, ClientStream)
            await conversation._lost.wait()
            data = await conversation.receive()
            assert data is not None
            with pytest.raises(ConnectionResetError):
                await conversation.receive()
            with pytest.raises(ConnectionResetError):
                await conversation.send(b"x")
            conversation.finish()
            return data

        def last_words(connection: socket.socket) -> None:
            connection.sendall(b"bye")
            read_line(connection)
            reset(connection)

        async def provoke(conversation: Conversation) -> bytes:
            await conversation.send(b"\n")
            return await talk(conversation)

        with stream_server(last_words) as port:
            assert converse(str(port), provoke) == b"bye"

    def test_a_reset_inside_the_block_is_one_line(self) -> None:
        with (
            stream_server(reset) as port,
            pytest.raises(ClientError, match=f"^127.0.0.1:{port}: .*server.*connection"),
        ):
            converse(str(port), everything)

    def test_nothing_is_sent_after_the_end(self) -> None:
        async def talk(conversation: Conversation) -> None:
            await conversation.close()
            with pytest.raises(BrokenPipeError):
                await conversation.send(b"x")

        with stream_server(echo) as port:
            converse(str(port), talk)

    def test_a_server_that_floods_is_read_no_further_than_the_limit(self) -> None:
        size = 16 * UNREAD_LIMIT

        async def talk(conversation: Conversation) -> int:
            assert isinstance(conversation, ClientStream)
            total = highest = 0
            await conversation.send(b"\n")
            while conversation._unread < UNREAD_LIMIT:
                await asyncio.sleep(0)
            assert not conversation._transport.is_reading()
            while (data := await conversation.receive()) is not None:
                highest = max(highest, conversation._unread)
                total += len(data)
            # One read of asyncio's is 256 KiB.
            assert highest < 2 * UNREAD_LIMIT
            return total

        def flood(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(bytes(size))

        with stream_server(flood) as port:
            assert converse(str(port), talk) == size

    def test_a_server_that_does_not_read_holds_sending_back_and_leaving_does_not_wait_for_it(self) -> None:
        async def talk(conversation: Conversation) -> None:
            async def pour() -> None:
                while True:
                    await conversation.send(bytes(65536))

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pour(), 0.05)
            assert isinstance(conversation, ClientStream)
            await conversation.close(0.01)
            raise ClientError("left")

        def hold(connection: socket.socket) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.send(b"x")
            released.recv(1)

        holder, released = socket.socketpair()
        with holder, released, stream_server(hold) as port:
            with pytest.raises(ClientError, match="left"):
                converse(str(port), talk)
            holder.send(b"x")

    def test_a_server_that_reads_slowly_gets_everything(self) -> None:
        size = 8_000_000
        received = []

        async def talk(conversation: Conversation) -> None:
            for _ in range(size // 80_000):
                await conversation.send(bytes(80_000))
            conversation.finish()
            assert await everything(conversation) == b""

        def read(connection: socket.socket) -> None:
            received.append(sum(len(data) for data in iter(lambda: connection.recv(10_000), b"")))

        with stream_server(read) as port:
            converse(str(port), talk)
        assert received == [size]


class TestTls:
    def test_trusts_the_named_authority_and_checks_the_name(self, tmp_path: Path) -> None:
        authority, context = make_certificate(tmp_path)
        trusting = ssl.create_default_context(cafile=str(authority))

        async def talk(conversation: Conversation) -> bytes:
            await conversation.send(b"line\n")
            conversation.finish()
            data = await everything(conversation)
            assert not conversation.was_cut()
            return data

        def answer(connection: socket.socket) -> None:
            connection.sendall(read_line(connection))
            assert isinstance(connection, ssl.SSLSocket)
            connection.unwrap()

        with stream_server(answer, context) as port:
            assert converse(f"tls:localhost:{port}", talk, trusting) == b"line\n"
            with pytest.raises(ClientError, match="another name"):
                converse(f"tls:127.0.0.1:{port}", talk, trusting)
            with pytest.raises(ClientError, match=r"not trusted \(self-signed certificate\); .*--ca"):
                converse(f"tls:localhost:{port}", talk, ssl.create_default_context())

    def test_an_end_without_a_closing_alert_is_a_cut(self, tmp_path: Path) -> None:
        # RFC 8446, section 6.1.
        authority, context = make_certificate(tmp_path)

        async def talk(conversation: Conversation) -> bool:
            assert await everything(conversation) == b"half"
            return conversation.was_cut()

        def cut(connection: socket.socket) -> None:
            connection.sendall(b"half")
            connection.shutdown(socket.SHUT_RDWR)

        with stream_server(cut, context) as port:
            assert converse(f"tls:localhost:{port}", talk, ssl.create_default_context(cafile=str(authority)))

    def test_a_server_without_tls_is_told_in_one_line(self) -> None:
        with stream_server(lambda connection: connection.sendall(b"hello, who are you?\n")) as port:
            with pytest.raises(ClientError, match=r"TLS failed") as caught:
                converse(f"tls:localhost:{port}", everything, ssl.create_default_context())
            assert "\n" not in str(caught.value)


class TestDatagrams:
    async def exchange(self, conversation: Conversation) -> list[bytes | None]:
        assert isinstance(conversation, ClientDatagrams)
        received = []
        for data in (b"a", b"", b"x" * 65507):
            await conversation.send(data)
            received.append(await conversation.receive())
        conversation.finish()
        assert not conversation.was_cut()
        return received

    def test_keep_their_borders_empty_ones_too(self) -> None:
        with datagram_server(lambda data: data) as port:
            assert converse(f"udp:{port}", self.exchange) == [b"a", b"", b"x" * 65507]

    def test_are_answered_over_a_unix_socket(self, tmp_path: Path) -> None:
        path = str(tmp_path / "d")
        with datagram_server(lambda data: data, path):
            assert converse(f"unixgram:{path}", self.exchange) == [b"a", b"", b"x" * 65507]

    def test_that_are_too_long_are_told(self) -> None:
        async def talk(conversation: Conversation) -> None:
            await conversation.send(bytes(65508))

        with (
            datagram_server(lambda data: data) as port,
            pytest.raises(ClientError, match=f"udp:127.0.0.1:{port}: message too long"),
        ):
            converse(f"udp:{port}", talk)


class TestFailures:
    def test_a_refused_connection(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            with pytest.raises(ClientError, match="connection refused"):
                converse(f"localhost:{port}", everything)

    def test_a_socket_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="no such socket"):
            converse(f"unix:{tmp_path}/none", everything)

    def test_a_path_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="107"):
            converse(f"unix:{tmp_path}/{'x' * 120}", everything)

    @pytest.mark.parametrize("host", ["a" * 64, "x..y"])
    def test_a_name_that_can_be_no_host(self, host: str) -> None:
        with pytest.raises(ValueError, match=re.escape(host)):
            converse(f"{host}:1", everything)

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (TimeoutError(), "no answer"),
            (PermissionError(13, "Permission denied"), ": permission denied"),
            (OSError("odd \x1b[2J"), r"odd \x1b[2J"),
            (socket.gaierror(-2, "Name or service not known"), "(name or service not known)"),
            (ssl.SSLError(1, "WRONG"), "TLS failed"),
        ],
    )
    def test_each_error_is_one_safe_line_that_names_the_address(self, error: OSError, says: str) -> None:
        text = str(explain(error, parse_server("udp:9001")))
        assert text.startswith("udp:127.0.0.1:9001: ")
        assert says in text
        assert "\n" not in text


class TestResolve:
    def test_a_name_that_nobody_knows_is_an_error(self) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        with pytest.raises(socket.gaierror):
            asyncio.run(resolve("example", 7, socket.SOCK_STREAM, unknown))

    @pytest.mark.parametrize("closes", [False, True])
    def test_nobody_waits_for_a_look_up_that_was_given_up(self, closes: bool) -> None:
        answers, answered = threading.Event(), threading.Event()

        def slow(*_: object, **__: object) -> list[object]:
            answers.wait(PATIENCE)
            answered.set()
            return []

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(resolve("example", 7, socket.SOCK_STREAM, slow), 0.01)
            if not closes:
                answers.set()
                while any(thread.name == "resolve" for thread in threading.enumerate()):
                    await asyncio.sleep(0)

        asyncio.run(give_up())
        answers.set()
        assert answered.wait(PATIENCE)
        for thread in threading.enumerate():
            if thread.name == "resolve":
                thread.join(PATIENCE)

    def test_a_literal_needs_no_look_up(self) -> None:
        found = asyncio.run(resolve("::1", 7, socket.SOCK_STREAM))
        assert [place[4][:2] for place in found] == [("::1", 7)]

    def test_a_name_is_looked_up(self) -> None:
        found = asyncio.run(resolve("localhost", 7, socket.SOCK_STREAM))
        assert {place[4][0] for place in found} <= {"127.0.0.1", "::1"}
        assert found
