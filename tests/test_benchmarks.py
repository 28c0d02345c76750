"""The benchmarks work; how fast anything is, is not asked here."""

from __future__ import annotations

import re
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
from benchmarks.cases import CASES, Case, Measure, Phase, phase_of
from benchmarks.charts import GROUPS, draw
from benchmarks.contest import Contest, chosen_servers
from benchmarks.errors import BenchError
from benchmarks.files import SMALL, make_file
from benchmarks.generators import SOURCES, compiled, compiler, generate
from benchmarks.machine import describe
from benchmarks.page import page
from benchmarks.process import Running, free_port
from benchmarks.report import report
from benchmarks.results import Reading, Results, Spread, spread
from benchmarks.servers import CHAT, DATAGRAM, FILES, NETSVC, STREAM, Server, Site, start
from benchmarks.tables import figure
from tests.processes import ROOT

#: Real processes, many of them.
pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")

CORES = [0]


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
        ("--port", str(port), *words),
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
        thread.join(30)
        assert not thread.is_alive()


@needs_compiler
@pytest.mark.parametrize("source", sorted(path.stem for path in SOURCES.glob("*.c")))
def test_every_program_compiles_without_a_warning(source: str, tmp_path: Path) -> None:
    command = [compiler() or "", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror"]
    ended = subprocess.run(
        [*command, "-fsyntax-only", str(SOURCES / f"{source}.c")], capture_output=True, text=True, timeout=60
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
def test_the_download_generator_works_over_http(tmp_path: Path) -> None:
    plain = named(FILES, "http.server")
    kept = Server("kept", lambda place: [*plain.command(place), "--protocol", "HTTP/1.1"], plain.probe)
    with running(kept, tmp_path) as (_, port):
        for dialect in ("http", "keep"):
            [result] = load("fetch", port, "--name", "small.bin", "--dialect", dialect, "--parallel", "2")
            assert result["operations"] > 0
        with pytest.raises(BenchError, match="the answer has status 404"):
            load("fetch", port, "--name", "missing.bin", "--dialect", "http")
        with pytest.raises(BenchError, match="another length"):
            load("fetch", port, "--name", "small.bin", "--length", "4097", "--dialect", "http")


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
    with pytest.raises(BenchError, match=r"the generator echo gave up: connect to port \d+: Connection refused"):
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


def test_files_hold_the_pattern(tmp_path: Path) -> None:
    make_file(tmp_path / "file", (2 << 20) + 12)
    data = (tmp_path / "file").read_bytes()
    assert len(data) == (2 << 20) + 12
    assert [data[place << 20 :][:8] for place in range(3)] == [place.to_bytes(8, "little") for place in range(3)]
    assert data[8:16] == (0x9E3779B97F4A7C15).to_bytes(8, "little") and data[8:12] == data[-4:]


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert spread([4.0, 2.0]) == Spread(3.0, 2.0, 4.0)


def results() -> Results:
    """Two cases, three rounds, one of them without the second peer."""
    found = Results({"Date": "2030-01-02", "Kernel": "Linux"}, {"rounds": 3, "seconds": 1.0})
    for number, (ours, theirs) in enumerate([(100.0, 50.0), (200.0, 300.0), (400.0, None)]):
        found.readings.append(
            Reading("echo-64", NETSVC, number, ours, operations=1000, seconds=2, server_cpu=1.9, generator_cpu=0.5)
        )
        if theirs is not None:
            found.readings.append(
                Reading("echo-64", "C", number, theirs, operations=4000, seconds=2, server_cpu=1.0, generator_cpu=2.0)
            )
    for peer, value in ((NETSVC, 4.0), ("nginx", 3.0), ("nginx, again", 6.0)):
        found.readings.append(Reading("file-1g", peer, 0, value, 4, 1, p50_us=2.5e5, p99_us=1.5e6, memory=3 << 20))
    for key in ("file-mixed", "idle", "udp-64"):
        found.readings.append(Reading(key, NETSVC, 0, 5.0, 10, 1, lost=7 if key == "udp-64" else 0))
    found.skipped["ngircd"] = "there is no ngircd here"
    found.failures.append("start: C: it ended")
    return found


def test_a_ratio_is_that_of_the_same_round() -> None:
    assert results().ratio("echo-64", "C", NETSVC) == Spread(1.0, 0.5, 1.5)
    assert results().ratio("echo-64", NETSVC, "C") == Spread((2.0 + 200 / 300) / 2, 200 / 300, 2.0)
    assert results().ratio("echo-64", "nobody", NETSVC) is None


def test_a_row_sums_up_its_rounds() -> None:
    row = results().row("echo-64", "C", NETSVC)
    assert (row.rounds, row.value.median, row.rate.median) == (2, 175.0, 2000.0)
    assert (row.server_cpu.median * 1e6, row.generator_cpu * 1e6) == (250.0, 500.0)
    assert (row.server_busy, row.generator_busy) == (0.5, 1.0)


def test_the_report_tells_everything() -> None:
    text = report(results())
    assert re.search(r"^  netsvc +1\.00  1\.00 to 1\.00 +200 ", text, re.MULTILINE)
    assert re.search(r"^  C † +1\.00  0\.50 to 1\.50 +175 .* 50% / 100% ", text, re.MULTILINE)
    assert "nginx against itself: 2.00 (2.00 to 2.00)" in text
    assert "250 ms  1.50 s" in text
    assert "netsvc lost 7 datagrams in all" in text
    assert "skipped: ngircd: there is no ngircd here" in text
    assert "failed: start: C: it ended" in text
    assert not report(Results())


def test_figures_keep_three_digits() -> None:
    assert [figure(number) for number in (0, 0.123, 9.876, 12.34, 123.4, 1234567)] == [
        *("0", "0.12", "9.88", "12.3", "123", "1,234,567")
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    results().write(tmp_path / "all.json")
    assert Results.read(tmp_path / "all.json") == results()
    (tmp_path / "bad.json").write_text("[]")
    for name in ("bad.json", "none.json"):
        with pytest.raises(BenchError, match=name):
            Results.read(tmp_path / name)


def test_the_page_shows_tables_charts_and_where_it_was_measured() -> None:
    text = page(results(), GROUPS)
    assert "each of 3 rounds, for\n1 s each" in text
    assert "- Kernel: Linux" in text and "- Date: 2030-01-02" in text
    assert "| C † | 1.00 | 0.50 to 1.50 | 175 |" in text
    assert "![TCP echo](benchmarks/echo.svg)" in text
    assert "- skipped: ngircd: there is no ngircd here" in text
    assert str(ROOT) not in text and str(Path.home()) not in text and "/tmp" not in text


def test_every_table_has_its_chart() -> None:
    keys = [phase.key for case in CASES for phase in case.phases]
    assert len(set(keys)) == len(keys)
    assert {key for group in GROUPS for key in group.keys} == set(keys)
    assert phase_of("idle").measure is Measure.MEMORY


def test_charts_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw(results(), tmp_path)
    assert [group.name for group in drawn] == ["echo", "datagrams", "files", "process"]
    first = (tmp_path / "echo.svg").read_text()
    assert "<svg" in first and "TCP echo" in first
    draw(results(), tmp_path)
    assert (tmp_path / "echo.svg").read_text() == first


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
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_machine_is_described_without_its_paths() -> None:
    described = describe()
    assert {"Date", "Processor", "Kernel", "netsvc", "Python", "Twisted"} <= described.keys()
    assert not [text for text in described.values() if str(ROOT) in text or str(Path.home()) in text]


@needs_compiler
def test_the_command_measures_and_stores_one_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--case", "udp-64", "--only", "C", "--rounds", "1", "--seconds", "0.02"]
    assert main([*words, "--json", str(tmp_path / "all.json")]) == 0
    shown = capsys.readouterr()
    assert "UDP echo, 64 bytes" in shown.out
    assert shown.err.splitlines() == ["udp-64: round 1 of 1: netsvc", "udp-64: round 1 of 1: C"]
    assert Results.read(tmp_path / "all.json").peers("udp-64") == [NETSVC, "C"]


def test_netsvc_is_measured_whoever_is_asked_for() -> None:
    case = a_case(*STREAM)
    assert [server.peer for server in chosen_servers(case, ["C"])] == [NETSVC, "C"]
    assert chosen_servers(case, []) == STREAM


def test_the_command_lists_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "echo-64     netsvc, Twisted, netsvc's reactor, asyncio, uvloop, C\n" in capsys.readouterr().out


def test_the_command_shows_a_stored_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results().write(tmp_path / "all.json")
    assert main(["--from", str(tmp_path / "all.json"), "--json", str(tmp_path / "again.json")]) == 1
    assert "TCP echo" in capsys.readouterr().out
    assert Results.read(tmp_path / "again.json") == results()
    assert main(["--from", str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/none.json: No such file or directory\n"


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--rounds", "x"], ["--seconds", "0"], ["--seconds", "nan"], ["--case", "x"]]
)
def test_the_command_names_what_it_does_not_accept(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert f"argument {words[0]}: " in capsys.readouterr().err
