"""The clients as a person sees them: on a terminal."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.builders.client_peer import OnTerminal, datagram_server, echo, read_line, stream_server

#: Real processes, many of them.
pytestmark = pytest.mark.slow

_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")


def plain(text: str) -> str:
    return _SEQUENCES.sub("", text).replace("\r", "")


class TestTalk:
    @pytest.mark.parametrize("word", ["q\r", "QUIT\r", "\x04"])
    def test_a_line_is_answered_above_the_prompt_and_q_leaves(self, word: str) -> None:
        with stream_server(echo) as port, OnTerminal("talk", str(port)) as terminal:
            terminal.read_until("q, quit or Ctrl-D leaves")
            terminal.read_until(">")
            terminal.type("你好\r")
            terminal.read_until("你好\r\n")
            terminal.type(word)
            assert terminal.end() == 0
            assert "Traceback" not in terminal.seen

    def test_what_arrives_does_not_tear_the_line_being_typed(self) -> None:
        def serve(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(b"no line end \x1b[31m")
            read_line(connection)
            connection.sendall(b"got it\n")
            connection.recv(1)

        with stream_server(serve) as port, OnTerminal("talk", str(port)) as terminal:
            terminal.read_until(">")
            terminal.type("go\r")
            # The prompt comes back at the begin of a line of its own.
            assert "\x1b[31m" not in terminal.read_until("no line end \\x1b[31m\r\n")
            terminal.read_until(">")
            terminal.type("half")
            terminal.read_until("half")
            terminal.type(" line\r")
            terminal.read_until("got it\r\n")
            terminal.type("q\r")
            assert terminal.end() == 0

    def test_ctrl_c_leaves_with_130(self) -> None:
        with stream_server(echo) as port, OnTerminal("talk", str(port)) as terminal:
            terminal.read_until(">")
            terminal.type("\x03")
            assert terminal.end() == 130
            assert "Traceback" not in terminal.seen

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_gives_the_terminal_back(self, number: signal.Signals, status: int) -> None:
        with stream_server(echo) as port, OnTerminal("talk", str(port)) as terminal:
            terminal.read_until(">")
            terminal.process.send_signal(number)
            assert terminal.end() == status
            assert "Traceback" not in terminal.seen

    def test_says_when_the_server_closes(self) -> None:
        def serve(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(b"bye")

        with stream_server(serve) as port, OnTerminal("talk", str(port)) as terminal:
            terminal.read_until(">")
            terminal.type("go\r")
            terminal.read_until("bye\r\n")
            terminal.read_until("netsvc: the server closed the connection")
            assert terminal.end() == 0

    def test_a_flood_does_not_hold_the_keys_up(self) -> None:
        def flood(connection: socket.socket) -> None:
            while True:
                connection.sendall(b"a line of the flood\n" * 1000)

        with stream_server(flood) as port, OnTerminal("talk", str(port)) as terminal:
            terminal.read_until("a line of the flood\r\n" * 3)
            terminal.type("q\r")
            assert terminal.end() == 0

    def test_a_paste_of_several_lines_is_several_lines(self) -> None:
        lines = []

        def serve(connection: socket.socket) -> None:
            while line := read_line(connection):
                lines.append(line)
                connection.sendall(b"got " + line)

        with stream_server(serve) as port, OnTerminal("talk", str(port)) as terminal:
            terminal.read_until(">")
            terminal.type("\x1b[200~one\r\ntwo\x1b[201~\r")
            terminal.read_until("got two")
            terminal.type("q\r")
            assert terminal.end() == 0
        assert lines == [b"one\n", b"two\n"]

    def test_text_that_cannot_be_sent_is_told_and_the_conversation_goes_on(self) -> None:
        with stream_server(echo) as port, OnTerminal("talk", str(port), "--encoding", "gbk") as terminal:
            terminal.read_until(">")
            terminal.type("🙂\r")
            terminal.read_until("gbk; ")
            terminal.type("好\r")
            terminal.read_until("好\r\n")
            terminal.type("q\r")
            assert terminal.end() == 0

    def test_asks_for_the_address(self) -> None:
        with datagram_server(lambda data: b"<" + data + b">") as port, OnTerminal("talk") as terminal:
            terminal.read_until("t (TCP) or u (UDP) [t]:")
            terminal.type("z\r")
            terminal.read_until("is neither t nor u")
            terminal.read_until("[t]:")
            terminal.type("u\r")
            terminal.read_until("host [127.0.0.1]:")
            terminal.type("\r")
            terminal.read_until("port [9001]:")
            terminal.type(f"{port}\r")
            terminal.read_until(">")
            terminal.type("hello\r")
            terminal.read_until("<hello>\r\n")
            terminal.type("q\r")
            assert terminal.end() == 0

    def test_ctrl_d_at_a_question_leaves(self) -> None:
        with OnTerminal("talk") as terminal:
            terminal.read_until("[t]:")
            terminal.type("\x04")
            terminal.read_until("the input ended before")
            assert terminal.end() == 1

    def test_nobody_at_a_port_is_told_and_one_may_try_again(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with OnTerminal("talk", f"udp:{port}") as terminal:
            terminal.read_until(">")
            terminal.type("one\r")
            terminal.read_until("connection refused")
            terminal.read_until(">")
            terminal.type("q\r")
            assert terminal.end() == 0


class TestChat:
    def test_others_lines_appear_while_one_is_typed_and_quit_waits_for_the_goodbye(self) -> None:
        lines = []

        def serve(connection: socket.socket) -> None:
            connection.sendall(b"* you are guest1\n")
            while line := read_line(connection):
                lines.append(line)
                if line == b"/quit\n":
                    connection.sendall(b"* goodbye\n")
                    return
                connection.sendall(b"[lobby] bob: \x1b[2Jhi\n")

        with stream_server(serve) as port, OnTerminal("chat", str(port)) as terminal:
            terminal.read_until("* you are guest1\r\n")
            terminal.read_until(">")
            terminal.type("hello\r")
            terminal.read_until("[lobby] bob: \\x1b[2Jhi\r\n")
            terminal.read_until(">")
            terminal.type("/qu\t")
            terminal.read_until("it")
            terminal.type("\r")
            terminal.read_until("* goodbye\r\n")
            assert terminal.end() == 0
        assert lines == [b"hello\n", b"/quit\n"]

    def test_ctrl_d_leaves_politely(self) -> None:
        lines = []

        def serve(connection: socket.socket) -> None:
            lines.append(read_line(connection))

        with stream_server(serve) as port, OnTerminal("chat", str(port)) as terminal:
            terminal.read_until(">")
            terminal.type("\x04")
            assert terminal.end() == 0
        assert lines == [b"/quit\n"]

    def test_says_when_the_server_closes(self) -> None:
        with (
            stream_server(lambda connection: connection.sendall(b"* flooding, goodbye\n")) as port,
            OnTerminal("chat", str(port)) as terminal,
        ):
            terminal.read_until("* flooding, goodbye\r\n")
            terminal.read_until("netsvc: the server closed the connection")
            assert terminal.end() == 0

    def test_text_that_cannot_be_sent_is_told(self) -> None:
        with stream_server(echo) as port, OnTerminal("chat", str(port), "--encoding", "gbk") as terminal:
            terminal.read_until(">")
            terminal.type("🙂\r")
            terminal.read_until("gbk; ")
            terminal.type("\x03")
            assert terminal.end() == 130


class TestGet:
    def test_shows_the_bytes_and_where_they_went(self, tmp_path: Path) -> None:
        def serve(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(bytes(3 * 1024 * 1024))

        with stream_server(serve) as port, OnTerminal("get", str(port), "zeros", cwd=tmp_path) as terminal:
            assert terminal.end() == 0
            assert "zeros 3.1 MB" in plain(terminal.seen)
            assert "saved as zeros" in plain(terminal.seen)
        assert (tmp_path / "zeros").stat().st_size == 3 * 1024 * 1024

    def test_an_error_stands_on_a_line_of_its_own(self, tmp_path: Path) -> None:
        with stream_server(read_line) as port, OnTerminal("get", str(port), "none", cwd=tmp_path) as terminal:
            assert terminal.end() == 1
            assert plain(terminal.seen).splitlines()[-1].startswith("netsvc: ")

    def test_output_to_the_terminal_is_made_safe(self, tmp_path: Path) -> None:
        def serve(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall(b"\x1b[2Jtext\r")

        with stream_server(serve) as port, OnTerminal("get", str(port), "x", "-o", "-", cwd=tmp_path) as terminal:
            assert terminal.end() == 0
            assert terminal.seen == "\\x1b[2Jtext\\r\r\n"


class TestDumb:
    """A terminal without escape sequences gets none."""

    def test_what_arrives_is_above_the_line_being_typed(self) -> None:
        lines = []

        def serve(connection: socket.socket) -> None:
            read_line(connection)
            connection.sendall("你好\n".encode())
            lines.append(read_line(connection))
            connection.recv(1)

        with stream_server(serve) as port, OnTerminal("talk", str(port), kind="dumb") as terminal:
            terminal.read_until("leaves")
            terminal.type("go\n")
            terminal.type("half学x\x7f")
            seen = terminal.read_until("你好\r\n") + terminal.read_until("half学")
            terminal.type(" line\n")
            seen += terminal.read_until("line\r\n")
            terminal.type("lost\x15\x04")
            assert terminal.end() == 0
            seen += terminal.seen
        assert lines == ["half学 line\n".encode()]
        assert "\x1b" not in seen

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_gives_the_terminal_back(self, number: signal.Signals, status: int) -> None:
        with stream_server(echo) as port, OnTerminal("talk", str(port), kind="dumb") as terminal:
            terminal.read_until("leaves")
            terminal.process.send_signal(number)
            assert terminal.end() == status
            assert "Traceback" not in terminal.seen
            assert terminal.echoes()
