"""Files over HTTP from a real process to real clients."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.builders.certificates import write_certificate
from tests.builders.processes import PATIENCE, TWISTD, Server, free_port, run

pytestmark = pytest.mark.slow

SIZE = 5 * 1024 * 1024 + 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    # Each KiB is different.
    (directory / "big").write_bytes(b"".join(b"%08x" % each * 128 for each in range(SIZE // 1024 + 1))[:SIZE])
    (directory / "学习.txt").write_bytes(b"study")
    return directory


class Site(NamedTuple):
    plain: int
    tls: int


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    key, certificate = write_certificate(tmp_path_factory.mktemp("tls"), "localhost")
    tls = free_port()
    arguments = ["--files-http", "127.0.0.1:0", "--files-http", f"tls:{tls}:cert={certificate}:key={key}"]
    with Server([TWISTD, "-n", "--pidfile=", "netsvc", "--files-root", str(root), *arguments]) as started:
        started.wait_for("ready$")
        yield Site(started.port("files http"), tls)
        started.stop()
        assert "Traceback" not in started.log + started.stderr


def test_a_connection_serves_whole_files_ranges_and_what_has_not_changed(site: Site, root: Path) -> None:
    content = (root / "big").read_bytes()
    client = http.client.HTTPConnection("127.0.0.1", site.plain, timeout=PATIENCE)
    client.request("GET", "/big")
    reply = client.getresponse()
    assert reply.read() == content
    tag = reply.headers["ETag"]
    client.request("GET", "/big", headers={"Range": "bytes=70000-3000000"})
    reply = client.getresponse()
    assert (reply.status, reply.read()) == (206, content[70000:3000001])
    client.request("GET", "/big", headers={"If-None-Match": tag})
    reply = client.getresponse()
    assert (reply.status, reply.read()) == (304, b"")
    client.close()


def test_pipelined_requests_and_a_half_close_get_every_answer(site: Site, root: Path) -> None:
    with socket.create_connection(("127.0.0.1", site.plain), PATIENCE) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        client.shutdown(socket.SHUT_WR)
        received = 0
        while data := client.recv(1 << 20):
            received += len(data)
    assert received > 3 * SIZE


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize("tls", [False, True])
def test_curl_resumes_and_asks_for_chinese_names(site: Site, root: Path, tmp_path: Path, tls: bool) -> None:
    base = f"http{'s' * tls}://127.0.0.1:{site[tls]}"
    part = tmp_path / "big"
    part.write_bytes((root / "big").read_bytes()[:1_000_000])
    assert run("curl", "-sfk", "-C", "-", "-o", str(part), f"{base}/big").returncode == 0
    assert hashlib.sha256(part.read_bytes()).digest() == hashlib.sha256((root / "big").read_bytes()).digest()
    assert run("curl", "-sfk", f"{base}/学习.txt").stdout == "study"
    assert run("curl", "-sfkJO", f"{base}/%E5%AD%A6%E4%B9%A0.txt", cwd=tmp_path).returncode == 0
