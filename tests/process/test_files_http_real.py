"""Files over HTTP from a real process to real clients."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import re
import shutil
import socket
import subprocess
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
    (directory / "unread").write_bytes(bytes(1024 * 1024))
    return directory


class Site(NamedTuple):
    plain: int
    tls: int
    server: Server


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    key, certificate = write_certificate(tmp_path_factory.mktemp("tls"), "localhost")
    tls = free_port()
    arguments = ["--files-http", "127.0.0.1:0", "--files-http", f"tls:{tls}:cert={certificate}:key={key}"]
    with Server([TWISTD, "-n", "--pidfile=", "netsvc", "--files-root", str(root), *arguments]) as started:
        started.wait_for("ready$")
        yield Site(started.port("files http"), tls, started)
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


@pytest.mark.parametrize(
    "command", ["wget -q -c -O big {url}", "aria2c -q -c -o big {url}", "aria2c -q -x 4 -s 4 -k 1M -o new {url}"]
)
def test_other_clients_resume_and_get_parts_at_once(site: Site, root: Path, tmp_path: Path, command: str) -> None:
    words = command.format(url=f"http://127.0.0.1:{site.plain}/big").split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} here")
    (tmp_path / "big").write_bytes((root / "big").read_bytes()[:1_000_000])
    assert run(*words, cwd=tmp_path).returncode == 0
    got = tmp_path / ("new" if "new" in words else "big")
    assert got.read_bytes() == (root / "big").read_bytes()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_gets_the_form_it_asks_for_with_a_digest_and_analysers_their_lines(tmp_path: Path) -> None:
    root, log = tmp_path / "root", tmp_path / "requests.log"
    root.mkdir()
    (root / "a.txt").write_bytes(b"plain text " * 10_000)
    (root / "a.txt.gz").write_bytes(gzip.compress((root / "a.txt").read_bytes()))
    (root / "we ird\\.txt").write_bytes(b"x")
    options = ["--files-precompressed", "--files-cors", "*", "--files-cache-control", "no-cache", "--workers", "2"]
    command = [TWISTD, "-n", "--pidfile=", "netsvc", "--files-root", str(root), "--files-http", "127.0.0.1:0", *options]
    with Server([*command, "--access", f"combined:{log}"]) as server:
        server.wait_for("ready$")
        base = f"http://127.0.0.1:{server.port('files http')}"
        assert run("curl", "-sf", "--compressed", f"{base}/a.txt").stdout == "plain text " * 10_000
        part = tmp_path / "part"
        part.write_bytes((root / "a.txt.gz").read_bytes()[:100])
        coded = ["-H", "Accept-Encoding: gzip", "-C", "-", "-o", str(part)]
        assert run("curl", "-sf", *coded, f"{base}/a.txt").returncode == 0
        assert part.read_bytes() == (root / "a.txt.gz").read_bytes()
        for name in ("a.txt", "we%20ird%5C.txt"):
            line = run("curl", "-sf", f"{base}/{name}?sha256").stdout
            checked = subprocess.run(["sha256sum", "--check"], input=line, cwd=root, text=True, capture_output=True)
            assert checked.returncode == 0, line
        wants = ["-H", "Want-Repr-Digest: sha-256=1", "-H", "Accept-Encoding: gzip"]
        digest = base64.b64encode(hashlib.sha256((root / "a.txt.gz").read_bytes()).digest()).decode()
        assert f"sha-256=:{digest}:" in run("curl", "-sfI", *wants, f"{base}/a.txt").stdout
        asks = ["-H", "Origin: https://a.example", "-H", "Access-Control-Request-Method: GET", "-X", "OPTIONS"]
        assert "Access-Control-Allow-Methods: GET, HEAD" in run("curl", "-sfi", *asks, f"{base}/a.txt").stdout
        server.stop()
    lines = log.read_text("ascii").splitlines()
    form = re.compile(r'127\.0\.0\.1 - - \[[^]]+\] "(GET|HEAD|OPTIONS) \S+ HTTP/1\.1" 20[046] (\d+|-) "-" "curl/[^"]+"')
    assert len(lines) == 6
    assert [line for line in lines if not form.fullmatch(line)] == []


def test_a_file_that_a_client_does_not_read_was_not_sent(site: Site) -> None:
    with socket.socket() as client:
        # The rest, or all that the server's system takes of it, waits there.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", site.plain))
        client.sendall(b"GET /unread HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1)
    assert "sent" not in site.server.wait_for('"unread" .*').group()
