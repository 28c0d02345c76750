"""Files over TFTP from a real process to real clients."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.files import pattern
from tests.builders.processes import PATIENCE, TWISTD, Server

pytestmark = pytest.mark.slow

#: A multiple of the usual block size.
CONTENT = pattern(512 * 600)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    root = tmp_path_factory.mktemp("root")
    (root / "f").write_bytes(CONTENT)
    arguments = ["--files-tftp", "127.0.0.1:0", "--files-root", str(root)]
    with Server([TWISTD, "-n", "--pidfile=", "netsvc", *arguments]) as started:
        started.wait_for("ready$")
        yield started.port("files tftp")
        started.stop()
        assert "Traceback" not in started.log + started.stderr


@pytest.mark.parametrize(
    "command",
    [
        "curl -s -o got tftp://127.0.0.1:{port}/f",
        "curl -s --tftp-blksize 1428 -o got tftp://127.0.0.1:{port}/f",
        "atftp -g -r f -l got 127.0.0.1 {port}",
        "atftp --option blksize=1428 -g -r f -l got 127.0.0.1 {port}",
        "tftp -m binary 127.0.0.1 {port} -c get f got",
        "busybox tftp -g -r f -l got -b 1400 127.0.0.1 {port}",
    ],
)
def test_a_client_gets_a_file(port: int, tmp_path: Path, command: str) -> None:
    words = command.format(port=port).split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} here")
    words = ["blksize 1428" if word == "blksize=1428" else word for word in words]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=PATIENCE)
    assert (tmp_path / "got").read_bytes() == CONTENT
