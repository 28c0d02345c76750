"""Health checks of HAProxy, as Debian has it, at the admin address."""

from __future__ import annotations

import csv
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, ROOT, Server, connect, free_port, read_all
from tests.builders.programs import program, running

pytestmark = pytest.mark.slow

CONFIGURATION = (ROOT / "deploy" / "haproxy.cfg").read_text("utf-8")
SHOWN = "    option httpchk OPTIONS /ready\n"


def checked(path: Path, result: str) -> dict[str, str]:
    """Return the result of the last check of each server, once it is `result`; "L7OK" is the answer 2xx or 3xx."""
    found: dict[str, str] = {}
    deadline = time.monotonic() + PATIENCE
    while set(found.values()) != {result} and time.monotonic() < deadline:
        time.sleep(0.05)
        with suppress(OSError), socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(path))
            asked.sendall(b"show stat\n")
            rows = csv.DictReader(asked.makefile().read().removeprefix("# ").splitlines())
            found = {row["svname"]: row["check_status"] for row in rows if row["svname"] in ("one", "two")}
    return found


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_the_first_answer_after_ready_is_logged_is_200(workers: tuple[str, ...]) -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0", *workers) as server:
        with connect(server.port("admin")) as asked:
            asked.sendall(b"OPTIONS /ready HTTP/1.0\r\n\r\n")
            assert read_all(asked).split()[1] == b"200"


@pytest.mark.parametrize(
    ("check", "result"),
    [
        (SHOWN, "L7OK"),
        ("    option httpchk\n", "L7OK"),
        ("    option httpchk GET /ready\n", "L7OK"),
        ("    option httpchk\n    http-check send meth GET uri /ready ver HTTP/1.1 hdr Host localhost\n", "L7OK"),
        (
            "    option httpchk\n    http-check send meth GET uri http://localhost/ ver HTTP/1.1 hdr Host localhost\n",
            "L7OK",
        ),
        ("    option httpchk GET /nothing\n", "L7STS"),
        ("    option httpchk\n    http-check send meth GET uri /ready ver HTTP/1.1\n", "L7STS"),
    ],
)
def test_a_check_has_the_result_that_it_asks_for(tmp_path: Path, check: str, result: str) -> None:
    found = program("haproxy", "haproxy")
    front = free_port()
    with Server.twistd("--tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0") as server:
        [port, admin] = re.findall(r"listens on \S*:(\d+)$", server.log, re.M)
        text = CONFIGURATION.replace(SHOWN, check).replace("bind :9000", f"bind 127.0.0.1:{front}")
        text = re.sub(r"127.0.0.1:900\d port 910\d", f"127.0.0.1:{port} port {admin}", text)
        (tmp_path / "haproxy.cfg").write_text(f"global\n    nbthread 1\n    stats socket {tmp_path}/stats\n{text}")
        with running([found, "-db", "-f", "haproxy.cfg"], front, tmp_path):
            assert checked(tmp_path / "stats", result) == {"one": result, "two": result}
