"""What the benchmarks make of their readings; no server is started for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import CASES, Measure, phase_of
from benchmarks.charts import GROUPS, draw
from benchmarks.contest import chosen_servers
from benchmarks.errors import BenchError
from benchmarks.files import make_file
from benchmarks.machine import describe
from benchmarks.page import page
from benchmarks.report import report
from benchmarks.results import Reading, Results, Spread, spread
from benchmarks.servers import NETSVC, STREAM, Site
from benchmarks.tables import figure, tables
from tests.builders.processes import ROOT


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


@pytest.mark.slow  # matplotlib makes every later look for garbage slow
def test_charts_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw(results(), tmp_path)
    assert [group.name for group in drawn] == ["echo", "datagrams", "files", "process"]
    first = (tmp_path / "echo.svg").read_text()
    assert "<svg" in first and "TCP echo" in first
    draw(results(), tmp_path)
    assert (tmp_path / "echo.svg").read_text() == first


def test_the_machine_is_described_without_its_paths() -> None:
    described = describe()
    assert {"Date", "Processor", "Kernel", "netsvc", "Python", "Twisted"} <= described.keys()
    assert not [text for text in described.values() if str(ROOT) in text or str(Path.home()) in text]


def test_netsvc_is_measured_whoever_is_asked_for() -> None:
    case = next(case for case in CASES if case.name == "echo-64")
    assert [server.peer for server in chosen_servers(case, ["C"])] == [NETSVC, "C"]
    assert chosen_servers(case, []) == STREAM


def test_another_checkout_is_measured_beside_this_one(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "connect")
    this, other, peer = chosen_servers(case, ["C"], tmp_path)
    assert (this.peer, peer.peer) == (NETSVC, "C") and tmp_path.name in other.peer
    site = Site(9001, tmp_path, tmp_path)
    assert other.environment(site) == {"PYTHONPATH": str(tmp_path)}
    assert other.command(site) == this.command(site)
    readings = [Reading("connect", each.peer, 0, 1.0) for each in (peer, other, this)]
    [table] = tables(Results(readings=readings))
    assert [row.peer for row in table.rows] == [this.peer, other.peer, peer.peer]


def test_only_a_checkout_is_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--against", str(tmp_path), "--list"])
    assert ended.value.code == 2 and str(tmp_path) in capsys.readouterr().err


def test_the_command_lists_its_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert (
        "echo-64     netsvc, netsvc, no limits, netsvc, every limit, Twisted, netsvc's reactor, asyncio, uvloop, C"
        in capsys.readouterr().out
    )


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
