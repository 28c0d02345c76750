"""What the README shows is what happens."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import (
    PATIENCE,
    ROOT,
    TWISTD,
    Server,
    connect,
    datagrams,
    free_port,
    read_all,
    read_exactly,
    run,
)

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]


def installed(directory: Path) -> None:
    """Copy the checkout, without what is made in it, into a directory."""
    made = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "dropin.cache"
    )
    shutil.copytree(ROOT, directory, ignore=made, dirs_exist_ok=True)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 80


SHOWN = [line.partition("#")[0].split() for line in COMMANDS if line.startswith("netsvc ")]


def test_the_first_command_serves_what_it_says_without_installing(tmp_path: Path) -> None:
    words = COMMANDS[0].partition(".venv/bin/twistd ")[2].split()
    taken = {"9001": "0", "9002": "0", "9003": "0"}
    with Server([TWISTD, *(taken.get(word, word) for word in words)], cwd=ROOT) as server:
        server.wait_for("ready$")
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"
        with datagrams(server.port("echo udp")) as socket_:
            socket_.send(b"hello")
            assert socket_.recv(100) == b"hello"
        with connect(server.port("chat line")) as stream:
            stream.sendall(b"/quit\n")
            assert b"guest1" in read_all(stream)
        with connect(server.port("files classic")) as stream:
            stream.sendall(b"hello.txt\n")
            assert read_all(stream) == (ROOT / "public/hello.txt").read_bytes()


@pytest.mark.slow
def test_the_first_command_works_in_a_fresh_directory(tmp_path: Path) -> None:
    installed(tmp_path)
    ports = [free_port() for _ in range(3)]
    command = COMMANDS[0]
    for name, port in zip(("9001", "9002", "9003"), ports, strict=True):
        command = command.replace(name, str(port))
    # pip tells the program that it runs for what to use; the rest is what the reader has.
    with Server(["bash", "-c", f"exec bash -c '{command}'"], cwd=tmp_path, env={"PYTHONPATH": ""}) as server:
        server.wait_for("ready$", patience=300)
        with connect(ports[0]) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"
        client = [str(tmp_path / ".venv/bin/netsvc"), "get", f"localhost:{ports[2]}", "hello.txt", "-o", "got.txt"]
        got = subprocess.run(client, cwd=tmp_path, capture_output=True, timeout=PATIENCE, check=False)
        assert got.returncode == 0, got.stderr
        assert (tmp_path / "got.txt").read_text("utf-8") == "It works. 能用。\n"
        server.signal_group(signal.SIGTERM)
        server.wait()


@pytest.mark.slow
def test_the_configuration_shown_is_written_run_reloaded_upgraded_and_drained(tmp_path: Path) -> None:
    assert [words[1] for words in SHOWN[:5]] == ["init", "run", "status", "upgrade", "drain"]
    for words in (SHOWN[0], ["netsvc", "check"]):
        ended = run(sys.executable, "-m", "netsvc", *words[1:], cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    file = tmp_path / "netsvc.toml"
    # Somebody else may have those ports here.
    file.write_text(re.sub(r"\b900\d\b", "0", file.read_text("utf-8")), "utf-8")
    with Server([sys.executable, "-m", "netsvc", *SHOWN[1][1:]], cwd=tmp_path) as server:
        server.wait_for("ready$")
        for words in (["netsvc", "reload"], *SHOWN[2:5]):
            ended = run(sys.executable, "-m", "netsvc", *words[1:], cwd=tmp_path)
            assert ended.returncode == 0, ended.stderr
        server.wait_for("reloaded")
        server.wait()


@pytest.mark.slow
def test_the_clients_shown_work_against_the_services_shown(tmp_path: Path) -> None:
    with Server.twistd("--tcp", "0", "--chat", "0", "--files", "0", "--files-root", str(ROOT / "public")) as server:
        ports = {
            name: server.port(label)
            for name, label in (("9001", "echo tcp"), ("9002", "chat line"), ("9003", "files classic"))
        }
        inputs = {"talk": "hello\n", "chat": "/quit\n", "get": ""}
        assert [words[1] for words in SHOWN[5:]] == ["talk", "chat", "get"]
        for words in SHOWN[5:]:
            arguments = [re.sub(r"(?<=:)\d+", lambda match: str(ports[match[0]]), word) for word in words[1:]]
            ended = run(sys.executable, "-m", "netsvc", *arguments, cwd=tmp_path, stdin=inputs[words[1]])
            assert ended.returncode == 0, ended.stderr
            if words[1] == "talk":
                assert ended.stdout == "hello\n"
        assert (tmp_path / "hello.txt").read_bytes() == (ROOT / "public/hello.txt").read_bytes()


def test_the_dependencies_named_are_those_declared() -> None:
    declared = re.search(r"install_requires =\n((?: .*\n)+)", (ROOT / "setup.cfg").read_text())
    assert declared
    section = README.partition("Dependencies: ")[2]
    for line in re.sub(r" *#.*\n", "", declared[1]).splitlines():
        name = re.split(r"[ \[>]", line.strip())[0]
        assert name in section, name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nc") is None, reason="needs nc, which .ci/run installs")
def test_nc_is_client_enough() -> None:
    with Server.twistd("--tcp", "0", "--chat", "0") as server:
        echo = run("nc", "-N", "localhost", str(server.port("echo tcp")), stdin="hello\n你好\n")
        assert echo.stdout == "hello\n你好\n"
        chat = run("nc", "-N", "localhost", str(server.port("chat line")), stdin="/nick 小明\n/who\n")
        assert "* in lobby: 小明\n" in chat.stdout
