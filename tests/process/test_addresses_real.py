"""Names with several addresses, and a kernel without IPv6: what a real server listens on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, TWISTD, Server

pytestmark = pytest.mark.slow

#: socket(2) fails for AF_INET6 with EAFNOSUPPORT in what it starts, as with `ipv6.disable=1` (seccomp(2)).
WITHOUT_IPV6 = """
import ctypes, errno, os, platform, struct, sys
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
steps = [
    (0x20, 0, 0, 0),  # the number of the system call
    (0x15, 0, 3, number),
    (0x20, 0, 0, 16),  # its first argument
    (0x15, 0, 1, 10),
    (0x06, 0, 0, 0x00050000 | errno.EAFNOSUPPORT),
    (0x06, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    sys.exit("no seccomp: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
"""
FILTERED = [sys.executable, "-c", WITHOUT_IPV6]


def listens(server: Server) -> list[str]:
    """Return where a server says that it listens, with 0 for each port."""
    server.wait_for("ready$")
    return [re.sub(r"\d+$", "0", place) for place in re.findall(r"listens on (\S+)", server.log)]


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of system calls needs Linux")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_ipv6_a_bare_port_and_localhost_are_ipv4(workers: str) -> None:
    tried = subprocess.run(
        [*FILTERED, sys.executable, "-c", "import socket; socket.socket(socket.AF_INET6)"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    if "Address family not supported" not in tried.stderr:
        pytest.skip(f"system calls cannot be filtered here: {tried.stderr.splitlines()[-1:]}")
    arguments = ("--tcp", "0", "--udp", "0", "--tcp", "localhost:0", "--admin", "0", "--workers", workers)
    server = Server([*FILTERED, TWISTD, "-n", "--pidfile=", "netsvc", *arguments])
    try:
        assert listens(server) == ["0.0.0.0:0", "0.0.0.0:0", "127.0.0.1:0", "http://127.0.0.1:0"]
    finally:
        server.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_name_is_served_and_reported_at_each_of_its_addresses(tmp_path: Path, workers: str) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost several\n::1 localhost several\n127.0.0.2 several\n192.0.2.1 several\n")
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']
    tried = subprocess.run([*inside, hosts, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if tried.returncode:
        pytest.skip(f"/etc/hosts cannot be replaced here: {tried.stderr}")
    arguments = ("--tcp", "localhost:0", "--udp", "several:0", "--workers", workers)
    server = Server([*inside, str(hosts), TWISTD, "-n", "--pidfile=", "netsvc", *arguments])
    try:
        found = listens(server)
        assert sorted(found[:2]) == ["127.0.0.1:0", "[::1]:0"]
        # The machine does not have the fourth.
        assert sorted(found[2:]) == ["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"]
    finally:
        server.stop()
