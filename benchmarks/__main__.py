"""netsvc against its peers, in ratios of one run. `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.charts import draw, load_pyplot
from benchmarks.contest import Contest, chosen_servers
from benchmarks.errors import BenchError
from benchmarks.machine import describe
from benchmarks.page import page
from benchmarks.report import report
from benchmarks.results import Results

__all__ = ["main"]

#: Bounds of the options: a run that is never awaited measures nothing.
_MOST_ROUNDS = 100
_LONGEST = 60.0


def _rounds(text: str) -> int:
    if not 1 <= (number := int(text)) <= _MOST_ROUNDS:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {_MOST_ROUNDS}")
    return number


def _seconds(text: str) -> float:
    if not 0.01 <= (number := float(text)) <= _LONGEST:
        raise argparse.ArgumentTypeError(f"seconds from 0.01 to {_LONGEST:g}")
    return number


def _checkout(text: str) -> Path:
    if not (path := Path(text).resolve()).joinpath("netsvc", "tap.py").is_file():
        raise argparse.ArgumentTypeError(f"there is no checkout of netsvc in {text}")
    return path


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    peers = dict.fromkeys(server.peer for case in CASES for server in case.servers)
    made = argparse.ArgumentParser("python -m benchmarks", description="Measures netsvc against its peers.")
    made.add_argument("--case", action="append", choices=[case.name for case in CASES], help="run this one; repeats")
    made.add_argument("--only", action="append", choices=list(peers), help="measure this peer and netsvc; repeats")
    made.add_argument("--against", type=_checkout, metavar="DIR", help="measure the netsvc of another checkout as well")
    made.add_argument("--rounds", type=_rounds, default=5, help="how often each is measured (default: 5)")
    made.add_argument("--seconds", type=_seconds, default=1.0, help="how long each time (default: 1)")
    made.add_argument("--list", action="store_true", help="show the cases and their peers, and exit")
    made.add_argument("--output", type=Path, metavar="DIR", help="write DIR/benchmarks.md and the charts beside it")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything that was read")
    made.add_argument(
        "--from", dest="stored", type=Path, metavar="FILE", help="measure nothing: show what --json wrote"
    )
    return made


def _show_cases() -> None:
    for case in CASES:
        print(f"{case.name:12}{', '.join(server.peer for server in case.servers)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> Results:
    """Run the cases that were asked for."""
    if len(os.sched_getaffinity(0)) < 2:
        _say("there is one core only: server and generator share it, and no figure means much")
    directory = Path(tempfile.mkdtemp(prefix="netsvc-benchmarks-"))
    # Servers that give up root read their files as another user.
    directory.chmod(0o755)
    contest = Contest(directory, options.rounds, options.seconds, _say)
    contest.results.machine = describe()
    contest.results.options = {"rounds": options.rounds, "seconds": options.seconds}
    try:
        for case in CASES:
            if not options.case or case.name in options.case:
                contest.run(case, chosen_servers(case, options.only or (), options.against))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return contest.results


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, which is 1 if anything failed."""
    options = parser().parse_args(words)
    if options.list:
        _show_cases()
        return 0
    try:
        if options.output:
            # What is missing is told before the minutes of measuring, not after them.
            load_pyplot()
            (options.output / "benchmarks").mkdir(parents=True, exist_ok=True)
        results = Results.read(options.stored) if options.stored else measure(options)
        print(report(results))
        if options.json:
            results.write(options.json)
        if options.output:
            drawn = draw(results, options.output / "benchmarks", _say)
            (options.output / "benchmarks.md").write_text(page(results, drawn))
    except BenchError as error:
        _say(str(error))
        return 1
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}")
        return 1
    return 1 if results.failures else 0


def _stop(number: int, _frame: object) -> None:
    # As an exception, so that every server that runs is stopped.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
