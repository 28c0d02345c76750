"""`netsvc get` from real servers, over HTTPS and TFTP."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.certificates import Authority, write_certificate
from tests.builders.client_peer import netsvc
from tests.builders.files import pattern
from tests.builders.processes import TWISTD, Server

pytestmark = pytest.mark.slow

CONTENT = pattern(300_000)
#: The certificates of the ports, in the order of their listeners.
KINDS = ("good", "expired", "early", "other", "unknown")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    (path / "f").write_bytes(CONTENT)
    (path / "empty").write_bytes(b"")
    (path / "文件").write_bytes(b"x" * 1428)
    return path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[tuple[dict[str, int], Path]]:
    """The ports of a server with certificates of a private authority, and its certificate."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    pairs = [
        authority.issue("localhost"),
        authority.issue("localhost", days=(-9, -1)),
        authority.issue("localhost", days=(1, 9)),
        authority.issue("other.test"),
        write_certificate(directory, "localhost"),
    ]
    words = [f"--files-http=tls:0:interface=127.0.0.1:cert={path}:key={key}" for key, path in pairs]
    with Server([TWISTD, "-n", "--pidfile=", "netsvc", *words, "--files-root", str(root)]) as started:
        started.wait_for("ready$")
        yield {kind: started.port("files http", place) for place, kind in enumerate(KINDS)}, authority.path
        started.stop()


def test_a_file_comes_over_https(secured: tuple[dict[str, int], Path], tmp_path: Path) -> None:
    ports, authority = secured
    urls = [f"https://localhost:{ports['good']}/{name}" for name in ("f", "empty")]
    done = netsvc("get", "--ca", str(authority), *urls, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": CONTENT, "empty": b""}
    done = netsvc("get", "--insecure", f"https://localhost:{ports['unknown']}/f", "-o", "again", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "again").read_bytes()) == (0, CONTENT)


@pytest.mark.parametrize(
    ("kind", "trusts", "words"),
    [
        ("good", False, ("not trusted", "--ca")),
        ("unknown", True, ("not trusted", "--ca")),
        ("expired", True, ("expired",)),
        ("early", True, ("not valid yet", "clock")),
        ("other", True, ("another name", "localhost")),
    ],
)
def test_a_certificate_that_does_not_fit_is_one_line(
    secured: tuple[dict[str, int], Path], tmp_path: Path, kind: str, trusts: bool, words: tuple[str, ...]
) -> None:
    ports, authority = secured
    url = f"https://localhost:{ports[kind]}/f"
    done = netsvc("get", *(("--ca", str(authority)) if trusts else ()), url, cwd=tmp_path)
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 1 and line.startswith(f"netsvc: {url}: ")
    assert all(word in line for word in words)
    assert os.listdir(tmp_path) == []


def test_a_port_without_tls_is_one_line(tftp: dict[str, int], tmp_path: Path) -> None:
    done = netsvc("get", f"https://localhost:{tftp['http']}/f", cwd=tmp_path)
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "TLS failed" in line


@pytest.fixture(scope="module")
def tftp(root: Path) -> Iterator[dict[str, int]]:
    words = ["--files-tftp", "0", "--files-http", "0", "--files-root", str(root)]
    with Server([TWISTD, "-n", "--pidfile=", "netsvc", *words]) as started:
        started.wait_for("ready$")
        yield {"tftp": started.port("files tftp"), "http": started.port("files http")}
        started.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "[::1]"])
def test_files_come_over_tftp_and_http_at_once(tftp: dict[str, int], tmp_path: Path, host: str) -> None:
    if host == "[::1]" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    urls = [f"tftp://{host}:{tftp['tftp']}/{name}" for name in ("f;mode=octet", "empty", "%E6%96%87%E4%BB%B6")]
    urls.append(f"http://{host}:{tftp['http']}/f?x")
    done = netsvc("get", *urls[:3], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {"f": 300_000, "empty": 0, "文件": 1428}
    assert (tmp_path / "f").read_bytes() == CONTENT
    done = netsvc("get", urls[1], urls[3], "--force", cwd=tmp_path)
    assert done.returncode == 0


def test_the_checksum_of_a_file_over_tftp_is_checked(tftp: dict[str, int], tmp_path: Path) -> None:
    url, digest = f"tftp://127.0.0.1:{tftp['tftp']}/f", hashlib.sha256(CONTENT).hexdigest()
    assert netsvc("get", url, "--sha256", "0" * 64, cwd=tmp_path).returncode == 3
    assert os.listdir(tmp_path) == []
    done = netsvc("get", url, "--sha256", digest, "-o", "-", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, CONTENT)


def test_what_is_missing_or_not_there_is_one_line(tftp: dict[str, int], tmp_path: Path) -> None:
    done = netsvc("get", f"tftp://127.0.0.1:{tftp['tftp']}/missing", cwd=tmp_path)
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "error 1" in line
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        done = netsvc("get", "--retries", "0", "--timeout", "0.1", f"tftp://127.0.0.1:{port}/f", cwd=tmp_path)
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "nothing arrived" in line
    done = netsvc("get", "--retries", "0", f"tftp://127.0.0.1:{port}/f", cwd=tmp_path)
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "refused" in line
    assert os.listdir(tmp_path) == []


def test_atftpd_serves_it(root: Path, tmp_path: Path) -> None:
    program = shutil.which("atftpd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or os.geteuid() != 0:
        pytest.skip("no atftpd here, or not as root")
    # It gives up root.
    for path in (root, *root.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [program, "--daemon", "--no-fork", "--bind-address", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*words, "--logfile", str(tmp_path / "log"), str(root)], stderr=subprocess.DEVNULL) as server:
        try:
            done = netsvc("get", "--timeout", "10", f"tftp://127.0.0.1:{port}/f", "-o", "-", cwd=tmp_path)
            assert (done.returncode, done.stderr, done.stdout) == (0, b"", CONTENT)
        finally:
            server.terminate()
