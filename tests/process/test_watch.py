"""`netsvc run --reload-on-change` serves changed code without closing a listener, and keeps what works."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from netsvc.cli.watch import is_source, watched_directories
from tests.builders.processes import Server, connect, free_port, read_all
from tests.builders.several import until

SERVED = """
async def greet(stream):
    await stream.write(b"{}")
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/my.py", True),
        ("/a/netsvc.toml", True),
        ("/a/my.pyc", False),
        ("/a/__pycache__/my.py", False),
        ("/a/.venv/my.py", False),
        ("/a/lib/site-packages/my.py", False),
        ("/a/data.txt", False),
    ],
)
def test_sources_are_watched(path: str, expected: bool) -> None:
    assert is_source(None, path) is expected


def test_directories_of_named_files_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here/deep/one.py", "there/two.py", "other/netsvc.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    words = ["--serve", "deep/one.py:One=9001", "--serve", "name=../there/two.py:Two=9002"]
    assert watched_directories([*words, f"--config={tmp_path}/other/netsvc.toml", "--tcp", "9001"]) == [
        str(tmp_path / name) for name in ("here", "other", "there")
    ]


@pytest.mark.slow
def test_changed_code_is_served_and_broken_code_is_not(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    file, port = tmp_path / "my.py", free_port()

    def save(text: str) -> None:
        """Save a file whole, as editors do, and always at the same time."""
        (tmp_path / "new").write_text(text)
        os.utime(tmp_path / "new", (1_000_000_000, 1_000_000_000))
        (tmp_path / "new").replace(file)

    save(SERVED.format("one"))

    def answer() -> bytes:
        with connect(port) as client:
            return read_all(client)

    words = ("--reload-on-change", "--serve", f"my.py:greet=127.0.0.1:{port}")
    with Server([sys.executable, "-m", "netsvc", "run", *words], cwd=tmp_path) as server:
        server.wait_for("ready$")
        assert answer() == b"one"
        save(SERVED.format("two"))
        # It always answers: the listener is not closed.
        until(lambda: answer() == b"two")
        server.wait_for("upgraded: ")
        save("broken(")
        server.wait_for("not upgraded: .*SyntaxError")
        assert answer() == b"two"
        save(SERVED.format("three"))
        until(lambda: answer() == b"three")
        assert server.stop(signal.SIGTERM) == 0
