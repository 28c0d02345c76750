"""A client that has disappeared without a word is noticed; a silent one, and one that does not read, are kept."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.builders.processes import PATIENCE, TWISTD, Server

pytestmark = pytest.mark.slow

#: An address that can be taken away, so that segments to its connections are lost.
ADDRESS = "192.0.2.1"
PREPARE = f'ip link set lo up && ip address add {ADDRESS}/32 dev lo && exec "$@"'
INSIDE = ["unshare", "--net", "--map-root-user", "sh", "-c", PREPARE, "sh"]

#: Connects from an address, stays silent until it is told to go on, and then sends a line and reads all.
CLIENT = """
import socket, sys
client = socket.socket()
client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
client.bind((sys.argv[1], 0))
client.connect(("127.0.0.1", 9001))
client.sendall(sys.argv[2].encode() * 20_000)
print("connected", flush=True)
sys.stdin.read(1)
client.shutdown(socket.SHUT_WR)
received = 0
while data := client.recv(65536):
    received += len(data)
print(received, flush=True)
"""


def test_a_vanished_client_is_noticed_and_a_silent_one_is_kept() -> None:
    tried = subprocess.run([*INSIDE, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if tried.returncode:
        pytest.skip(f"there are no network namespaces here: {tried.stderr}")
    arguments = ("--tcp", "127.0.0.1:9001", "--limit", "keepalive=1")
    server = Server([*INSIDE, TWISTD, "-n", "--pidfile=", "netsvc", *arguments])
    clients = []
    try:
        server.wait_for("ready$")
        inside = ["nsenter", f"--target={server.process.pid}", "--user", "--net", "--preserve-credentials"]
        # The second one has much to read, and does not.
        for address, text in ((ADDRESS, ""), ("127.0.0.1", "hello"), ("127.0.0.1", "")):
            client = subprocess.Popen(
                [*inside, sys.executable, "-c", CLIENT, address, text],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            clients.append(client)
            assert client.stdout is not None
            assert client.stdout.readline() == "connected\n"
        subprocess.run([*inside, "ip", "address", "del", f"{ADDRESS}/32", "dev", "lo"], check=True, timeout=PATIENCE)
        found = server.wait_for(r"echo tcp (\S+):\d+ .* reason=(\w+)")
        assert found.groups() == (ADDRESS, "reset")
        for client, size in zip(clients[1:], (100_000, 0), strict=True):
            assert client.communicate("x", timeout=PATIENCE)[0] == f"{size}\n"
    finally:
        for client in clients:
            client.kill()
            client.communicate()
        server.stop()
