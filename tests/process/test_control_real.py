"""A command reaches the process that it names, or none: not that of another user, nor that of another container."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netsvc.control.location import abstract_config_name, abstract_pid_name, config_keys
from tests.builders.containers import UNSHARE, container, enter
from tests.builders.facts import drained
from tests.builders.processes import TWISTD, Server, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="commands need Linux")]
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")

NOBODY, NOGROUP = 65534, 65534

#: Answers every command at these names with success.
_SQUATTER = """\
import os, select, socket, sys
os.setgid(65534), os.setuid(65534)
listening = []
for name in sys.argv[1:]:
    listening.append(socket.socket(socket.AF_UNIX))
    listening[-1].bind(name.replace("@", "\\0", 1))
    listening[-1].listen()
print("ready", flush=True)
while True:
    for ready in select.select(listening, [], [])[0]:
        with ready.accept()[0] as connection:
            connection.settimeout(0.2)
            try:
                connection.recv(1000)
                connection.sendall(b'{"out": "squatted"}\\n{"status": 0}\\n')
            except OSError:
                pass
"""


@contextmanager
def squatting(*names: str) -> Iterator[None]:
    """Be another user that has taken these names."""
    words = [sys.executable, "-c", _SQUATTER, *(name.replace("\0", "@") for name in names)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


NETSVC = [sys.executable, "-m", "netsvc"]


def command(*words: str, cwd: Path | None = None) -> tuple[int, str]:
    result = run(*NETSVC, *words, cwd=cwd)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@only_root
class TestAnotherUserThatHasTakenTheNames:
    def test_gets_no_command_and_is_an_error(self, tmp_path: Path) -> None:
        config = tmp_path / "netsvc.toml"
        config.touch()
        key = config_keys(str(config))[0]
        pid = 1
        with squatting(abstract_config_name(key), abstract_pid_name(pid)):
            for words in (["--config", str(config)], ["--pid", str(pid)], ["--pid", str(os.getpid())], []):
                status, said = command("reload", *words, cwd=tmp_path)
                assert status == 1, said
                assert "squatted" not in said
                assert words[:1] == ["--pid"] or f"user {NOBODY}" in said

    @pytest.mark.parametrize("user", [(), ("--uid", str(NOBODY), "--gid", str(NOGROUP))], ids=["root", "nobody"])
    def test_keeps_no_command_from_the_process(self, user: tuple[str, ...], public: Path) -> None:
        config = public / "netsvc.toml"
        config.write_text("[services.echo]\ntcp = '127.0.0.1:0'\n")
        with squatting(abstract_config_name(config_keys(str(config))[0])):
            server = Server([TWISTD, "-n", "--pidfile=", *user, "netsvc", "--config", str(config)])
            server.wait_for("ready$")
            with server:
                assert command("reload", "--config", str(config)) == (0, "reloaded: 1 listener kept\n")
                assert command("reload", "--pid", str(server.process.pid)) == (0, "reloaded: 1 listener kept\n")
                # It is the only one, and the directory says that root has started it.
                status, said = command("drain", cwd=public)
                assert status == 0, said
                assert server.wait() == 0


def inside(first: int, *words: str) -> tuple[int, str]:
    """Run a command of netsvc in the container of a process."""
    result = enter(first, *NETSVC, *words)
    return result.returncode, result.stdout + result.stderr


@only_root
class TestContainersThatShareTheNetwork:
    def test_have_control_sockets_of_their_own(self, tmp_path: Path) -> None:
        config = tmp_path / "netsvc.toml"
        config.write_text("[services.echo]\ntcp = '127.0.0.1:0'\n")
        done = (0, "reloaded: 1 listener kept\n")
        with container("--config", str(config)) as (one, first), container("--config", str(config)) as (other, second):
            for words in (["--config", str(config)], ["--pid", "1"], []):
                assert inside(second, "reload", *words) == done
                other.wait_for(done[1].strip())
            # From outside, each is known by the pid that it has there.
            assert command("reload", "--pid", str(first)) == done
            one.wait_for(done[1].strip())
            # The end of its first process ends the container, and the command with it, before or after it has spoken.
            inside(second, "drain")
            other.wait()
            [stopped] = [line for line in other.lines if "stopped: " in line]
            assert drained(stopped) == (0, {}, {})
            # In a container without a netsvc, none is meant.
            result = run(*UNSHARE, *NETSVC, "drain")
            assert (result.returncode, result.stdout) == (1, "")
            assert inside(first, "status", "--once")[0] == 0
            assert one.process.poll() is None
        assert "no control socket" not in one.log + other.log

    def test_and_directories_may_have_other_files_of_the_same_name(self, tmp_path: Path) -> None:
        config, other = tmp_path / "netsvc.toml", tmp_path / "other.toml"
        for file in (config, other):
            file.write_text("[services.echo]\ntcp = '127.0.0.1:0'\n")
        mounted = f'mount --bind {other} {config} || exit 99\nexec "$@"'
        words = ["unshare", "--mount", "sh", "-c", mounted, "sh", TWISTD, "-n", "--pidfile=", "netsvc"]
        server = Server([*words, "--config", str(config)])
        try:
            server.wait_for("ready$")
        except AssertionError:
            if "unshare:" in server.stderr or "mount:" in server.stderr:
                pytest.skip(f"nothing may be mounted here: {server.stderr.strip()}")
            raise
        with server:
            status, said = command("drain", "--config", str(config))
            assert status == 1
            assert f"--pid {server.process.pid}" in said
            assert command("reload", "--pid", str(server.process.pid))[0] == 0
            # With the same file in another namespace, as of a unit of systemd, it is meant.
            there = ["nsenter", "--target", str(server.process.pid), "--mount", "unshare", "--mount"]
            result = run(*there, *NETSVC, "reload", "--config", str(config))
            assert result.returncode == 0, result.stderr
