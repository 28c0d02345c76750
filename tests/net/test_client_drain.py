"""`netsvc drain` asks once, waits for as long as it takes, and shows the report."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from netsvc.cli import drain as client
from netsvc.cli.errors import ClientError
from netsvc.cli.processes import CommandTarget, by_config
from netsvc.plan.answer import Answer
from netsvc.plan.status import Counts
from tests.builders.looks import ECHO, PATIENCE, answering, control_names, pid_name, process, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")

REPORT = Answer(0, ["2 conversations ended", "echo tcp 192.0.2.1:5 held it up"])


#: What is said of this process.
NOT_ENDED = f"drained pid {os.getpid()}, which has not ended yet"


def run(process: CommandTarget, *, watched: bool = False) -> int:
    # The process that answers is this one, which does not end.
    return client.drain(process, watched=watched, interval=0.0, grace=0.0)


def test_the_report_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "drain", partial(client.drain, grace=0.0))
    config = str(tmp_path / "n.toml")
    with answering(lambda line: REPORT if line == "drain" else Answer(1, []), control_names(config)[0]):
        result = CliRunner().invoke(client.command, ["--config", config])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "\n".join([*REPORT.lines, NOT_ENDED, ""]), "")


def test_what_is_refused_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda line: Answer(1, ["no"])) as process:
        assert run(process) == 1
    assert capsys.readouterr() == ("", "netsvc: no\n")


def test_an_end_without_a_report_is_told() -> None:
    with (
        answering(lambda line: b"") as process,
        pytest.raises(ClientError, match=r"^process \d+ .*report.*log"),
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
    assert re.findall(r"\d+", capsys.readouterr().err) == ["2", "1"]


def test_one_that_has_left_its_file_says_so_by_its_pid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, slow = str(tmp_path / "n.toml"), Slow(3, 0)

    def by_file(line: str) -> Answer:
        return slow(line) if line == "drain" else status(process())

    with answering(by_file, control_names(config)[0]), answering(slow, pid_name(os.getpid())):
        assert run(by_config(config), watched=True) == 0
    assert re.findall(r"\d+", capsys.readouterr().err) == ["3"]


@pytest.mark.parametrize("answer", [Answer(1, ["there is no such command"]), status(process())])
def test_one_that_cannot_say_so_drains_all_the_same(answer: Answer) -> None:
    with answering(lambda line: REPORT if line == "drain" else answer) as it:
        assert client.drain(it, watched=True, interval=PATIENCE, grace=0.0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_and_not_the_drain(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, asked, ended = str(tmp_path / "n.toml"), threading.Event(), threading.Event()

    def reply(line: str) -> Answer:
        asked.set()
        ended.wait(PATIENCE)
        return REPORT

    with answering(reply, control_names(config)[0]):
        command = subprocess.Popen([sys.executable, "-m", "netsvc", "drain", "--config", config])
        assert asked.wait(PATIENCE)
        command.send_signal(number)
        assert command.wait(PATIENCE) == 128 + number
        ended.set()
    assert re.fullmatch(r"netsvc: .*drain.*netsvc status.*\n", capfd.readouterr().err)


def on_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> Callable[..., tuple[int, list[str]]]:
    questions: list[str] = []

    def confirm(question: str, **_: object) -> None:
        questions.append(question)
        if answer != "y":
            raise click.Abort

    monkeypatch.setattr(click, "confirm", confirm)

    monkeypatch.setattr(client, "_is_terminal", lambda: True)
    # The process that answers is this one, which does not end.
    monkeypatch.setattr(client, "drain", partial(client.drain, grace=0))

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
        exit_status, [question] = run("--config", config)
        assert exit_status == ends
        assert config in question
        assert asked.count("drain") == (answer == "y")
        exit_status, questions = run("--config", config, "--yes")
        assert exit_status == 0
        assert questions == [question]
