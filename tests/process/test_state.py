"""The state directory: made for its user, with a directory for each service and a file that says how the process is."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger

from netsvc.app.state import STATE_FILE, StateFile
from netsvc.base.errors import UserError
from netsvc.base.files import write_atomic
from netsvc.interfaces import Context
from netsvc.plan.plan import Plan
from netsvc.server.instances import examine, service_directory
from tests.builders.fake_server import FakeServer
from tests.builders.logs import Lines, collected
from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server
from tests.builders.reloaded import ONE, plan, world

lines = pytest.fixture(collected, name="lines")


def kept(state: str | None) -> tuple[StateFile, FakeServer]:
    """Keep the state of a server."""
    server = FakeServer(Plan({}, (), state=state))
    server.open = [("echo", "tcp", "127.0.0.1:9001")]
    return StateFile(server), server


def read(directory: Path) -> Any:
    return json.loads((directory / STATE_FILE).read_text("utf-8"))


def test_the_file_says_how_the_process_is(tmp_path: Path) -> None:
    place = tmp_path / "a/b"
    file, server = kept(str(place))
    file.make_directory({})
    assert place.stat().st_mode & 0o777 == 0o700
    assert list(place.iterdir()) == []
    file.write(first=True)
    assert read(place) | {"time": 0, "version": ""} == {
        "version": "",
        "pid": os.getpid(),
        "state": "ready",
        "time": 0,
        "listeners": [{"service": "echo", "protocol": "tcp", "place": "127.0.0.1:9001"}],
    }
    server.open = []
    file.write()
    assert read(place)["listeners"] == []
    server.state = "draining"
    file.write()
    assert read(place)["state"] == "draining"
    assert [each.name for each in place.iterdir()] == [STATE_FILE]


def test_one_that_never_was_ready_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text("of another")
    file, _ = kept(str(tmp_path))
    file.make_directory({})
    file.write()
    assert (tmp_path / STATE_FILE).read_text() == "of another"


def test_without_a_directory_nothing_is_written() -> None:
    file, _ = kept(None)
    file.make_directory({})
    file.write(first=True)


def test_one_that_has_been_replaced_leaves_the_file_to_who_replaces_it(tmp_path: Path) -> None:
    file, server = kept(str(tmp_path))
    file.write(first=True)
    (tmp_path / STATE_FILE).write_text('{"pid": 1, "state": "ready"}')
    server.state = "draining"
    file.write()
    assert read(tmp_path) == {"pid": 1, "state": "ready"}


@pytest.mark.parametrize("broken", ["", "{}", "[]", '{"pid": "x"}', "\xff"])
def test_a_file_that_says_nothing_is_written_anew(broken: str, tmp_path: Path) -> None:
    file, server = kept(str(tmp_path))
    file.write(first=True)
    (tmp_path / STATE_FILE).write_text(broken, "latin-1")
    server.state = "draining"
    file.write()
    assert read(tmp_path)["state"] == "draining"


def test_that_it_cannot_be_written_is_said_once_and_changes_nothing(tmp_path: Path, lines: Lines) -> None:
    place = tmp_path / "state"
    file, _ = kept(str(place))
    file.make_directory({})
    place.rmdir()
    file.write(first=True)
    file.write()
    [warning] = lines
    assert warning.startswith(f"{place}/{STATE_FILE} cannot be written: No such file or directory; ")
    place.mkdir()
    file.write()
    assert read(place)["state"] == "ready"
    (place / STATE_FILE).unlink()
    place.rmdir()
    file.write()
    assert lines == [warning, warning]


def test_a_directory_that_cannot_be_made_stops_the_start_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("file", "Not a directory"), ("file/x", "Not a directory")):
        with pytest.raises(UserError, match=rf"--state {tmp_path}/{name}: ({reason}); "):
            kept(f"{tmp_path}/{name}")[0].make_directory({})


def test_a_directory_that_is_made_belongs_to_the_user_that_the_process_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda descriptor, user, group: given.append((user, group)))
    file, _ = kept(str(tmp_path / "one"))
    for _ in range(2):
        file.make_directory({"uid": 1234, "gid": None})
    assert given == [(1234, -1)]


@pytest.mark.parametrize("key", ["echo", "a-b-2"])
def test_a_service_has_a_directory_of_its_name(key: str) -> None:
    assert service_directory("/var/lib/netsvc", key) == Path("/var/lib/netsvc", key)
    assert service_directory(None, key) is None


def test_names_that_are_no_names_of_files_have_directories_that_differ() -> None:
    keys = ["./my.py:One", "./my-py:One", "../../x:Y", "x" * 5000, "..", "é:É", STATE_FILE]
    made = [service_directory("/s", key) for key in keys]
    assert len(set(made)) == len(keys)
    for each in made:
        assert each is not None
        assert each.parent == Path("/s")
        assert len(each.name) < 100
        assert each.name not in ("..", STATE_FILE)


def test_a_service_is_lent_its_directory_which_is_made_when_it_asks(tmp_path: Path) -> None:
    with world(replace(plan(ONE, "one tcp 127.0.0.1:0"), state=str(tmp_path))) as made:
        context = made.core("one").context
        assert context.state_directory == tmp_path / "one"
        assert list(tmp_path.iterdir()) == []
        assert context.make_state_directory() == tmp_path / "one"
        assert context.make_state_directory().stat().st_mode & 0o777 == 0o700
        errors = examine(made.host.plan, made.load, made.reactor)
        assert errors == []
        assert made.core("one").context.state_directory == tmp_path / "one"


def test_what_it_keeps_there_is_as_the_documentation_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/reference/process.md").read_text("utf-8")
    document = page.partition("\n## State\n")[2].partition("\n## ")[0]
    file, _ = kept(str(tmp_path))
    file.write(first=True)
    for word in (*read(tmp_path), *("ready", "draining", "stopped"), STATE_FILE):
        assert f"`{word}`" in document
    context = Context(Clock(), Logger(), tmp_path / "echo")
    [written] = re.findall(r"`(write_atomic\(.*?\))`", document, re.S)
    exec(written, {"write_atomic": write_atomic, "context": context, "text": "seen"})
    assert (tmp_path / "echo/seen.json").read_text() == "seen"


def test_without_one_or_where_it_cannot_be_made_a_service_has_a_mistake_to_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--state DIR"):
        Context(Clock(), Logger()).make_state_directory()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/file/x: Not a directory; .*--state"):
        Context(Clock(), Logger(), tmp_path / "file/x").make_state_directory()


#: In a mount namespace of its own: the disk is full before netsvc starts, and until the file `more` is gone.
_FULL = """\
mount -t tmpfs -o size=32k none {place} || exit 99
head -c 100000 /dev/zero > {place}/ballast 2>/dev/null
touch {place}/../mounted
exec {command}
"""


@pytest.mark.slow
def test_a_full_disk_is_a_warning_and_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    config = tmp_path / "netsvc.toml"
    config.write_text('state = "state"\ndrain = 0\n[services.echo]\ntcp = "127.0.0.1:0"\n')
    command = shlex.join([TWISTD, "-n", "--pidfile=", "netsvc", "--config", str(config)])
    # -i: the mounts are seen from the directory /proc/PID/root of who is in there.
    script = _FULL.format(place=place, command=command)
    server = Server(["unshare", "--mount", "--map-root-user", "sh", "-c", script])
    try:
        server.wait_for("ready$")
    except AssertionError:
        if not (tmp_path / "mounted").exists():
            pytest.skip(f"nothing may be mounted here: {server.stderr.strip()}")
        raise
    with server:
        warning = "netsvc.json cannot be written: No space left on device; "
        assert warning in server.log
        seen = Path(f"/proc/{server.process.pid}/root{place}")
        assert sorted(os.listdir(seen)) == ["ballast"]
        reload = [sys.executable, "-m", "netsvc", "reload", "--config", str(config)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert (
            subprocess.run(reload, env=environment, timeout=PATIENCE, capture_output=True, check=False).returncode == 0
        )
        os.remove(seen / "ballast")
        assert (
            subprocess.run(reload, env=environment, timeout=PATIENCE, capture_output=True, check=False).returncode == 0
        )
        content = json.loads((seen / STATE_FILE).read_text())
        assert (content["state"], content["pid"]) == ("ready", server.process.pid)
        assert sorted(os.listdir(seen)) == [STATE_FILE]
        assert server.log.count("cannot be written") == 1


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="it needs root to be given up")
def test_root_makes_it_for_the_user_that_it_becomes() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/var/tmp") as above:
        os.chmod(above, 0o755)
        state = Path(above, "state")
        before = ("--uid", "65534", "--gid", "65534")
        with Server.twistd("--tcp", "127.0.0.1:0", "--state", str(state), before=before):
            assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (65534, 0o700)
            assert (state / STATE_FILE).stat().st_uid == 65534
        assert json.loads((state / STATE_FILE).read_text())["state"] == "stopped"
