"""The C extension of the reactor does what the Python code does that it replaces."""

from __future__ import annotations

import errno
import os
import runpy
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import main
from twisted.internet.protocol import DatagramProtocol

from netsvc.guard import Guard
from netsvc.listen.port import adopt
from netsvc.listen.sockets import bind
from netsvc.plan.address import parse_address
from netsvc.reactor import extension
from netsvc.reactor.batch import make_receiver
from netsvc.reactor.datagrams import ONE_COUNTED
from netsvc.reactor.pktinfo import find_info, request_info, source_of
from tests.builders.processes import ROOT

native: Any = extension.native
needs_it = pytest.mark.skipif(native is None, reason=f"the C extension is not used here: {extension.reason}")
FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
EVERY = {"127.0.0.1": "0.0.0.0", "::1": "::"}
#: More than the extension collects.
MANY = 100


def udp(host: str) -> socket.socket:
    made = socket.socket(FAMILIES.get(host, socket.AF_INET6 if ":" in host else socket.AF_INET), socket.SOCK_DGRAM)
    made.bind((host, 0))
    made.settimeout(5)
    return made


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sockets(host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket that asks, and one bound to every address, which is asked."""
    with udp(host) as client, udp(EVERY[host]) as server:
        client.connect((host, server.getsockname()[1]))
        yield client, server


@needs_it
class TestReceiving:
    def test_gives_what_python_gives(self, sockets: Any) -> None:
        client, server = sockets
        assert request_info(server)
        in_python = make_receiver(server, controls=True)
        assert in_python is not None
        sizes = (0, 1, 64, 65487)
        for size in sizes:
            client.send(b"x" * size)
        expected = in_python()
        for size in sizes:
            client.send(b"x" * size)
        got = native.Datagrams(server, True).receive()
        assert [(data, addresses) for data, addresses, _ in got] == [each[:2] for each in expected]
        assert [find_info(controls) for *_, controls in got] == [find_info(controls) for *_, controls in expected]
        assert all(find_info(controls) for *_, controls in got)

    def test_gives_a_batch_at_a_time_and_no_ancillary_data_unless_asked(self, sockets: Any) -> None:
        client, server = sockets
        for number in range(native.BATCH + 1):
            client.send(b"%d" % number)
        datagrams = native.Datagrams(server, False)
        first, second = datagrams.receive(), datagrams.receive()
        assert [data for data, *_ in first + second] == [b"%d" % number for number in range(native.BATCH + 1)]
        assert len(second) == 1
        assert {controls for *_, controls in first} == {b""}
        with pytest.raises(BlockingIOError):
            datagrams.receive()

    def test_knows_more_peers_than_it_keeps(self, host: str) -> None:
        with udp(host) as server:
            datagrams = native.Datagrams(server, False)
            for _ in range(3 * MANY):
                with udp(host) as client:
                    client.sendto(b"hello", server.getsockname())
                    [(_, (peer, sockaddr), _)] = datagrams.receive()
                    assert peer == client.getsockname()[:2]
                    assert sockaddr == client.getsockname()

    def test_a_closed_socket_is_an_error(self, host: str) -> None:
        closed = udp(host)
        datagrams = native.Datagrams(closed, False)
        closed.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            datagrams.receive()

    @pytest.mark.parametrize("wrong", [(None, True), (object(), False)])
    def test_only_takes_sockets(self, wrong: Any) -> None:
        with pytest.raises((AttributeError, ValueError)):
            native.Datagrams(*wrong)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, pytest.raises(ValueError, match="IPv6"):
            native.Datagrams(other, False)


def collect(datagrams: Any, *entry: Any) -> list[Any]:
    """Collect a datagram; return what failed if others had to be sent before, as the clock has ticked."""
    if datagrams.collect(*entry):
        return []
    failed: list[Any] = datagrams.flush()
    assert datagrams.collect(*entry)
    return failed


@needs_it
class TestCollecting:
    def test_sends_all_in_order_when_it_is_flushed(self, sockets: Any) -> None:
        client, server = sockets
        datagrams = native.Datagrams(server, False)
        for number in range(10):
            collect(datagrams, b"%d" % number, client.getsockname(), None, None)
        assert datagrams.flush() == []
        assert [client.recv(10) for _ in range(10)] == [b"%d" % number for number in range(10)]
        assert datagrams.flush() == []

    def test_sends_each_from_its_own_source(self) -> None:
        with udp("127.0.0.1") as client, udp("0.0.0.0") as server:
            assert request_info(server)
            datagrams = native.Datagrams(server, True)
            hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.4"]
            for each in hosts:
                client.sendto(each.encode(), (each, server.getsockname()[1]))
            for data, (_, sockaddr), controls in datagrams.receive():
                collect(datagrams, data, sockaddr, source_of(find_info(controls)), None)
            datagrams.flush()
            for each in hosts:
                assert client.recvfrom(100) == (each.encode(), (each, server.getsockname()[1]))

    def test_returns_what_the_system_does_not_take_and_sends_the_rest(self, sockets: Any, host: str) -> None:
        client, server = sockets
        datagrams = native.Datagrams(server, False)
        owner, nowhere = object(), (host, 0)
        failed = []
        for data, address in ((b"1", client.getsockname()), (b"2", nowhere), (b"3", client.getsockname())):
            failed += collect(datagrams, data, address, None, owner)
        failed += datagrams.flush()
        assert failed == [(b"2", nowhere, None, owner, errno.EINVAL)]
        assert [client.recv(10), client.recv(10)] == [b"1", b"3"]

    def test_what_it_cannot_send_has_to_be_sent_at_once(self, sockets: Any) -> None:
        client, server = sockets
        datagrams, peer = native.Datagrams(server, False), client.getsockname()
        for data in (bytes(2049), bytearray(2), memoryview(b"x"), None):
            assert not datagrams.collect(data, peer, None, None)
        for source in (0, [], [None], [(1, 2)], [("x", "y", b"z")], [(1, 2, bytes(1000))]):
            assert not datagrams.collect(b"x", peer, source, None)
        taken = 0
        while taken < MANY and datagrams.collect(b"x", peer, None, None):
            taken += 1
        # It is full, or the clock has ticked.
        assert 0 < taken < MANY
        assert datagrams.flush() == []
        with pytest.raises(TypeError):
            datagrams.collect(b"x")

    @given(
        st.one_of(
            st.none(),
            st.tuples(st.one_of(st.text(), st.sampled_from(["127.0.0.1", "::1", "::1%lo"])), st.integers()),
            st.lists(st.one_of(st.text(), st.integers(), st.binary())).map(tuple),
        )
    )
    def test_any_address_is_sent_to_or_refused(self, address: Any) -> None:
        for each in EVERY.values():
            with udp(each) as server:
                datagrams = native.Datagrams(server, False)
                assert datagrams.collect(b"", address, None, None) in (True, False)

    def test_lets_go_of_what_was_never_sent(self, sockets: Any) -> None:
        client, server = sockets
        owner = object()
        before = sys.getrefcount(owner)
        datagrams = native.Datagrams(server, False)
        datagrams.collect(b"x", client.getsockname(), None, owner)
        del datagrams
        assert sys.getrefcount(owner) == before


class Flushes:
    def __init__(self) -> None:
        self.flushes: list[Any] = []


@needs_it
class TestStream:
    """What a program can do to a transport ends in an exception at worst."""

    @staticmethod
    def made(connection: Any = None, **attributes: Any) -> Any:
        kind: Any = type("Made", (native.Stream,), {"bufferSize": 65536})
        kind.write_slowly = kind.read_slowly = kind.flush_answer = lambda stream, *given: "in Python"
        stream = kind("any", arguments=True)
        stream.reactor, stream._tempDataBuffer, stream.connected = Flushes(), [], 1
        if connection is not None:
            stream.fileno = connection.fileno
        for name, value in attributes.items():
            setattr(stream, name, value)
        return stream

    def test_an_empty_one_is_unusable(self) -> None:
        with pytest.raises(AttributeError):
            native.Stream().doRead()
        with pytest.raises(AttributeError):
            native.Stream().write(b"x")
        assert (native.Stream().producer, native.Stream().dataBuffer, native.Stream().connected) == (None, b"", 0)
        with pytest.raises(AttributeError):
            native.Stream().protocol  # noqa: B018

    @pytest.mark.parametrize("attributes", [{"TLS": True}, {"_tempDataBuffer": ()}])
    def test_what_is_not_common_is_written_in_python(self, attributes: dict[str, Any]) -> None:
        assert self.made(**attributes).write(b"x") == "in Python"

    @pytest.mark.parametrize("data", [bytearray(b"x"), memoryview(b"x"), None, "x"])
    def test_what_is_not_bytes_is_written_in_python(self, data: Any) -> None:
        assert self.made().write(data) == "in Python"

    @pytest.mark.parametrize("attributes", [{"connected": 0}, {"_writeDisconnected": True}])
    def test_nothing_is_written_to_a_closed_one(self, attributes: dict[str, Any]) -> None:
        stream = self.made(**attributes)
        stream.write(b"x")
        assert stream._tempDataBuffer == stream.reactor.flushes == []

    def test_a_write_is_flushed_later(self) -> None:
        stream = self.made()
        stream.write(b"x")
        assert (stream._tempDataBuffer, stream._tempDataLen, stream.flushing) == ([b"x"], 1, 1)
        assert stream.reactor.flushes == [stream]

    @pytest.mark.parametrize("broken", [{"reactor": object()}, {"producer": 1, "bufferSize": "x"}, {"producer": 1}])
    def test_a_broken_one_raises(self, broken: dict[str, Any]) -> None:
        stream = self.made(**broken)
        stream._tempDataLen = 70000
        with pytest.raises((AttributeError, TypeError)):
            stream.write(b"x")

    def test_what_has_limits_is_read_in_python(self) -> None:
        assert self.made(reads=1).doRead() == "in Python"

    @pytest.mark.parametrize("change", [
        {},
        {"_tempDataBuffer": [bytearray(b"x")]},
        {"_tempDataBuffer": None},
        {"_tempDataBuffer": [], "dataBuffer": None},
        {"writes": 1},
        {"producer": 1, "producerPaused": 1},
        {"producer": 1, "streamingProducer": None},
    ])  # fmt: skip
    def test_reads_and_answers_whatever_the_protocol_does(self, change: dict[str, Any]) -> None:
        near, far = socket.socketpair()
        with near, far:
            far.send(b"hello")
            protocol: Any = type("Protocol", (), {})()
            stream = self.made(near, protocol=protocol)

            def received(data: bytes) -> None:
                stream.write(data)
                for name, value in change.items():
                    setattr(stream, name, value)
                del stream.protocol

            protocol.dataReceived = received
            near.setblocking(False)
            assert stream.doRead() == ("in Python" if change else None)
            if not change:
                assert far.recv(100) == b"hello"
                assert (stream._tempDataBuffer, stream._tempDataLen, stream.flushing) == ([], 0, 0)
            assert stream.doRead() is None
            far.send(b"more")
            with pytest.raises(AttributeError):
                stream.doRead()

    def test_what_the_kernel_does_not_take_stays(self) -> None:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            protocol: Any = type("Protocol", (), {})()
            stream = self.made(near, protocol=protocol)
            protocol.dataReceived = lambda data: stream.write(bytes(1 << 24))
            far.send(b"hello")
            assert stream.doRead() == "in Python"
            assert len(stream.dataBuffer) == 1 << 24
            assert 0 < stream.offset < 1 << 24
            assert (stream._tempDataBuffer, stream._tempDataLen) == ([], 0)

    def test_an_exception_of_the_protocol_is_passed_on(self) -> None:
        near, far = socket.socketpair()
        with near, far:
            far.send(b"hello")
            stream = self.made(near, protocol=object())
            with pytest.raises(AttributeError, match="dataReceived"):
                stream.doRead()
            assert stream.flushing == 0

    def test_the_ends_of_a_connection_are_those_of_twisted(self) -> None:
        near, far = socket.socketpair()
        with near, far:
            stream = self.made(near, protocol=object())
            far.close()
            assert stream.doRead() is main.CONNECTION_DONE
        assert stream.doRead() is main.CONNECTION_LOST


@needs_it
class TestAccepting:
    def test_gives_what_python_gives(self, host: str) -> None:
        with socket.create_server((host, 0), family=FAMILIES[host]) as port, udp(host) as other:
            port.setblocking(False)
            with pytest.raises(BlockingIOError):
                native.accept(port.fileno())
            with socket.create_connection(port.getsockname()[:2]) as client:
                descriptor, peer = native.accept(port.fileno())
                with socket.socket(fileno=descriptor) as accepted:
                    assert peer == client.getsockname() == accepted.getpeername()
                    assert not accepted.get_inheritable()
                    assert not os.get_blocking(descriptor)
            for wrong, error in ((other.fileno(), OSError), (-1, OSError), ("x", TypeError), (1 << 80, OverflowError)):
                with pytest.raises(error):
                    native.accept(wrong)


class Port:
    """A port with an own protocol, and a client of it."""

    def __init__(self, answer: Callable[[Any, bytes, Any], None], *, limited: bool) -> None:
        from twisted.internet import reactor

        protocol: Any = DatagramProtocol()
        protocol.datagramReceived = lambda data, peer: answer(self.port, data, peer)
        self.port: Any = adopt(reactor, bind(parse_address("127.0.0.1:0", "datagram")), protocol)
        if limited:
            self.port.sessions = Guard(reactor).sessions("x udp")
        self.client = udp("127.0.0.1")

    def ask(self, *words: bytes) -> None:
        for word in words:
            self.client.sendto(word, ("127.0.0.1", self.port.getHost().port))
        # More than a turn, on a slow machine.
        self.port.read_waiting()

    def close(self) -> None:
        self.client.close()
        if self.port.connected:
            self.port.stopReading()
            self.port.connectionLost()


# These hold with the extension and without it.
@pytest.mark.parametrize("limited", [True, False])
class TestPort:
    def test_all_is_sent_in_the_order_in_which_it_was_written(self, limited: bool) -> None:
        def answer(port: Any, data: bytes, peer: Any) -> None:
            port.write(data, peer)
            # Not an answer, although to the same address.
            port.write(data + b", again", (peer[0], peer[1]))

        words = [b"%d" % number for number in range(20)]
        with closing(Port(answer, limited=limited)) as asked:
            asked.ask(*words)
            got = [asked.client.recv(100) for _ in range(40)]
        assert got == [each for word in words for each in (word, word + b", again")]

    def test_many_answers_to_one_datagram_are_sent(self, limited: bool) -> None:
        def answer(port: Any, data: bytes, peer: Any) -> None:
            for number in range(MANY):
                port.write(b"%d" % number, peer)

        with closing(Port(answer, limited=limited)) as asked:
            if limited:
                asked.port.sessions = Guard(asked.port.reactor).sessions("x udp", verified=True)
            asked.ask(b"all of it")
            assert [asked.client.recv(100) for _ in range(MANY)] == [b"%d" % number for number in range(MANY)]

    def test_an_answer_is_sent_although_its_protocol_fails_or_closes_the_port(self, limited: bool) -> None:
        def answer(port: Any, data: bytes, peer: Any) -> None:
            port.write(data, peer)
            port.stopReading()
            port.connectionLost()

        with closing(Port(answer, limited=limited)) as asked:
            asked.ask(b"hello")
            assert asked.client.recv(100) == b"hello"

    def test_what_the_system_refuses_is_dropped_and_not_counted_as_sent(self, limited: bool) -> None:
        with closing(Port(lambda port, data, peer: port.write(data, peer), limited=limited)) as asked:
            asked.ask(b"1")
            assert asked.client.recv(100) == b"1"
            # From now on the port cannot be sent from: a broadcast that is not allowed.
            everybody = ("255.255.255.255", 9)
            if limited:
                [session] = asked.port.sessions.all()
                session.sockaddr = everybody
            else:
                receive = asked.port._receive
                asked.port._receive = lambda: [(data, (peer, everybody), b"") for data, (peer, _), _ in receive()]
            asked.ask(b"2", b"3")
            assert asked.port.dropped == 2
            if limited:
                assert session.sent == ONE_COUNTED + 1
                assert asked.port.sessions.gate.tally.counts.dropped == 2


def test_a_datagram_and_its_answer_cost_few_calls() -> None:
    """Calls of Python and of C, which do not depend on the machine. This is most of what a datagram costs besides the
    kernel, so that more of them have to be worth it."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with closing(Port(lambda port, data, peer: port.write(data, peer), limited=True)) as asked:
        asked.ask(b"make the session")
        words = [b"%064d" % number for number in range(MANY)]
        for word in words:
            asked.client.sendto(word, ("127.0.0.1", asked.port.getHost().port))
        sys.setprofile(count)
        try:
            asked.port.read_waiting()
        finally:
            sys.setprofile(None)
        assert asked.client.recv(100) == b"make the session"
        assert [asked.client.recv(100) for _ in words] == words
    assert calls / MANY < 11


def test_it_is_here_where_it_can_be_built() -> None:
    can_be_built = (
        sys.platform == "linux"
        and sys.implementation.name == "cpython"
        and shutil.which("cc") is not None
        and Path(sysconfig.get_path("include"), "Python.h").exists()
    )
    if extension.reason.startswith(("not built", "built from another")) and can_be_built:
        # Installed by somebody who has asked for that, or before there was a compiler.
        pytest.skip("it can be built here: pip install -e .")
    assert (native is None) == bool(extension.reason)


@pytest.mark.parametrize("value", ["0", ""])
def test_it_can_be_turned_off_and_says_so(value: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "netsvc.reactor.extension"],
        env={**os.environ, "PYTHONPATH": str(Path(extension.__file__).parents[2]), extension.VARIABLE: value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.startswith("not used: NETSVC_NATIVE=0\n" if value else ("used\n", "not used: "))


def test_one_that_was_built_from_another_source_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import netsvc.reactor

    other = ModuleType("netsvc.reactor.native")
    monkeypatch.setitem(sys.modules, other.__name__, other)
    monkeypatch.setattr(netsvc.reactor, "native", other, raising=False)
    monkeypatch.delenv(extension.VARIABLE, raising=False)
    known = runpy.run_path(extension.__file__)
    assert known["native"] is None
    assert "install netsvc again" in known["reason"]


@pytest.mark.slow
@pytest.mark.source
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_it_touches_no_memory_that_is_not_its_own(tmp_path: Path) -> None:
    header = Path(sysconfig.get_path("include"), "Python.h")
    sanitizer = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    library = sanitizer.stdout.strip()
    if not header.exists() or not Path(library).is_absolute():
        pytest.skip("needs Python's headers and AddressSanitizer")
    package = shutil.copytree(
        ROOT / "netsvc", tmp_path / "netsvc", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    flags = ("-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fsanitize=address,undefined")
    subprocess.run(
        [
            *("gcc", *flags, "-fno-sanitize-recover=all", "-DPy_LIMITED_API=0x030b0000", f"-I{header.parent}"),
            *(str(package / "reactor/native.c"), "-o", str(package / "reactor/native.abi3.so")),
        ],
        check=True,
    )
    for name in ("tests", "setup.cfg"):
        (tmp_path / name).symlink_to(ROOT / name)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-n",
            "0",
            "tests/net/test_native.py",
            "tests/process/test_reactor.py",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "LD_PRELOAD": library,
            # Each object of Python has a place of its own, and a wall around it. Python frees nothing at its end.
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "skipped" not in ended.stdout
