"""Runs other people's servers for tests: on loopback, bounded in time, ended by their pid."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE

#: Where Debian puts what is not on everybody's path, and nginx's modules.
_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def program(name: str, package: str) -> str:
    """Return the path of a program; skip the test where there is none."""
    found = shutil.which(name, path=_SYSTEM)
    if found is None:
        pytest.skip(f"needs {name}: apt-get install {package}")
    return found


@contextmanager
def running(command: Sequence[str], port: int, cwd: Path) -> Iterator[None]:
    """Run a server until the end of the block, from when it takes connections at `port`."""
    with (cwd / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
                break
            assert process.poll() is None and time.monotonic() < deadline, (cwd / "output").read_text()
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def nginx_before(front: int, back: int, cwd: Path) -> Iterator[None]:
    """Run nginx, which passes connections on with a PROXY header of version 1."""
    found = program("nginx", "nginx-light libnginx-mod-stream")
    if not NGINX_STREAM.exists():
        pytest.skip("needs nginx's stream module: apt-get install libnginx-mod-stream")
    (cwd / "nginx.conf").write_text(
        f"load_module {NGINX_STREAM};\n"
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\nevents {}\n"
        "stream {\n"
        f"  server {{ listen 127.0.0.1:{front}; proxy_pass 127.0.0.1:{back};\n"
        "    proxy_protocol on; proxy_half_close on; }\n"
        "}\n"
    )
    with running([found, "-p", str(cwd), "-c", "nginx.conf", "-e", "stderr"], front, cwd):
        yield


@contextmanager
def haproxy_before(front: int, back: int, cwd: Path, options: str) -> Iterator[None]:
    """Run haproxy, which passes connections on with a header as `options` say."""
    found = program("haproxy", "haproxy")
    (cwd / "haproxy.cfg").write_text(
        "global\n  nbthread 1\n"
        "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n"
        f"listen l\n  bind 127.0.0.1:{front}\n  server s 127.0.0.1:{back} {options}\n"
    )
    with running([found, "-db", "-f", "haproxy.cfg"], front, cwd):
        yield
