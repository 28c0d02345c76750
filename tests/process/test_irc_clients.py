"""Real clients of IRC in one room with nc."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, Server, connect
from tests.builders.programs import program
from tests.builders.several import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server.twistd("--chat", "127.0.0.1:0", "--chat-irc", "127.0.0.1:0") as started:
        yield started


@contextmanager
def running(*words: str, home: Path) -> Iterator[int]:
    """Run a program on a terminal of its own; return the terminal's descriptor, where a user would type."""
    master, slave = pty.openpty()
    unseen = subprocess.DEVNULL
    environment = dict(os.environ, HOME=str(home), TERM="xterm")
    process = subprocess.Popen(words, stdin=slave, stdout=unseen, stderr=unseen, env=environment)
    os.close(slave)
    try:
        yield master
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        os.close(master)


class Listener:
    """A client of the line protocol, and all lines that it has seen."""

    def __init__(self, port: int) -> None:
        self.connection = connect(port)
        self._file = self.connection.makefile("r", encoding="utf-8")
        self._seen: list[str] = []

    def says(self, *lines: str) -> None:
        self.connection.sendall("".join(f"{line}\n" for line in lines).encode())

    def waits_for(self, part: str) -> None:
        while not any(part in line for line in self._seen):
            line = self._file.readline()
            assert line
            self._seen.append(line)


def has(file: Path, text: str) -> bool:
    # In bytes: the end of what is there may be half a character.
    return file.exists() and text.encode() in file.read_bytes()


def test_ii_and_irssi_talk_with_nc(server: Server, tmp_path: Path) -> None:
    ii, irssi = program("ii", "ii"), program("irssi", "irssi")
    port, nc = str(server.port("chat irc")), Listener(server.port("chat line"))
    nc.says("/nick ncat", "/join tea")
    nc.waits_for("joined tea")
    config = tmp_path / "irssi.conf"
    config.write_text(
        f'servers = ({{ address = "127.0.0.1"; port = {port}; autoconnect = "yes"; chatnet = "chat"; }});\n'
        'chatnets = { chat = { type = "IRC"; nick = "irma"; }; };\n'
        'channels = ({ name = "#tea"; chatnet = "chat"; autojoin = "yes"; });\n'
        'settings = { core = { real_name = "Irma"; user_name = "irma"; nick = "irma"; };\n'
        f' "fe-common/core" = {{ autolog = "yes"; autolog_path = "{tmp_path}/irssi-$0"; }}; }};\n'
    )
    inbox, log = tmp_path / "127.0.0.1", tmp_path / "irssi-#tea"
    with (
        running(ii, "-s", "127.0.0.1", "-p", port, "-n", "ivan", "-i", str(tmp_path), home=tmp_path),
        running(irssi, "--home", str(tmp_path / "irssi"), "--config", str(config), home=tmp_path) as keyboard,
    ):
        until((inbox / "in").exists)
        (inbox / "in").write_text("/j #tea\n")
        nc.waits_for("ivan joined tea")
        nc.waits_for("irma joined tea")
        until((inbox / "#tea" / "in").exists)
        (inbox / "#tea" / "in").write_text("hello from ii\n")
        nc.waits_for("[tea] ivan: hello from ii")
        os.write(keyboard, b"/msg #tea hello from irssi\n")
        nc.waits_for("[tea] irma: hello from irssi")
        nc.says("学习 from nc")
        until(lambda: all(has(file, "学习 from nc") for file in (log, inbox / "#tea" / "out")))
    nc.connection.close()
