"""Archives and passwords of a real process, with the clients that people have."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, Server, run
from tests.builders.programs import program

pytestmark = pytest.mark.slow

BIG = os.urandom(3_000_000)
FILES = {"top/a.txt": b"text " * 10_000, "top/big.bin": BIG, "top/in/\u5b66\u4e60.txt": b"study", "top/in/empty": b""}
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    for name, data in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (784111777, 784111777))
    return directory


@pytest.fixture(scope="module")
def site(root: Path) -> Iterator[str]:
    with Server.twistd("--files-http", "127.0.0.1:0", "--files-root", str(root)) as server:
        yield f"http://127.0.0.1:{server.port('files http')}"


def command(*words: str, cwd: Path) -> str:
    ended = subprocess.run(words, cwd=cwd, capture_output=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.decode()


def unpacked(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize(
    ("kind", "name", "package", "words"),
    [
        ("zip", "unzip", "unzip", ("-q",)),
        ("zip", "bsdtar", "libarchive-tools", ("-xf",)),
        ("tar", "bsdtar", "libarchive-tools", ("-xf",)),
        ("tar", "tar", "tar", ("-xf",)),
    ],
)
def test_what_is_unpacked_is_what_was_there(  # noqa: PLR0917
    site: str, tmp_path: Path, kind: str, name: str, package: str, words: tuple[str, ...]
) -> None:
    unpack = program(name, package)
    curl = program("curl", "curl")
    archive = tmp_path / f"archive.{kind}"
    out = tmp_path / "out"
    out.mkdir()
    command(curl, "-sf", "-o", str(archive), f"{site}/top/?{kind}", cwd=tmp_path)
    command(unpack, *words, str(archive), cwd=out)
    assert unpacked(out) == FILES
    assert int((out / "top" / "a.txt").stat().st_mtime) == 784111777


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_stream_is_unpacked_as_it_comes(site: str, tmp_path: Path, kind: str) -> None:
    bsdtar, curl = program("bsdtar", "libarchive-tools"), program("curl", "curl")
    command("bash", "-c", f"set -o pipefail; {curl} -sf '{site}/top/?{kind}' | {bsdtar} -xf -", cwd=tmp_path)
    assert unpacked(tmp_path) == FILES


def test_python_reads_it(site: str, tmp_path: Path) -> None:
    command(program("curl", "curl"), "-sf", "-o", "a.zip", f"{site}/top/?zip", cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert {each.filename: archive.read(each) for each in archive.infolist() if not each.is_dir()} == FILES


def test_a_client_that_does_not_read_costs_nothing_and_gets_all_of_it_later(site: str) -> None:
    host, port = site.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as slow:
        # Smaller than what is sent, and not than a segment on loopback, which would come in drops of 200 ms.
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.sendall(b"GET /top/?tar HTTP/1.0\r\n\r\n")
        start = slow.recv(1000)
        # Others are served meanwhile.
        with socket.create_connection((host, int(port)), PATIENCE) as other:
            other.sendall(b"GET /top/in/empty HTTP/1.0\r\n\r\n")
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
        data = start
        while part := slow.recv(1 << 16):
            data += part
    assert len(data) > len(BIG) and data.endswith(bytes(1024))


def test_curl_knows_that_a_cut_archive_is_not_whole(root: Path, tmp_path: Path) -> None:
    with Server.twistd(
        *("--files-http", "127.0.0.1:0", "--files-root", str(root), "--files-archive-time", "1"),
        *("--files-limit", "write=1M"),
    ) as server:
        url = f"http://127.0.0.1:{server.port('files http')}/top/?tar"
        ended = subprocess.run(
            [program("curl", "curl"), "-sf", "-o", str(tmp_path / "a.tar"), url], timeout=PATIENCE, check=False
        )
        assert ended.returncode != 0
        server.wait_for("took too long")


def test_a_password_opens_the_files_and_no_log_has_it(root: Path, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "netsvc", "passwd", "alice", str(tmp_path / "users")],
        input=f"{PASSWORD}\n",
        text=True,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    curl = program("curl", "curl")
    token = "a-token-that-is-long-enough"
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    with Server.twistd(
        *("--files-http", "127.0.0.1:0", "--files-root", str(root)),
        *("--files-users", str(tmp_path / "users"), "--files-token", str(tmp_path / "token")),
    ) as server:
        url = f"http://127.0.0.1:{server.port('files http')}"
        for words in (
            ("-u", f"alice:{PASSWORD}", f"{url}/top/in/%E5%AD%A6%E4%B9%A0.txt"),
            ("-H", f"Authorization: Bearer {token}", f"{url}/top/in/%E5%AD%A6%E4%B9%A0.txt"),
            (f"{url}/{token}/top/in/%E5%AD%A6%E4%B9%A0.txt",),
        ):
            assert command(curl, "-sf", *words, cwd=tmp_path) == "study"
        for words in (("-u", "alice:wrong", f"{url}/top/"), (f"{url}/top/",), (f"{url}/{token[:-1]}/top/",)):
            code = command(curl, "-s", "-o", "body", "-w", "%{http_code}", *words, cwd=tmp_path)
            assert (code, PASSWORD in (tmp_path / "body").read_text()) == ("401", False)
        shown = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        server.stop()
    for secret in (PASSWORD, token, token[:-1]):
        assert secret not in server.log + server.stderr
        assert secret.encode() not in shown


def test_a_plain_address_is_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-that-is-long-enough")
    words = ["--files-root", str(root), "--files-token", str(tmp_path / "token"), "--files-http"]
    for address in ("0", "0.0.0.0:0", "tcp:0"):
        ended = run(sys.executable, "-m", "netsvc", "run", *words, address)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert ended.stderr.startswith("netsvc: files http cannot listen on ")
    checked = run(sys.executable, "-m", "netsvc", "check", *words, "127.0.0.1:0", "--files-tftp", "127.0.0.1:0")
    assert checked.returncode == 0
    assert "tftp serve everybody" in checked.stdout
