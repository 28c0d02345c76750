from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsvc.cli.command import main
from netsvc.cli.errors import ClientError
from netsvc.cli.options import RemoteServer
from netsvc.cli.talk import Manner, ask_address, talk
from netsvc.cli.terminal import Terminal
from netsvc.plan.address import parse_server
from tests.builders.client_peer import (
    NETSVC,
    PATIENCE,
    datagram_server,
    echo,
    make_certificate,
    netsvc,
    reset,
    stream_server,
)

# Seconds. Long where the server closes, so that a test which waited would be seen; short where it is waited for, and
# time enough for an answer on a loaded machine where there is one.
LONG, SHORT, ENOUGH = 60.0, 0.05, 1.5


class Piped:
    """`talk` in this process, with a file for its input and one for its output."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(
        self, address: str | None, feed: bytes, manner: Manner, *, authority: str | None = None, status: int = 0
    ) -> bytes:
        (self._directory / "in").write_bytes(feed)
        server = RemoteServer(None if address is None else parse_server(address), authority)
        with (self._directory / "in").open("rb") as source, (self._directory / "out").open("wb") as sink:
            terminal = Terminal(source.fileno(), sink.fileno())
            assert asyncio.run(talk(server, manner, terminal)) == status
        return (self._directory / "out").read_bytes()


@pytest.fixture
def piped(tmp_path: Path) -> Piped:
    return Piped(tmp_path)


class TestStreamInPipe:
    def test_sends_every_line_and_shows_everything_until_the_server_closes(self, piped: Piped) -> None:
        with stream_server(echo) as port:
            assert piped(str(port), "a\nq\n你好\nlast".encode(), Manner(wait=LONG)) == "a\nq\n你好\nlast\n".encode()

    @pytest.mark.parametrize(("end", "sent"), [("lf", b"a\nb\n"), ("crlf", b"a\r\nb\r\n"), ("none", b"ab")])
    def test_ends_lines_as_told(self, piped: Piped, end: str, sent: bytes) -> None:
        received = []

        def keep(connection: socket.socket) -> None:
            while data := connection.recv(100):
                received.append(data)

        with stream_server(keep) as port:
            piped(str(port), b"a\nb\r\n", Manner(end=end, wait=LONG), status=1)  # type: ignore[arg-type]
        assert b"".join(received) == sent

    def test_speaks_the_encoding_of_the_server(self, piped: Piped) -> None:
        received = []

        def thank(connection: socket.socket) -> None:
            received.append(connection.recv(100))
            for byte in "谢谢\x1b[2J\n".encode("gbk"):
                connection.sendall(bytes([byte]))

        with stream_server(thank) as port:
            shown = piped(str(port), "你好\n".encode(), Manner(encoding="gbk", wait=LONG))
        assert received == ["你好\n".encode("gbk")]
        assert shown.decode() == "谢谢\\x1b[2J\n"

    def test_bytes_that_are_not_text_arrive_unchanged(self, piped: Piped) -> None:
        received = []
        with stream_server(lambda connection: received.append(connection.recv(100))) as port:
            piped(str(port), b"\xff\xc4\n", Manner(wait=LONG), status=1)
        assert received == [b"\xff\xc4\n"]

    def test_stamps_as_the_tutorial_does(self, piped: Piped) -> None:
        manner = Manner(stamp=True, wait=LONG, ctime=lambda: "Sat Nov 21 09:00:00 2026")
        with stream_server(echo) as port:
            assert piped(str(port), b"hello\n", manner) == b"[Sat Nov 21 09:00:00 2026]:hello\n"

    def test_a_long_line_goes_out_whole_with_one_stamp_and_one_end(self, piped: Piped) -> None:
        manner = Manner(stamp=True, wait=LONG, ctime=lambda: "now")
        with stream_server(echo) as port:
            assert piped(str(port), b"x" * 200_000 + b"\ny", manner) == b"[now]:" + b"x" * 200_000 + b"\n[now]:y\n"

    def test_leaves_when_the_server_is_quiet(self, piped: Piped) -> None:
        def answer_and_hold(connection: socket.socket) -> None:
            connection.sendall(connection.recv(100))
            held.append(connection.dup())

        held: list[socket.socket] = []
        with stream_server(answer_and_hold) as port:
            assert piped(str(port), b"a\n", Manner(wait=ENOUGH)) == b"a\n"
        held[0].close()

    @pytest.mark.parametrize("closes", [False, True])
    def test_no_answer_is_a_failure(self, piped: Piped, capfd: pytest.CaptureFixture[str], closes: bool) -> None:
        def hold(connection: socket.socket) -> None:
            connection.recv(100)
            if not closes:
                held.append(connection.dup())

        held: list[socket.socket] = []
        with stream_server(hold) as port:
            assert piped(str(port), b"a\n", Manner(wait=LONG if closes else SHORT), status=1) == b""
        assert capfd.readouterr().err == "netsvc: no answer\n"
        for each in held:
            each.close()

    def test_where_nothing_was_sent_no_answer_is_missing(self, piped: Piped) -> None:
        with stream_server(lambda connection: None) as port:
            assert piped(str(port), b"", Manner(wait=LONG)) == b""

    def test_says_when_the_server_closes_before_the_input_ends(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        reader, writer = os.pipe()
        with (
            stream_server(lambda connection: connection.sendall(b"bye")) as port,
            (tmp_path / "out").open("wb") as sink,
        ):
            status = asyncio.run(talk(RemoteServer(parse_server(str(port))), Manner(), Terminal(reader, sink.fileno())))
        os.close(reader)
        os.close(writer)
        assert status == 0
        assert (tmp_path / "out").read_bytes() == b"bye"
        assert capfd.readouterr().err == "netsvc: the server closed the connection\n"

    @pytest.mark.slow
    def test_a_reset_shows_what_came_before_and_is_an_error(self, piped: Piped, tmp_path: Path) -> None:
        def last_words(connection: socket.socket) -> None:
            connection.sendall(b"no\n")
            connection.recv(100)
            reset(connection)

        with (
            stream_server(last_words) as port,
            pytest.raises(ClientError, match=r"127\.0\.0\.1:\d+: .*connection"),
        ):
            piped(str(port), b"a\n" * 5_000_000, Manner())
        assert (tmp_path / "out").read_bytes() in (b"no\n", b"")

    def test_text_that_the_encoding_lacks_is_told_with_its_line(self, piped: Piped) -> None:
        with (
            stream_server(echo) as port,
            pytest.raises(ClientError, match=r'^line 2: "🙂" .*gbk.*--encoding'),
        ):
            piped(str(port), "a\nsmile 🙂\n".encode(), Manner(encoding="gbk"))

    def test_talks_tls_to_a_trusted_server(self, piped: Piped, tmp_path: Path) -> None:
        authority, context = make_certificate(tmp_path)

        def answer(connection: socket.socket) -> None:
            connection.sendall(connection.recv(100))

        with stream_server(answer, context) as port:
            address = f"tls:localhost:{port}"
            assert piped(address, b"a\n", Manner(wait=LONG), authority=str(authority)) == b"a\n"


class TestDatagramsInPipe:
    def test_each_line_is_one_datagram_sent_one_at_a_time(self, piped: Piped) -> None:
        received = []

        def answer(data: bytes) -> bytes:
            received.append(data)
            return b"got " + data

        with datagram_server(answer) as port:
            assert piped(f"udp:{port}", b"a\n\nb", Manner(wait=LONG)) == b"got a\ngot \ngot b\n"
        assert received == [b"a", b"", b"b"]

    def test_says_which_line_got_no_answer(self, piped: Piped, capfd: pytest.CaptureFixture[str]) -> None:
        with datagram_server(lambda data: None if data == b"b" else data) as port:
            assert piped(f"udp:{port}", b"a\nb\nc\n", Manner(wait=ENOUGH), status=1) == b"a\nc\n"
        assert capfd.readouterr().err == "netsvc: no answer to line 2 within 1.5 s\n"

    def test_a_character_cut_in_one_does_not_reach_into_the_next(self, piped: Piped) -> None:
        with datagram_server(lambda data: b"\xe4\xbd") as port:
            assert piped(f"udp:{port}", b"a\nb\n", Manner(wait=LONG)) == b"\\xe4\\xbd\n" * 2

    def test_an_encoding_with_a_mark_puts_it_into_each(self, piped: Piped) -> None:
        with datagram_server(lambda data: data) as port:
            assert piped(f"udp:{port}", b"a\nb\n", Manner(wait=LONG, encoding="utf-16")) == b"a\nb\n"

    def test_nobody_there_is_an_error(self, piped: Piped) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with pytest.raises(ClientError, match=f"udp:127.0.0.1:{port}: connection refused"):
            piped(f"udp:{port}", b"a\nb\n", Manner(wait=LONG))

    @pytest.mark.parametrize(("size", "says"), [(65508, "message too long"), (70000, "longer than a")])
    def test_a_line_that_is_too_long_is_an_error(self, piped: Piped, size: int, says: str) -> None:
        with datagram_server(lambda data: data) as port, pytest.raises(ClientError, match=f"line 1: .*{says}"):
            piped(f"udp:{port}", b"x" * size, Manner(wait=LONG))


class TestAsking:
    def ask(self, answers: bytes, tmp_path: Path) -> str:
        (tmp_path / "answers").write_bytes(answers)
        with (tmp_path / "answers").open("rb") as source:
            return str(asyncio.run(ask_address(Terminal(source.fileno(), None))))

    @pytest.mark.parametrize(
        ("answers", "address"),
        [
            (b"\n\n\n", "127.0.0.1:9001"),
            (b"T\nlocalhost\n80\n", "localhost:80"),
            (b" u \n::1\n53\n", "udp:[::1]:53"),
            (b"x\nu\na b\n[::1]\n0\n70000\nabc\n53\n", "udp:[::1]:53"),
        ],
    )
    def test_has_defaults_and_asks_again(self, answers: bytes, address: str, tmp_path: Path) -> None:
        assert self.ask(answers, tmp_path) == address

    def test_a_wrong_answer_is_named_with_what_would_be_right(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.ask(b"\x1b\nu\na b\n\n0\n1\n", tmp_path)
        told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("netsvc:")]
        assert [line.split('"')[1] for line in told] == ["\\x1b", "a b", "0"]
        assert "65535" in told[2]

    def test_the_end_of_the_input_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="the input ended before"):
            self.ask(b"t\n", tmp_path)

    def test_then_lines_have_no_end_and_q_leaves(self, piped: Piped) -> None:
        with stream_server(echo) as port:
            assert piped(None, b"t\n\n%d\nhello\nthere\nQuit \nnot sent\n" % port, Manner(wait=LONG)) == b"hellothere"


@pytest.mark.slow
class TestCommand:
    def test_exits_with_0_after_a_conversation(self) -> None:
        with stream_server(echo) as port:
            done = netsvc("talk", str(port), feed=b"a\nb\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nb\n", b"")

    def test_udp_is_short_for_a_scheme(self) -> None:
        with datagram_server(lambda data: data) as port:
            done = netsvc("talk", "--udp", f"localhost:{port}", feed=b"a\n")
        assert (done.returncode, done.stdout) == (0, b"a\n")

    def test_udp_is_not_asked_again(self) -> None:
        with datagram_server(lambda data: data) as port:
            done = netsvc("talk", "--udp", feed=b"\n%d\nhello\nq\n" % port)
        assert (done.returncode, done.stdout) == (0, b"hello\n")
        assert b"TCP" not in done.stderr

    def test_a_refused_connection_is_one_line_and_status_1(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            done = netsvc("talk", str(port))
        assert done.returncode == 1
        assert re.fullmatch(rf"netsvc: 127\.0\.0\.1:{port}: connection refused.*\n", done.stderr.decode())

    def test_an_output_that_closes_ends_it_quietly(self) -> None:
        def pour(connection: socket.socket) -> None:
            while True:
                connection.sendall(b"x" * 65536)

        with stream_server(pour) as port:
            done = subprocess.run(
                ["/bin/sh", "-c", '"$@" </dev/null | head -c 10; exit 0', "sh", *NETSVC, "talk", str(port)],
                capture_output=True,
                timeout=PATIENCE,
            )
        assert (done.stdout, done.stderr) == (b"x" * 10, b"")

    def test_standard_streams_may_be_closed(self) -> None:
        with stream_server(echo) as port:
            done = subprocess.run(
                ["/bin/sh", "-c", '"$@" <&- >&-', "sh", *NETSVC, "talk", str(port)],
                capture_output=True,
                timeout=PATIENCE,
            )
        assert (done.returncode, done.stderr) == (0, b"")

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["nonsense"], '"nonsense" is not HOST:PORT'),
            (["--udp", "tcp:9001"], "tcp:"),
            (["9001", "--encoding", "base64"], "base64 is "),
            (["9001", "--encoding", "idna"], "idna is "),
            (["9001", "--encoding", "x\x1b"], "text encoding"),
            (["9001", "--insecure"], "tls: address"),
            (["--ca", __file__], "tls: address"),
            (["tls:9001", "--insecure", "--ca", __file__], "give one of them"),
            (["tls:9001", "--ca", "/nowhere"], "does not exist"),
            (["9001", "--wait", "-1"], "--wait"),
        ],
    )
    def test_a_mistake_in_the_options_is_told(self, words: list[str], says: str) -> None:
        result = CliRunner().invoke(main, ["talk", *words])
        assert result.exit_code == 2
        assert says in " ".join(result.stderr.split())
        assert "\x1b" not in result.stderr

    def test_a_file_without_a_certificate_is_told(self) -> None:
        done = netsvc("talk", "tls:localhost:1", "--ca", __file__)
        assert done.returncode == 1
        assert b"--ca " in done.stderr
        assert done.stderr.count(b"\n") == 1

    def test_insecure_warns_and_talks(self, tmp_path: Path) -> None:
        _, context = make_certificate(tmp_path)
        with stream_server(lambda connection: connection.sendall(connection.recv(9)), context) as port:
            done = netsvc("talk", f"tls:127.0.0.1:{port}", "--insecure", feed=b"a\n")
        assert (done.returncode, done.stdout) == (0, b"a\n")
        assert re.fullmatch(rb"netsvc: warning: --insecure.*\n", done.stderr)
