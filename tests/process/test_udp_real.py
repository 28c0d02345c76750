"""UDP in a network namespace: a host with several addresses answers from the one that was asked, and joins groups."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.builders.processes import PATIENCE, TWISTD, Server

pytestmark = pytest.mark.slow

PREPARE = """
ip link set lo up && ip link add d0 type veth peer name d1 && ip link set d0 up && ip link set d1 up &&
ip address add 10.99.0.1/24 dev d0 && ip address add 10.99.0.2/24 dev d0 &&
ip address add fd99::1/64 dev d0 nodad && ip address add fd99::2/64 dev d0 nodad &&
ip address add fe80::a/64 dev d0 nodad && ip address add fe80::b/64 dev d0 nodad &&
exec "$@"
"""
INSIDE = ["unshare", "--net", "--map-root-user", "sh", "-c", PREPARE, "sh"]

#: Asks from each address of a version at each other one, as a connected client; prints what was answered.
CLIENT = """
import itertools, socket, subprocess
ask = lambda host: socket.getaddrinfo(host, 9001, type=socket.SOCK_DGRAM)[0]
def answers(own, asked):
    family, kind, protocol, _, place = ask(asked)
    with socket.socket(family, kind) as client:
        client.settimeout(60)
        client.bind((own, 0) if family == socket.AF_INET else socket.getaddrinfo(own, 0, type=kind)[0][4])
        client.connect(place)
        try:
            for number in range(20):
                client.send(b"%d" % number)
                if client.recv(100) != b"%d" % number:
                    return False
        except OSError:
            return False
        return True
def each(*hosts):
    for own, asked in itertools.product(hosts, hosts):
        print(own, asked, answers(own, asked))
each("10.99.0.1", "10.99.0.2")
each("fd99::1", "fd99::2")
each("fe80::a%d0", "fe80::b%d0")
print("127.0.0.1", "127.0.0.2", answers("127.0.0.1", "127.0.0.2"))
# An address that comes later.
subprocess.run(["ip", "address", "add", "10.99.0.3/24", "dev", "d0"], check=True)
print("10.99.0.1", "10.99.0.3", answers("10.99.0.1", "10.99.0.3"))
"""


#: Sends to groups at an interface; prints what was answered.
SENDER = """
import socket
index = socket.if_nametoindex("d0")
ports = {"239.1.2.3": 9001, "239.1.2.4": 9002, "ff02::7%d0": 9003, "ff05::7": 9004, "239.1.2.5": 9001}
for group, port in ports.items():
    family, kind, _, _, place = socket.getaddrinfo(group, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sender:
        # The last one is of nobody.
        sender.settimeout(1 if group == "239.1.2.5" else 60)
        if family == socket.AF_INET:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.99.0.1"))
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.sendto(b"hello", place)
        answers = 0
        try:
            while sender.recv(100):
                answers += 1
                sender.settimeout(1)
        except OSError:
            print(group, answers)
"""


@pytest.mark.parametrize("workers", [(), ("--workers", "3")])
def test_a_group_is_joined_at_its_interface_and_answers_once(workers: tuple[str, ...]) -> None:
    tried = subprocess.run([*INSIDE, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if tried.returncode:
        pytest.skip(f"there are no network namespaces here: {tried.stderr}")
    with_route = ["sh", "-c", 'ip route add 239.1.2.4/32 dev d0 && exec "$@"', "sh"]
    groups = ("239.1.2.3%d0:9001", "239.1.2.4:9002", "[ff02::7%d0]:9003", "[ff05::7%d0]:9004")
    arguments = [word for group in groups for word in ("--udp", group)]
    server = Server([*INSIDE, *with_route, TWISTD, "-n", "--pidfile=", "netsvc", *workers, *arguments])
    try:
        server.wait_for("ready$")
        inside = ["nsenter", f"--target={server.process.pid}", "--user", "--net", "--preserve-credentials"]
        sent = subprocess.run(
            [*inside, sys.executable, "-c", SENDER], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
    finally:
        server.stop()
    assert sent.stdout.splitlines() == ["239.1.2.3 1", "239.1.2.4 1", "ff02::7%d0 1", "ff05::7 1", "239.1.2.5 0"]


def test_a_group_that_cannot_be_joined_is_refused_with_the_cure() -> None:
    words = [*INSIDE, TWISTD, "-n", "--pidfile=", "netsvc", "--udp", "239.1.2.3:9001"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if "netsvc: " not in ended.stderr:
        pytest.skip(f"there are no network namespaces here: {ended.stderr}")
    assert ended.returncode == 1
    assert all(word in ended.stderr for word in ("239.1.2.3", "interface", "239.1.2.3%eth0:9001"))


@pytest.mark.parametrize("addresses", [("--udp", "9001"), ("--udp", "udp:9001", "--udp", "udp6:9001")])
def test_each_address_of_a_host_answers_for_itself(addresses: tuple[str, ...]) -> None:
    tried = subprocess.run([*INSIDE, "true"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    if tried.returncode:
        pytest.skip(f"there are no network namespaces here: {tried.stderr}")
    server = Server([*INSIDE, TWISTD, "-n", "--pidfile=", "netsvc", *addresses])
    try:
        server.wait_for("ready$")
        inside = ["nsenter", f"--target={server.process.pid}", "--user", "--net", "--preserve-credentials"]
        asked = subprocess.run(
            [*inside, sys.executable, "-c", CLIENT], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
    finally:
        server.stop()
    lines = asked.stdout.splitlines()
    assert len(lines) == 14
    assert [line for line in lines if not line.endswith("True")] == []
