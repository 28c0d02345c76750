"""`netsvc share` as a process, with a real client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE

pytestmark = pytest.mark.slow


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "netsvc", "share", "--local", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_file_is_shared_once(tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(b"x" * 1_000_000)
    with start("--once", str(tmp_path / "f.bin")) as share:
        assert share.stdout is not None
        url = share.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            assert answer.read() == b"x" * 1_000_000
        assert share.wait(PATIENCE) == 0


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    with start(str(tmp_path)) as share:
        assert share.stdout is not None
        assert share.stdout.readline().startswith("http://127.0.0.1:")
        share.send_signal(signal.SIGINT)
        out, err = share.communicate(timeout=PATIENCE)
        assert (share.returncode, out, len(err.splitlines())) == (0, "", 2)


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with start("--port", str(taken.getsockname()[1]), str(tmp_path)) as share:
            _, err = share.communicate(timeout=PATIENCE)
            assert (share.returncode, len(err.splitlines())) == (1, 1)


def test_get_downloads_and_resumes_what_is_shared(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    shared, here = tmp_path / "shared", tmp_path / "here"
    for directory in (shared, here):
        directory.mkdir()
    for name in ("a.bin", "b.bin"):
        (shared / name).write_bytes(data)
        # So long ago that its tag is strong.
        os.utime(shared / name, (0, 0))
    with start(str(shared)) as share:
        assert share.stdout is not None
        url = share.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}b.bin", timeout=PATIENCE) as answer:
            state = {"url": f"{url}b.bin", "validator": answer.headers["ETag"], "size": len(data)}
        (here / "b.bin.part").write_bytes(data[:1_000_000])
        (here / "b.bin.part.json").write_text(json.dumps(state))
        got = subprocess.run(
            [sys.executable, "-m", "netsvc", "get", f"{url}a.bin", f"{url}b.bin"],
            cwd=here,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert (got.returncode, got.stderr) == (0, b"")
        missing = subprocess.run(
            [sys.executable, "-m", "netsvc", "get", f"{url}none"], cwd=here, capture_output=True, timeout=PATIENCE
        )
        assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
        share.terminate()
        _, err = share.communicate(timeout=PATIENCE)
    assert sorted(each.name for each in here.iterdir()) == ["a.bin", "b.bin"]
    assert (here / "a.bin").read_bytes() == (here / "b.bin").read_bytes() == data
    assert f"{len(data) - 1_000_000} bytes" in err
