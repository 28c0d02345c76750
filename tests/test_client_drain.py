"""`netsvc drain` asks once, waits for as long as it takes, and shows the report."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from netsvc.client import drain as client
from netsvc.client.asking import Process, of_config
from netsvc.client.failure import ClientError
from netsvc.host.control import Answer, control_names, pid_name
from netsvc.status import Counts
from tests.looks import ECHO, PATIENCE, answering, process, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")

REPORT = Answer(0, ["2 conversations ended", "echo tcp 192.0.2.1:5 held it up"])


def run(process: Process, *, watched: bool = False) -> int:
    return asyncio.run(client.drain(process, watched=watched, interval=0.0))


def test_the_report_is_shown(tmp_path: Path) -> None:
    config = str(tmp_path / "n.toml")
    with answering(lambda line: REPORT if line == "drain" else Answer(1, []), control_names(config)[0]):
        result = CliRunner().invoke(client.command, ["--config", config])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "\n".join([*REPORT.lines, ""]), "")


def test_what_is_refused_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda line: Answer(1, ["no"])) as process:
        assert run(process) == 1
    assert capsys.readouterr() == ("", "netsvc: no\n")


def test_an_end_without_a_report_is_told() -> None:
    with (
        answering(lambda line: b"") as process,
        pytest.raises(ClientError, match="closed the connection with no report; its log has it"),
    ):
        run(process)


class Slow:
    """Reports when it has been asked so often how many are left, or cannot tell."""

    def __init__(self, *left: int | None) -> None:
        self.left = [*left]
        self.told = threading.Event()

    def __call__(self, line: str) -> Answer:
        if line == "drain":
            self.told.wait(PATIENCE)
            return REPORT
        left = self.left.pop(0) if self.left else 0
        if not self.left:
            self.told.set()
        if left is None:
            return Answer(1, ["not now"])
        return status(process(listeners=[replace(ECHO, counts=Counts(open=left))]))


def test_meanwhile_it_says_how_many_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(Slow(9, 2, 2, None, 1, 0)) as it:
        assert run(it, watched=True) == 0
    assert capsys.readouterr().err == "netsvc: 2 connections left\nnetsvc: 1 connection left\n"


def test_one_that_has_left_its_file_says_so_by_its_pid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, slow = str(tmp_path / "n.toml"), Slow(3, 0)

    def by_file(line: str) -> Answer:
        return slow(line) if line == "drain" else status(process())

    with answering(by_file, control_names(config)[0]), answering(slow, pid_name(os.getpid())):
        assert run(of_config(config), watched=True) == 0
    assert capsys.readouterr().err == "netsvc: 3 connections left\n"


@pytest.mark.parametrize("answer", [Answer(1, ["there is no such command"]), status(process())])
def test_one_that_cannot_say_so_drains_all_the_same(answer: Answer) -> None:
    with answering(lambda line: REPORT if line == "drain" else answer) as it:
        assert asyncio.run(client.drain(it, watched=True, interval=PATIENCE)) == 0


def test_who_does_not_want_to_wait_leaves_it_going(capsys: pytest.CaptureFixture[str]) -> None:
    asked, ended = threading.Event(), threading.Event()

    def reply(line: str) -> Answer:
        asked.set()
        ended.wait(PATIENCE)
        return REPORT

    async def leave(it: Process) -> None:
        draining = asyncio.ensure_future(client.drain(it, watched=False))
        await asyncio.to_thread(asked.wait, PATIENCE)
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining

    with answering(reply) as it:
        asyncio.run(leave(it))
        ended.set()
    assert capsys.readouterr().err == "netsvc: the drain goes on; netsvc status shows it\n"


def on_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> Callable[..., tuple[int, list[str]]]:
    questions: list[str] = []

    def confirm(question: str, **_: object) -> None:
        questions.append(question)
        if answer != "y":
            raise click.Abort

    monkeypatch.setattr(click, "confirm", confirm)

    monkeypatch.setattr(client, "_is_terminal", lambda: True)

    def run(*words: str) -> tuple[int, list[str]]:
        return CliRunner().invoke(client.command, words).exit_code, questions

    return run


@pytest.mark.parametrize(("answer", "ends"), [("y", 0), ("n", 1)])
def test_on_a_terminal_it_is_asked_whether_it_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, ends: int
) -> None:
    config, asked = str(tmp_path / "n.toml"), []

    def reply(line: str) -> Answer:
        asked.append(line)
        return REPORT

    run = on_terminal(monkeypatch, answer)
    with answering(reply, control_names(config)[0]):
        assert run("--config", config) == (ends, [f"the process that runs with {config} will stop; is it meant?"])
        assert asked.count("drain") == (answer == "y")
        exit_status, questions = run("--config", config, "--yes")
        assert exit_status == 0
        assert len(questions) == 1
