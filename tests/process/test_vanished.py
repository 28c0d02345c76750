"""A client that has disappeared is noticed, whatever was on its way; a silent one, or a slow reader, is kept."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.builders.processes import PATIENCE, TWISTD, Server

pytestmark = pytest.mark.slow

#: An address that can be taken away, so that segments to its connections are lost.
ADDRESS = "192.0.2.1"
PREPARE = f'ip link set lo up && ip address add {ADDRESS}/32 dev lo && exec "$@"'
INSIDE = ["unshare", "--net", "--map-root-user", "sh", "-c", PREPARE, "sh"]

#: Connects to a port from an address, sends a text many times, reads one byte if asked to, and stays silent until it is
#: told to go on; then it reads all.
CLIENT = """
import socket, sys
client = socket.socket()
client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
client.bind((sys.argv[2], 0))
client.connect(("127.0.0.1", int(sys.argv[1])))
client.sendall(sys.argv[3].encode() * int(sys.argv[4]))
received = len(client.recv(int(sys.argv[5]))) if sys.argv[5] != "0" else 0
print("connected", flush=True)
sys.stdin.read(1)
client.shutdown(socket.SHUT_WR)
while data := client.recv(65536):
    received += len(data)
print(received, flush=True)
"""


def test_a_vanished_client_is_noticed_and_a_silent_one_is_kept() -> None:
    tried = subprocess.run([*INSIDE, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if tried.returncode:
        pytest.skip(f"there are no network namespaces here: {tried.stderr}")
    arguments = ("--tcp", "127.0.0.1:9001", "--chat", "127.0.0.1:9002", "--chat-limit", "keepalive=1")
    server = Server([*INSIDE, TWISTD, "-n", "--pidfile=", "netsvc", *arguments, "--limit", "keepalive=1"])
    clients = []
    try:
        server.wait_for("ready$")
        inside = ["nsenter", f"--target={server.process.pid}", "--user", "--net", "--preserve-credentials"]

        def call(port: int, address: str, text: str = "", times: int = 1, read: int = 0) -> subprocess.Popen[str]:
            client = subprocess.Popen(
                [*inside, sys.executable, "-c", CLIENT, str(port), address, text, str(times), str(read)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            clients.append(client)
            assert client.stdout is not None
            assert client.stdout.readline() == "connected\n"
            return client

        # Nothing is on its way to the first; the second has much to read, and does not.
        call(9001, ADDRESS)
        call(9001, ADDRESS, "hello", 20_000)
        slow, silent = call(9001, "127.0.0.1", "hello", 20_000), call(9001, "127.0.0.1")
        # It is in the room once it is greeted.
        call(9002, ADDRESS, "/nick gone\n", read=1)
        subprocess.run([*inside, "ip", "address", "del", f"{ADDRESS}/32", "dev", "lo"], check=True, timeout=PATIENCE)
        call(9002, "127.0.0.1", "hello, are you there?\n")
        found = Counter(
            server.wait_for(rf"(echo tcp|chat line) {re.escape(ADDRESS)}:\d+ .* reason=(\w+)").groups()
            for _ in range(3)
        )
        assert found == {("echo tcp", "reset"): 2, ("chat line", "reset"): 1}
        for client, size in ((slow, 100_000), (silent, 0)):
            assert client.communicate("x", timeout=PATIENCE)[0] == f"{size}\n"
    finally:
        for client in clients:
            client.kill()
            client.communicate()
        server.stop()
