"""A real process whose directory, a release, is replaced and removed: it reloads and is upgraded all the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.builders.processes import TWISTD, Server, run

pytestmark = pytest.mark.slow

NETSVC = str(Path(TWISTD).with_name("netsvc"))


@pytest.mark.parametrize(("config", "named"), [("netsvc.toml", True), ("/absolute", False), ("netsvc.toml", False)])
def test_a_release_that_is_removed(tmp_path: Path, config: str, named: bool) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "netsvc.toml").write_text('[services.echo]\ntcp = "127.0.0.1:0"\n')
    (tmp_path / "current").symlink_to("one")
    if config == "/absolute":
        config = str(shutil.copy(str(tmp_path / "one" / "netsvc.toml"), str(tmp_path)))
    # A shell sets PWD, and systemd does not.
    environment = {"PWD": str(tmp_path / "current") if named else ""}
    with Server([NETSVC, "run", "--config", config], cwd=tmp_path / "current", env=environment) as server:
        server.wait_for("ready$")
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to("two")
        shutil.rmtree(tmp_path / "one")
        found = named or config != "netsvc.toml"
        for command in ("reload", "upgrade", "upgrade"):
            ended = run(NETSVC, command, "--pid", str(server.process.pid))
            assert ended.returncode == (0 if found else 1), ended.stderr
            if not found:
                assert f"{tmp_path}/one" in ended.stderr
            elif command == "upgrade":
                break
        server.stop()


SERVICE = """
from twisted.internet.protocol import Protocol


class Hello(Protocol):
    def connectionMade(self):
        self.transport.loseConnection()
"""


def test_a_reload_after_a_code_change_says_what_loads_it(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(SERVICE)
    with Server([NETSVC, "run", "--serve", "hello.py:Hello=127.0.0.1:0"], cwd=tmp_path) as server:
        server.wait_for("ready$")
        pid = str(server.process.pid)
        assert "code" not in run(NETSVC, "reload", "--pid", pid).stdout
        (tmp_path / "hello.py").write_text(f"{SERVICE}\n# Changed.\n")
        answer = run(NETSVC, "reload", "--pid", pid)
        assert answer.returncode == 0
        assert f"{tmp_path}/hello.py" in answer.stdout and "netsvc upgrade" in answer.stdout
        upgraded = run(NETSVC, "upgrade", "--pid", pid)
        assert upgraded.returncode == 0
        server.wait_for("upgraded: ")
        server.stop()
