"""`netsvc new` writes a service that installs, passes its tests and lint, and runs alone and beside others."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsvc.cli.new import new
from tests.builders.installation import INSTALLING, Installation, install
from tests.builders.processes import PATIENCE, ROOT, Server, connect, free_port, read_all

FORMS = [(*kinds, form) for kinds in ((), ("--stream",), ("--datagram",)) for form in ("--coroutine", "--class")]


def made(*words: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(where)
    ended = CliRunner().invoke(new, words, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return where / words[0]


def check(*words: object, cwd: Path) -> str:
    """Run a Python module in a directory to its end; it must succeed."""
    ended = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        env={"PYTHONPATH": f"{cwd}:{ROOT}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_its_own_tests_pass(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = made("blue-lights", *words, where=tmp_path, monkeypatch=monkeypatch)
    check("pytest", "-q", "-p", "no:cacheprovider", cwd=directory)
    listed = check("netsvc", "check", cwd=directory)
    for kind, protocol in (("--stream", "tcp"), ("--datagram", "udp")):
        assert (protocol in listed) == (kind in words or len(words) == 1)


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("ruff") and find_spec("mypy")), reason="needs ruff and mypy, of the extra dev")
@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_it_is_clean_by_our_own_rules(
    words: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = made("lights", *words, where=tmp_path, monkeypatch=monkeypatch)
    rules = ("--config", ROOT / "pyproject.toml", "--no-cache")
    check("ruff", "check", *rules, ".", cwd=directory)
    check("ruff", "format", *rules, "--check", ".", cwd=directory)
    # What it knows of netsvc and Twisted, it has to find out once.
    cache = tmp_path_factory.getbasetemp() / "mypy"
    check("mypy", "--strict", "--cache-dir", cache, "lights.py", cwd=directory)


class TestRefusals:
    """A name that cannot be used, or a directory that cannot be made, is one line, and nothing is written."""

    @pytest.mark.parametrize(
        "name", ["Lights", "-", "a--b", "a/b", "../a", "x" * 41, "\x1b[1m", "tcp", "limit", "echo", "json", "class"]
    )
    def test_of_a_name(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        ended = CliRunner().invoke(new, ["--", name], catch_exceptions=False)
        [line] = ended.output.splitlines()
        assert ended.exit_code != 0 and line.isprintable()
        assert not list(tmp_path.iterdir())

    def test_of_a_directory_that_exists(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory = made("lights", where=tmp_path, monkeypatch=monkeypatch)
        (directory / "lights.py").write_text("mine")
        ended = CliRunner().invoke(new, ["lights"], catch_exceptions=False)
        assert ended.exit_code != 0 and "lights" in ended.output
        assert (directory / "lights.py").read_text() == "mine"


@pytest.mark.slow
class TestInstalled:
    """Its README's commands work, and both `netsvc run --NAME` and `twistd netsvc-NAME`."""

    @pytest.fixture
    def installation(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
        installation = install(tmp_path_factory)
        yield installation
        installation.run("pip", "uninstall", "-q", "-y", "netsvc-lights")

    @pytest.mark.parametrize("editable", [True, False], ids=["editable", "wheel"])
    def test_it_is_found_and_serves(self, installation: Installation, editable: bool, tmp_path: Path) -> None:
        def run(*words: str | Path) -> str:
            ended = subprocess.run(
                [installation.program(str(words[0])), *words[1:]],
                cwd=tmp_path,
                env=installation.environment,
                capture_output=True,
                text=True,
                timeout=10 * PATIENCE,
                check=False,
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            return ended.stdout

        run("netsvc", "new", "lights")
        # A second module, written without a look at pyproject.toml.
        (tmp_path / "lights/more_lights.py").touch()
        with (tmp_path / "lights/lights.py").open("a") as file:
            file.write("\nimport more_lights\n")
        run("pip", "install", "-q", *(["-e"] if editable else []), "./lights[test]")
        run("pytest", "-q", "lights/tests")
        assert re.search(r"^lights  ", run("netsvc", "list"), re.M)
        assert "netsvc-lights" in run("twistd", "--help")
        port, other = free_port(), free_port()
        for words in (
            ("netsvc", "run", "--lights", str(port), "--lights-udp", str(port), "--tcp", str(other)),
            ("twistd", "-n", "--pidfile=", "netsvc-lights", str(port)),
        ):
            command = [str(installation.program(words[0])), *words[1:]]
            with Server(command, cwd=tmp_path, env=installation.environment) as server:
                server.wait_for("ready$")
                with connect(port) as client:
                    client.sendall(b"hello\n")
                    client.shutdown(1)
                    assert read_all(client) == b"you said hello\n"

    def test_the_commands_of_its_readme_work_one_after_the_other(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        """On other ports: 9001 and 9002 may be taken here. The wheel of netsvc comes from this checkout."""
        environment = {**installation.environment, "PIP_FIND_LINKS": str(installation.dist)}
        shell = ["bash", "-e", "-c"]
        subprocess.run([*shell, "netsvc new lights"], cwd=tmp_path, env=environment, check=True)
        directory = tmp_path / "lights"
        ports = {"9001": str(free_port()), "9002": str(free_port())}
        for name in ("README.md", "netsvc.toml"):
            text = (directory / name).read_text()
            (directory / name).write_text(re.sub("900[12]", lambda match: ports[match[0]], text))
        blocks = re.findall(r"```sh\n(.*?)```", (directory / "README.md").read_text(), re.S)
        [[*making, serving], asking, others] = [block.splitlines() for block in blocks]
        subprocess.run([*shell, "\n".join(making)], cwd=directory, env=environment, check=True, timeout=INSTALLING)
        for command in (serving, *others):
            words = command.split()
            words[0] = str(installation.program(words[0]))
            with Server(words, cwd=directory, env=environment) as server:
                server.wait_for("ready$")
                if command == serving:
                    said = subprocess.check_output(
                        [*shell, "\n".join(asking)], cwd=directory, env=environment, text=True
                    )
                    assert said.startswith("you said hello\nyou said hello\n") and "lights" in said
                with connect(int(ports["9001"])) as client:
                    client.sendall(b"hello\n")
                    client.shutdown(1)
                    assert read_all(client) == b"you said hello\n"
