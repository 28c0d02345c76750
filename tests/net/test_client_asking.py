"""The commands ask the process that is meant, take no other for it, and show_answer what it answers."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from netsvc.cli import processes
from netsvc.cli.errors import ClientError
from netsvc.cli.processes import ClosedError, CommandTarget, ask, by_config, by_pid, show_answer, which_process
from netsvc.cli.reload import reload
from netsvc.control.protocol import LONGEST_ANSWER
from netsvc.plan.answer import Answer
from tests.builders.looks import answering, control_names, pid_name, unused_pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


NOBODY = unused_pids(1)


def reloaded(line: str) -> Answer:
    return Answer(0, [f"did {line}"])


def test_a_process_is_asked_by_its_file(tmp_path: Path) -> None:
    config = str(tmp_path / "n.toml")
    with answering(reloaded, control_names(config)[0]):
        assert ask(by_config(config), "reload") == Answer(0, ["did reload"])


def test_a_process_is_asked_by_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with answering(reloaded, control_names(f"{tmp_path}/real/n.toml")[0]):
        assert ask(by_config(f"{tmp_path}/link/n.toml"), "reload").status == 0


def test_a_process_is_asked_by_its_pid() -> None:
    with answering(reloaded) as process:
        assert ask(process, "status {}") == Answer(0, ["did status {}"])
    assert by_pid(NOBODY).names == [pid_name(NOBODY)]


def test_nobody_is_told_with_the_cure(tmp_path: Path) -> None:
    config = tmp_path / "n.toml"
    with pytest.raises(ClientError, match=f"--config {config}.*no such file"):
        ask(by_config(str(config)), "reload")
    config.touch()
    with pytest.raises(ClientError, match=f"--config {config}(?!.*no such file)"):
        ask(by_config(str(config)), "reload")
    with pytest.raises(ClientError, match=rf"process {NOBODY}\b.*netsvc status"):
        ask(by_pid(NOBODY), "reload")


@pytest.mark.parametrize("reply", [b"", b"nonsense\n", b'{"out": "part', b"x" * (LONGEST_ANSWER + 1)])
def test_an_answer_that_is_none_is_an_error(reply: bytes) -> None:
    with (
        answering(lambda line: reply) as process,
        pytest.raises(ClosedError, match=rf"^process {os.getpid()} .*closed.*user.*root"),
    ):
        ask(process, "reload")


def test_a_process_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(pid_name(NOBODY))
        listening.listen()
        with pytest.raises(ClientError, match=r"does not answer.*log"):
            ask(by_pid(os.getpid(), pid_name(NOBODY)), "reload", 0.01)


@pytest.mark.parametrize("room", [True, False])
def test_a_process_that_hears_nobody_is_tried_so_often(room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TRIES", 2)
    monkeypatch.setattr(processes, "PAUSE", 0)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(pid_name(NOBODY))
        listening.listen(0)
        other.connect(pid_name(NOBODY))
        if room:
            listening.accept()[0].close()
        says = "does not answer" if room else "try again"
        with pytest.raises(ClientError, match=says):
            ask(by_pid(os.getpid(), pid_name(NOBODY)), "reload", 0.01)


def test_what_else_goes_wrong_is_one_line(tmp_path: Path) -> None:
    too_long = CommandTarget([f"\0{'x' * 200}"], "it", "it is not there")
    with pytest.raises(ClientError, match=r"\bit\b.*AF_UNIX path too long"):
        ask(too_long, "reload")


class Other:
    """Somebody else answers, and somebody asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: tuple[int, int], asks: int) -> None:
        monkeypatch.setattr(processes, "peer_process", lambda connection: answers)
        monkeypatch.setattr(os, "geteuid", lambda: asks)


@pytest.mark.parametrize("user", [0, 4242])
def test_a_name_that_another_user_has_taken_is_told(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(reloaded) as process:
        Other(monkeypatch, (process.pid, user), 1000)
        with pytest.raises(ClientError, match=rf"user {user}\b.*root"):
            ask(process, "reload")


def test_a_pid_whose_name_another_process_has_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(reloaded) as process:
        Other(monkeypatch, (17, 4242), 0)
        with pytest.raises(ClientError, match=rf"^process {process.pid} .*process 17\b.*user 4242\b"):
            ask(process, "reload")


def test_a_process_that_cannot_be_seen_from_here_is_not_known_by_its_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(reloaded) as process:
        Other(monkeypatch, (0, 1000), 1000)
        with pytest.raises(ClientError, match=r"another container"):
            ask(process, "reload")


def test_root_may_ask_anybodys_process_by_its_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(reloaded) as process:
        Other(monkeypatch, (process.pid, 4242), 0)
        assert ask(process, "reload").status == 0


@pytest.mark.parametrize("owner", [4242, 1, None])
def test_root_asks_the_process_of_a_file_only_if_it_is_its_owners(
    owner: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "n.toml"
    if owner is not None:
        config.touch()
        real = os.stat(config)
        monkeypatch.setattr(os, "stat", lambda path, **_: os.stat_result((*real[:4], owner, *real[5:10])))
    with answering(reloaded, control_names(str(config))[0]):
        Other(monkeypatch, (17, 4242), 0)
        if owner == 4242:
            assert ask(by_config(str(config)), "reload").status == 0
        else:
            with pytest.raises(ClientError, match=r"process 17 of user 4242\b.*--pid 17\b"):
                ask(by_config(str(config)), "reload")


def test_a_name_that_another_user_has_taken_does_not_hide_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(tmp_path / "n.toml")
    other = str(tmp_path / "other")
    with answering(lambda line: Answer(0, ["not this one"]), other), answering(reloaded, control_names(config)[0]):
        peers = iter([(17, 4242), (18, os.geteuid())])
        monkeypatch.setattr(processes, "peer_process", lambda connection: next(peers))
        target = by_config(config)
        assert ask(CommandTarget([other, *target.names], "it", "missing", config=config), "reload").lines == [
            "did reload"
        ]


def test_a_socket_in_a_directory_that_is_closed_to_this_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(processes, "_open", refuse)
    with pytest.raises(ClientError, match=r"another user.*root"):
        ask(by_config(str(tmp_path / "n.toml")), "reload")


@pytest.mark.parametrize(
    ("answer", "out", "err"),
    [(Answer(0, ["a", "\x1b[2J"]), "a\n\\x1b[2J\n", ""), (Answer(3, ["a", "b"]), "", "netsvc: a\nnetsvc: b\n")],
)
def test_an_answer_is_shown_safely(answer: Answer, out: str, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_answer(answer) == min(answer.status, 1)
    assert capsys.readouterr() == (out, err)


def invoke(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(reload, words)
    return result.exit_code, result.stdout, result.stderr


def test_reload_asks_the_process_of_its_file(tmp_path: Path) -> None:
    config = str(tmp_path / "n.toml")
    with answering(reloaded, control_names(config)[0]):
        assert invoke("--config", config) == (0, "did reload\n", "")
    with answering(lambda line: Answer(1, ["one", "\x1b[2Jtwo"]), control_names(config)[0]):
        assert invoke("--config", config) == (1, "", "netsvc: one\nnetsvc: \\x1b[2Jtwo\n")
    status, out, err = invoke("--config", config)
    assert (status, out) == (1, "")
    assert re.match(rf"netsvc: .*--config {config}.*no such file", err)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config", "n.toml", "--pid", "1"], "--config and --pid"),
        (["--pid", "0"], "0 is not in the range"),
        (["--pid", "4194304"], "4194304 is not in the range"),
        (["--pid", "x"], "is not a valid integer"),
    ],
)
def test_what_names_no_process_is_a_mistake_of_the_command(words: Sequence[str], says: str) -> None:
    status, _, err = invoke(*words)
    assert status == 2
    assert says in err


def test_a_mistake_of_several_lines_is_several_lines() -> None:
    @click.command()
    @which_process(acts=False)
    def command(target: CommandTarget) -> None:
        """Do something."""
        raise ClientError("one\ntwo")

    result = CliRunner().invoke(command, ["--config", "n.toml"])
    assert (result.exit_code, result.stderr) == (1, "netsvc: one\nnetsvc: two\n")


def test_help_says_which_process_is_meant() -> None:
    _, out, _ = invoke("--help")
    assert re.search(r"[Ww]ithout\s+--config\s+and\s+--pid", out)
