"""The commands ask the process that is meant, take no other for it, and show what it answers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from netsvc.client import asking
from netsvc.client.asking import ClosedError, Process, ask, of_config, of_pid, show, which_process
from netsvc.client.failure import ClientError
from netsvc.client.reload import command as reload
from netsvc.host.control import LONGEST_ANSWER, Answer, control_names, pid_name
from tests.looks import answering, unused_pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


NOBODY = unused_pids(1)


def reloaded(line: str) -> Answer:
    return Answer(0, [f"did {line}"])


def test_a_process_is_asked_by_its_file(tmp_path: Path) -> None:
    config = str(tmp_path / "n.toml")
    with answering(reloaded, control_names(config)[0]):
        assert ask(of_config(config), "reload") == Answer(0, ["did reload"])


def test_a_process_is_asked_by_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with answering(reloaded, control_names(f"{tmp_path}/real/n.toml")[0]):
        assert ask(of_config(f"{tmp_path}/link/n.toml"), "reload").status == 0


def test_a_process_is_asked_by_its_pid() -> None:
    with answering(reloaded) as process:
        assert ask(process, "status {}") == Answer(0, ["did status {}"])
    assert of_pid(42).names == [pid_name(42)]


def test_nobody_is_told_with_the_cure(tmp_path: Path) -> None:
    config = tmp_path / "n.toml"
    with pytest.raises(ClientError, match=f"no process runs with --config {config}, and there is no such file; name"):
        ask(of_config(str(config)), "reload")
    config.touch()
    with pytest.raises(ClientError, match=f"no process runs with --config {config}; name the file that it was started"):
        ask(of_config(str(config)), "reload")
    with pytest.raises(ClientError, match=f"process {NOBODY} is no netsvc that answers; `netsvc status` without --pid"):
        ask(of_pid(NOBODY), "reload")


@pytest.mark.parametrize("reply", [b"", b"nonsense\n", b'{"out": "part', b"x" * (LONGEST_ANSWER + 1)])
def test_an_answer_that_is_none_is_an_error(reply: bytes) -> None:
    with (
        answering(lambda line: reply) as process,
        pytest.raises(ClosedError, match=r"^process \d+ closed the connection: it answers its own user, and root"),
    ):
        ask(process, "reload")


def test_a_process_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(pid_name(NOBODY))
        listening.listen()
        with pytest.raises(ClientError, match="does not answer; its log may say why"):
            ask(of_pid(os.getpid(), pid_name(NOBODY)), "reload", 0.01)


@pytest.mark.parametrize("room", [True, False])
def test_a_process_that_hears_nobody_is_tried_so_often(room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TRIES", 2)
    monkeypatch.setattr(asking, "PAUSE", 0)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(pid_name(NOBODY))
        listening.listen(0)
        other.connect(pid_name(NOBODY))
        if room:
            listening.accept()[0].close()
        says = "does not answer" if room else "has no time; try again"
        with pytest.raises(ClientError, match=says):
            ask(of_pid(os.getpid(), pid_name(NOBODY)), "reload", 0.01)


def test_what_else_goes_wrong_is_one_line(tmp_path: Path) -> None:
    too_long = Process([f"\0{'x' * 200}"], "it", "it is not there")
    with pytest.raises(ClientError, match="it cannot be asked: AF_UNIX path too long"):
        ask(too_long, "reload")


class Other:
    """Somebody else answers, and somebody asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: tuple[int, int], asks: int) -> None:
        monkeypatch.setattr(asking, "peer_process", lambda connection: answers)
        monkeypatch.setattr(os, "geteuid", lambda: asks)


@pytest.mark.parametrize("user", [0, 4242])
def test_a_name_that_another_user_has_taken_is_told(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(reloaded) as process:
        Other(monkeypatch, (process.pid, user), 1000)
        says = f"the process that answers is that of user {user}; ask as that user, or as root"
        with pytest.raises(ClientError, match=says):
            ask(process, "reload")


def test_a_pid_whose_name_another_process_has_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(reloaded) as process:
        Other(monkeypatch, (17, 4242), 0)
        with pytest.raises(ClientError, match="does not answer: process 17 of user 4242 has taken its name"):
            ask(process, "reload")


def test_a_process_that_cannot_be_seen_from_here_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(reloaded) as process:
        Other(monkeypatch, (0, 1000), 1000)
        assert ask(process, "reload").status == 0


@pytest.mark.parametrize("owner", [4242, 1, None])
def test_root_may_ask_anybodys_process_and_is_told_if_it_is_not_the_files_owner(
    owner: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "n.toml"
    if owner is not None:
        config.touch()
        real = os.stat(config)
        monkeypatch.setattr(os, "stat", lambda path: os.stat_result((*real[:4], owner, *real[5:10])))
    with answering(reloaded, control_names(str(config))[0]):
        Other(monkeypatch, (17, 4242), 0)
        assert ask(of_config(str(config)), "reload").status == 0
    warning = "netsvc: warning: the process that answers is that of user 4242\n"
    assert capsys.readouterr().err == ("" if owner == 4242 else warning)


@pytest.mark.parametrize(
    ("answer", "out", "err"),
    [(Answer(0, ["a", "\x1b[2J"]), "a\n\\x1b[2J\n", ""), (Answer(3, ["a", "b"]), "", "netsvc: a\nnetsvc: b\n")],
)
def test_an_answer_is_shown_safely(answer: Answer, out: str, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        show(answer)
    assert ended.value.code == min(answer.status, 1)
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
    assert err.startswith(f"netsvc: no process runs with --config {config}, and there is no such file; name")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config", "n.toml", "--pid", "1"], "--config and --pid each name a process; give one of them"),
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
    @which_process
    def command(process: Process) -> None:
        """Do something."""
        raise ClientError("one\ntwo")

    result = CliRunner().invoke(command, ["--config", "n.toml"])
    assert (result.exit_code, result.stderr) == (1, "netsvc: one\nnetsvc: two\n")


def test_help_says_which_process_is_meant() -> None:
    _, out, _ = invoke("--help")
    assert "Without --config and --pid" in out
