"""The Procfile under honcho, and what an installation brings."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import zipfile
from pathlib import Path

import pytest

from tests.processes import PATIENCE, ROOT, Server, connect, free_port
from tests.test_readme import installed

SERVICES = ("netsvc", "netsvc-chat", "netsvc-echo", "netsvc-files", "netsvc-reply")


@pytest.mark.slow
def test_the_procfile_serves_and_stops_in_time_with_nothing_lost_in_flight() -> None:
    scripts = sysconfig.get_path("scripts")
    port = free_port()
    environment = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PORT": str(port)}
    with Server([f"{scripts}/honcho", "-f", str(ROOT / "Procfile"), "start"], cwd=ROOT, env=environment) as server:
        server.wait_for("ready")
        sent = 16 * 1024 * 1024
        received = 0

        def read() -> None:
            nonlocal received
            while chunk := client.recv(65536):
                received += len(chunk)

        with connect(port) as client:
            reader = threading.Thread(target=read)
            reader.start()
            client.sendall(b"x" * (sent // 2))
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            client.sendall(b"x" * (sent // 2))
            client.shutdown(socket.SHUT_WR)
            reader.join(PATIENCE)
        assert received == sent
        server.wait()
        # honcho kills after 5 s and says so.
        assert "SIGKILL" not in server.log
        assert "1 connection ended by itself" in server.log


@pytest.mark.slow
def test_an_idle_connection_does_not_keep_the_procfile_from_stopping_in_time() -> None:
    scripts = sysconfig.get_path("scripts")
    port = free_port()
    environment = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PORT": str(port)}
    with Server([f"{scripts}/honcho", "-f", str(ROOT / "Procfile"), "start"], cwd=ROOT, env=environment) as server:
        server.wait_for("ready")
        with connect(port) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            server.process.send_signal(signal.SIGTERM)
            assert client.recv(5) == b""
        server.wait()
        assert "SIGKILL" not in server.log
        assert "closed at the end of 4 s: 1 echo tcp" in server.log


def _venv(directory: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", directory], check=True, timeout=300)
    return directory / "bin"


def _shell(*words: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    command = [str(word) for word in words]
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def _lists_all(scripts: Path, cwd: Path) -> None:
    listed = _shell(scripts / "twistd", "--help", cwd=cwd)
    for name in SERVICES:
        assert re.search(rf"^    {name}\s", listed, re.M), listed
    listed = _shell(scripts / "netsvc", "list", cwd=cwd)
    assert "not usable" not in listed
    for name in SERVICES[1:]:
        assert re.search(rf"^{name.removeprefix('netsvc-')}  ", listed, re.M), listed


@pytest.mark.slow
def test_pip_install_brings_every_command(tmp_path: Path) -> None:
    source = tmp_path / "source"
    installed(source)
    scripts = _venv(tmp_path / "venv")
    _shell(scripts / "pip", "install", "-q", source, cwd=tmp_path)
    _lists_all(scripts, tmp_path)


@pytest.mark.slow
def test_an_editable_install_brings_every_command(tmp_path: Path) -> None:
    source = tmp_path / "source"
    installed(source)
    scripts = _venv(tmp_path / "venv")
    _shell(scripts / "pip", "install", "-q", "-e", source, cwd=tmp_path)
    _lists_all(scripts, tmp_path)


@pytest.mark.slow
def test_a_wheel_holds_the_plugin_file_and_brings_every_command(tmp_path: Path) -> None:
    source = tmp_path / "source"
    installed(source)
    _shell(sys.executable, "-m", "build", "-q", "-o", tmp_path / "dist", source, cwd=tmp_path)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "twisted/plugins/netsvc_plugins.py" in names
    assert "netsvc/py.typed" in names
    assert "twisted/__init__.py" not in names
    packages = {str(Path(name).parent) for name in names if name.endswith(".py")}
    expected = {
        str(path.parent.relative_to(ROOT)) for path in ROOT.glob("netsvc/**/*.py") if "__pycache__" not in path.parts
    }
    assert packages == expected | {"twisted/plugins"}
    scripts = _venv(tmp_path / "venv")
    _shell(scripts / "pip", "install", "-q", wheel, cwd=tmp_path)
    _lists_all(scripts, tmp_path)


@pytest.mark.slow
def test_the_oldest_supported_dependencies_serve(tmp_path: Path) -> None:
    source = tmp_path / "source"
    installed(source)
    scripts = _venv(tmp_path / "venv")
    declared = re.search(r"install_requires =\n((?: .*\n)+)", (ROOT / "setup.cfg").read_text())
    assert declared
    oldest = [line.strip().replace(" >= ", "==") for line in declared[1].splitlines()]
    _shell(scripts / "pip", "install", "-q", source, *oldest, "pytest", "pytest-twisted", "hypothesis", cwd=tmp_path)
    _lists_all(scripts, tmp_path)
    quick = ["tests/test_twistd.py", "tests/test_tutorial.py", "tests/test_guard.py", "tests/test_echo.py"]
    _shell(scripts / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *quick, cwd=source)


@pytest.mark.slow
def test_a_bare_checkout_serves_without_an_installation() -> None:
    for command in (
        [sys.executable, "-m", "netsvc", "run", "--tcp", "127.0.0.1:0"],
        [f"{sysconfig.get_path('scripts')}/twistd", "-n", "--pidfile=", "netsvc", "--tcp", "127.0.0.1:0"],
    ):
        with Server(command, cwd=ROOT, env={"PYTHONPATH": "."}) as server:
            server.wait_for("ready$")
