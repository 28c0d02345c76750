"""The benchmarks work; how fast anything is, is not asked here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import CASES, Case, Measure, Phase
from benchmarks.contest import Contest
from benchmarks.errors import BenchError
from benchmarks.files import SMALL, make_file
from benchmarks.generators import SOURCES, compiled, compiler, generate
from benchmarks.process import Running, free_port
from benchmarks.results import Results
from benchmarks.servers import CHAT, DATAGRAM, FILES, HTTP, HTTPS, NETSVC, STREAM, TFTP, Server, Site, start
from tests.builders.processes import PATIENCE
from tests.builders.several import until_gone

#: Real processes, many of them.
pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")

CORES = [min(os.sched_getaffinity(0))]


@pytest.fixture(scope="module", autouse=True)
def cache_of_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        compiled.cache_clear()
        yield
        compiled.cache_clear()


def named(servers: tuple[Server, ...], peer: str) -> Server:
    [server] = [server for server in servers if server.peer == peer]
    return server


def site(tmp_path: Path) -> Site:
    root = tmp_path / "root"
    root.mkdir()
    make_file(root / SMALL[0], SMALL[1])
    make_file(root / "odd.bin", (1 << 20) + 4321)
    return Site(free_port(), tmp_path, root)


@contextmanager
def running(server: Server, tmp_path: Path) -> Iterator[tuple[Running, int]]:
    place = site(tmp_path)
    up, _ = start(server, place, CORES)
    try:
        yield up, place.port
    finally:
        up.stop()


def load(name: str, port: int, *words: str, phases: int = 1, before: Callable[[], None] = lambda: None) -> list[Any]:
    """Run a generator for a moment; return its reports."""
    reports: list[Any] = []
    generate(
        name,
        ("--port", str(port), *words, "--patience", "60"),
        cores=CORES,
        seconds=0.02,
        warm_up=0.01,
        phases=phases,
        before=before,
        after=reports.append,
    )
    return reports


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """Listen on a port where the first connection gets one answer, or none at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if answer is not None:
                    connection.sendall(answer)
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(PATIENCE)
        assert not thread.is_alive()


@needs_compiler
@pytest.mark.parametrize("source", sorted(path.stem for path in SOURCES.glob("*.c")))
def test_every_program_compiles_without_a_warning(source: str, tmp_path: Path) -> None:
    command = [compiler() or "", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror"]
    ended = subprocess.run(
        [*command, "-fsyntax-only", str(SOURCES / f"{source}.c")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stderr


@needs_compiler
@pytest.mark.parametrize("peer", ["C", "asyncio"])
def test_stream_generators_work_against_an_echo_server(peer: str, tmp_path: Path) -> None:
    with running(named(STREAM, peer), tmp_path) as (_, port):
        for words in (
            ("echo", "--connections", "3", "--size", "64"),
            ("echo", "--connections", "2", "--size", "300000"),
            ("echo", "--connections", "3", "--size", "64", "--busy", "0"),
            ("connect", "--parallel", "3"),
            ("idle", "--connections", "20"),
        ):
            [result] = load(words[0], port, *words[1:])
            assert result["operations"] > 0 and result["seconds"] > 0 and result["cpu_s"] >= 0
            assert 0 < result["p50_us"] <= result["p99_us"]


@needs_compiler
@pytest.mark.parametrize("peer", ["C", "Twisted"])
def test_the_datagram_generator_works_against_an_echo_server(peer: str, tmp_path: Path) -> None:
    with running(named(DATAGRAM, peer), tmp_path) as (_, port):
        [result] = load("datagram", port, "--sockets", "2", "--flight", "3", "--size", "1400")
        assert result["operations"] > 0


@needs_compiler
def test_the_download_generator_works_with_the_classic_protocol(tmp_path: Path) -> None:
    with running(named(FILES, NETSVC), tmp_path) as (_, port):
        [small] = load("fetch", port, "--name", "small.bin", "--parallel", "3")
        [odd] = load("fetch", port, "--name", "odd.bin", "--length", str((1 << 20) + 4321), "--parallel", "2")
        [mixed] = load("fetch", port, "--name", "small.bin", "--background", "2", "--background-name", "odd.bin")
        assert small["operations"] > 0 and odd["operations"] > 0
        assert mixed["operations"] > 0 and mixed["background_bytes"] > 0
        with pytest.raises(BenchError, match="the server closed after 0 bytes"):
            load("fetch", port, "--name", "missing.bin")


@needs_compiler
@pytest.mark.parametrize("server", HTTPS[:2], ids=lambda server: server.peer)
def test_the_download_generator_works_over_https(server: Server) -> None:
    if reason := server.absent():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        with running(server, Path(name)) as (_, port):
            for file, size in ((SMALL[0], SMALL[1]), ("odd.bin", (1 << 20) + 4321)):
                [result] = load("fetch_tls", port, "--name", file, "--length", str(size))
                assert result["operations"] > 0
            with pytest.raises(BenchError, match="the answer has status 404"):
                load("fetch_tls", port, "--name", "missing.bin")


@needs_compiler
def test_the_download_generator_works_over_http(tmp_path: Path) -> None:
    with running(named(HTTP, "http.server"), tmp_path) as (_, port):
        for dialect in ("http", "keep"):
            [result] = load("fetch", port, "--name", "small.bin", "--dialect", dialect, "--parallel", "2")
            assert result["operations"] > 0
        with pytest.raises(BenchError, match="the answer has status 404"):
            load("fetch", port, "--name", "missing.bin", "--dialect", "http")
        with pytest.raises(BenchError, match="another length"):
            load("fetch", port, "--name", "small.bin", "--length", "4097", "--dialect", "http")


@needs_compiler
def test_the_tftp_generator_works(tmp_path: Path) -> None:
    with running(named(TFTP, NETSVC), tmp_path) as (_, port):
        for length, block, window in ((4096, 512, 16), (4096, 1428, 1), (4096, 4097, 4)):
            words = ("--length", str(length), "--blksize", str(block), "--window", str(window))
            [result] = load("tftp", port, "--name", "small.bin", *words)
            assert (result["operations"] > 0, result["lost"]) == (True, 0)
        [odd] = load("tftp", port, "--name", "odd.bin", "--length", str((1 << 20) + 4321))
        assert odd["operations"] > 0
        with pytest.raises(BenchError, match="the answer has the opcode 5: no such file"):
            load("tftp", port, "--name", "missing.bin")


@needs_compiler
@pytest.mark.parametrize(("peer", "crowds"), [(NETSVC, 2), ("twistd words", 1)])
def test_the_chat_generator_counts_every_delivery(peer: str, crowds: int, tmp_path: Path) -> None:
    server = named(CHAT, peer)
    with running(server, tmp_path) as (_, port):
        for _ in range(crowds):
            # A second crowd gets to see the history of the first, which it must not count.
            results = load("fanout", port, *server.dialect, "--members", "5", "--flight", "1,8", phases=2)
            assert [result["operations"] % 4 for result in results] == [0, 0]
            assert all(result["operations"] > 0 for result in results)


@needs_compiler
@pytest.mark.parametrize(("servers", "generator"), [(STREAM, "echo"), (DATAGRAM, "datagram")])
def test_a_server_that_dies_is_an_error_line(servers: tuple[Server, ...], generator: str, tmp_path: Path) -> None:
    with (
        running(named(servers, "C"), tmp_path) as (up, port),
        pytest.raises(BenchError, match=r"gave up: .*(refused|closed|reset)"),
    ):
        load(generator, port, before=up.stop)


@needs_compiler
def test_a_server_that_is_not_there_is_an_error_line() -> None:
    with pytest.raises(BenchError, match=r"\becho\b.*\bport \d+: Connection refused"):
        load("echo", free_port())


@needs_compiler
def test_a_server_that_stays_silent_is_an_error_line() -> None:
    with (
        answering(None) as port,
        pytest.raises(BenchError, match=r"answered nothing for 0\.05 s"),
    ):
        load("echo", port, "--connections", "1", "--patience", "0.05")


@needs_compiler
def test_wrong_bytes_are_an_error_line() -> None:
    with answering(b"y" * 64) as port, pytest.raises(BenchError, match="is not what was sent"):
        load("echo", port, "--connections", "1")


def a_case(*servers: Server) -> Case:
    return Case("start", servers, (Phase("start", "Start", "ms", Measure.START),), fresh=True)


def test_an_absent_peer_is_skipped_with_a_line(tmp_path: Path) -> None:
    lines: list[str] = []
    contest = Contest(tmp_path, 2, 0.01, lines.append)
    case = a_case(Server("ghost", lambda _site: [], absent=lambda: "there is no ghost here"))
    contest.run(case, case.servers)
    assert lines == ["start: ghost is skipped: there is no ghost here"]
    assert contest.results.skipped == {"ghost": "there is no ghost here"}
    assert not contest.results.readings


def test_a_server_that_does_not_start_is_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print('no such port'); raise SystemExit(3)"]
    case = a_case(
        Server("broken", lambda _site: words),
        Server("missing", lambda _site: [str(tmp_path / "missing")]),
        named(STREAM, "asyncio"),
    )
    contest = Contest(tmp_path, 2, 0.01, lambda _line: None)
    contest.run(case, case.servers)
    broken, missing = contest.results.failures
    assert broken == "start: broken: broken ended with status 3: no such port"
    assert missing.endswith("missing: No such file or directory")
    assert [(reading.peer, reading.round) for reading in contest.results.readings] == [("asyncio", 0), ("asyncio", 1)]


@needs_compiler
def test_a_case_is_measured_from_its_start_to_its_reading(tmp_path: Path) -> None:
    [echo] = [case for case in CASES if case.name == "echo-64"]
    case = Case("echo-64", (named(STREAM, "C"),), echo.phases, "echo", ("--connections", "2"))
    contest = Contest(tmp_path, 2, 0.02, lambda _line: None)
    contest.run(case, case.servers)
    assert not contest.results.failures
    for reading in contest.results.readings:
        assert reading.operations > 0 and reading.server_cpu > 0 and reading.memory > 0
        assert reading.value == pytest.approx(reading.operations / reading.seconds)


@pytest.mark.parametrize("server", [*FILES[1:3], CHAT[1]], ids=lambda server: server.peer)
def test_a_peer_starts_with_its_configuration_and_ends(server: Server) -> None:
    if reason := server.absent():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as name:
        # Some give up root, and read and write here as somebody else; pytest's own directories are nobody else's.
        directory = Path(name)
        directory.chmod(0o777)
        with running(server, directory) as (up, _):
            pids = up.tree()
            assert up.cpu() > 0 and up.memory() > 0
    until_gone(pids)


@needs_compiler
def test_the_command_measures_and_stores_one_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--case", "udp-64", "--only", "C", "--rounds", "1", "--seconds", "0.02"]
    assert main([*words, "--json", str(tmp_path / "all.json")]) == 0
    shown = capsys.readouterr()
    assert "UDP echo, 64 bytes" in shown.out
    assert shown.err.splitlines() == ["udp-64: round 1 of 1: netsvc", "udp-64: round 1 of 1: C"]
    assert Results.read(tmp_path / "all.json").peers("udp-64") == [NETSVC, "C"]
