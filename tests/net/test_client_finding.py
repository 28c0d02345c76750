"""The process that is meant is found, and never another one."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netsvc.cli import processes
from netsvc.cli.errors import ClientError
from netsvc.cli.processes import MOST_LISTED, Machine, find, find_successor
from netsvc.control.location import read_pid
from netsvc.plan.answer import Answer
from tests.builders.facts import lacks
from tests.builders.looks import CHAT, ECHO, answering, control_names, pid_name, process, status, unused_pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")

ME = os.geteuid()
FIRST = unused_pids(10)
NONE = "no netsvc"
LINE = "00000000fb41f28e: 00000002 00000000 00010000 0001 01 28229226"


LISTED = f"@{pid_name(FIRST)[1:]}"


class Place(Machine):
    """A machine whose processes answer here, and which has what a test says in /proc."""

    def __init__(self, proc: Path, user: int = ME) -> None:
        super().__init__(proc, user)
        self.proc = proc
        self.users: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self._running = ExitStack()
        (proc / "net").mkdir(parents=True)
        (proc / "net" / "unix").write_text("Num       RefCount Protocol Flags    Type St Inode Path\n")

    def list(self, name: str, line: str = LINE) -> None:
        with (self.proc / "net" / "unix").open("a") as table:
            table.write(f"{line} {name.replace(chr(0), '@')}\n")

    def run(self, number: int, answer: Answer, words: bytes = b"", parent: int = 1, cwd: str = "") -> None:
        """Start a process; those whose number is ours can be asked, and without a `cwd` it is not known."""
        self._running.enter_context(answering(lambda line: answer, pid_name(number)))
        self.list(pid_name(number))
        (self.proc / str(number)).mkdir()
        (self.proc / str(number) / "cmdline").write_bytes(words)
        (self.proc / str(number) / "stat").write_text(f"{number} (a ) 7 (b) S {parent} 1 1")
        if cwd:
            (self.proc / str(number) / "cwd").symlink_to(os.path.abspath(cwd))

    def contact(self, name: str, deadline: float) -> Any:
        number = read_pid(name.replace("\0", "@"))
        known = super().contact(name, deadline)
        if number in self.pids and not self.pids[number]:
            return None
        return known and replace(known, pid=self.pids.get(number, number), user=self.users.get(number, ME))

    def close(self) -> None:
        self._running.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Be in an empty directory of an empty machine."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = Place(tmp_path / "proc")
    yield made
    made.close()


ANSWER = status(process())
DRAINING = status(process(state="draining"), process(state="draining"))


def says(place: Place, **which: Any) -> list[str]:
    with pytest.raises(ClientError) as failed:
        find(machine=place, **which)
    return str(failed.value).splitlines()


def test_with_a_file_it_is_the_process_of_that_file(place: Place) -> None:
    place.run(FIRST, ANSWER)
    assert find(config="n.toml", machine=place).names[-1:] == control_names("n.toml")


def test_without_anything_it_is_the_process_of_the_file_here(place: Place) -> None:
    place.run(FIRST, ANSWER)
    place.list(control_names("netsvc.toml")[0])
    found = find(machine=place)
    assert found.names[-1:] == control_names("netsvc.toml")


def test_without_a_file_here_it_is_the_only_process(place: Place) -> None:
    place.run(FIRST, ANSWER)
    found = find(machine=place)
    assert (found.pid, found.names) == (FIRST, [pid_name(FIRST)])


def test_of_several_it_is_the_one_of_this_directory(place: Place) -> None:
    Path("../there").mkdir()
    place.run(FIRST, ANSWER, cwd="../there")
    place.run(FIRST + 1, ANSWER, cwd=".")
    place.run(FIRST + 2, ANSWER)
    for acts in (False, True):
        assert find(machine=place, acts=acts).pid == FIRST + 1
    place.run(FIRST + 3, ANSWER, cwd=".")
    first, *listed = says(place, acts=True)
    assert first.startswith("2 netsvc processes")
    assert [line.split()[1] for line in listed] == [f"{FIRST + 1}:", f"{FIRST + 3}:"]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_command_that_acts_leaves_the_only_process_alone_if_it_runs_elsewhere(
    place: Place, is_known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("../the\x1b[2Jre").mkdir()
    place.run(FIRST, ANSWER, cwd="../the\x1b[2Jre" if is_known else "")
    assert find(machine=place).pid == FIRST
    # One that only asks says where it runs.
    [said] = capsys.readouterr().err.splitlines()
    assert str(FIRST) in said and ("the\\x1b[2Jre" in said) is is_known
    [line] = says(place, acts=True)
    assert lacks(line, f"process {FIRST} ", f"--pid {FIRST}") == []
    assert (f"{os.path.dirname(os.getcwd())}/the\\x1b[2Jre" in line) is is_known
    assert find(machine=place, acts=True, pid=FIRST).pid == FIRST
    place.list(control_names("netsvc.toml")[0])
    assert find(machine=place, acts=True).config == "netsvc.toml"


def test_a_command_that_acts_names_every_process_elsewhere(place: Place) -> None:
    for number in (FIRST, FIRST + 1):
        place.run(number, ANSWER)
    assert len(says(place, acts=True)) == 3


def test_nobody_is_told(place: Place) -> None:
    [line] = says(place)
    assert line.startswith(NONE)


def test_a_stray_file_here_does_not_hide_the_only_process(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    Path("netsvc.toml").touch()
    [line] = says(place)
    assert f"--config {os.getcwd()}/netsvc.toml" in line
    assert "--pid" not in line
    place.run(FIRST, ANSWER, b"/usr/bin/python3\0/v/bin/twistd\0-n\0netsvc\0--tcp\x001\0")
    found = find(machine=place)
    assert (found.pid, found.names) == (FIRST, [pid_name(FIRST)])
    said = capsys.readouterr().err
    assert lacks(said, "netsvc.toml", f"{FIRST}: ", "twistd -n netsvc --tcp 1") == []
    place.run(FIRST + 1, ANSWER)
    count, *listed = says(place)
    assert (count.startswith("2 netsvc processes"), len(listed)) == (True, 2)


def test_several_are_listed_with_what_they_run_and_serve(place: Place) -> None:
    place.run(FIRST, ANSWER, b"/v/bin/twistd\0netsvc\0\x1b[2J\0")
    place.run(FIRST + 1, Answer(1, ["no such command"]))
    # Only one that is ours can be asked in a test.
    place.pids[FIRST] = os.getpid()
    (place.proc / str(os.getpid())).mkdir()
    (place.proc / str(os.getpid()) / "cmdline").write_bytes(b"/v/bin/twistd\0netsvc\0\x1b[2J" + b"x" * 200)
    count, *listed = says(place)
    assert count.startswith("2 netsvc processes")
    assert "--pid" in count
    assert listed == [
        f"--pid {os.getpid()}: twistd netsvc \\x1b[2J{'x' * 102}… (98 more); "
        "chat line [::]:9002, echo tcp 127.0.0.1:9001",
        f"--pid {FIRST + 1}: ",
    ]


def test_many_places_and_many_processes_are_counted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_LISTED", 2)
    listeners = [replace(ECHO, place=f"127.0.0.1:{port}") for port in range(1, 6)]
    for number in range(4):
        place.run(FIRST + number, status(process(listeners=listeners)))
    place.pids[FIRST] = os.getpid()
    assert MOST_LISTED == 20
    first, ours, second, more = says(place)
    assert first.startswith("4 netsvc processes")
    assert ours.endswith("; echo tcp 127.0.0.1:1, echo tcp 127.0.0.1:2, echo tcp 127.0.0.1:3 and 2 more")
    assert second.startswith(f"--pid {FIRST + 1}: ")
    assert "2 more" in more


def test_one_that_drains_is_not_meant_where_another_one_stays(place: Place) -> None:
    place.run(FIRST, DRAINING)
    place.run(FIRST + 1, ANSWER)
    place.pids[FIRST] = os.getpid()
    assert find(machine=place).pid == FIRST + 1


def test_those_of_other_users_are_nobodys_business(place: Place) -> None:
    place.run(FIRST, ANSWER)
    place.users[FIRST] = 4242
    place.user = 1000
    assert says(place)[0].startswith(NONE)


def test_root_means_the_process_of_another_user_only_by_its_pid(place: Place) -> None:
    place.run(FIRST, ANSWER)
    place.users[FIRST] = 4242
    place.user = 0
    first, other = says(place)
    assert "--pid" in first
    assert other.startswith(f"--pid {FIRST} of user 4242: ")
    assert find(pid=FIRST, machine=place).pid == FIRST
    place.run(FIRST + 1, ANSWER)
    place.users[FIRST + 1] = 0
    assert find(machine=place).pid == FIRST + 1


def test_a_pid_is_that_process(place: Place) -> None:
    place.run(FIRST, ANSWER)
    place.run(FIRST + 1, ANSWER)
    assert find(pid=FIRST + 1, machine=place).names == [pid_name(FIRST + 1)]


def test_a_pid_may_be_one_that_has_another_number_in_its_container(place: Place) -> None:
    place.run(FIRST, ANSWER)
    place.pids[FIRST] = 77
    found = find(pid=77, machine=place)
    assert (found.pid, found.names) == (77, [pid_name(FIRST)])


def test_a_process_that_is_in_another_container_is_not_meant(place: Place) -> None:
    place.run(FIRST, ANSWER)
    place.pids[FIRST] = 0
    assert place.running() == []
    assert len(says(place, pid=FIRST)) == 1


def test_a_process_that_has_taken_the_name_of_another_is_not_meant(place: Place) -> None:
    place.run(FIRST, ANSWER)
    place.pids[FIRST] = 77
    assert len(says(place, pid=FIRST)) == 1


def test_a_pid_may_be_the_parent_of_the_process(place: Place) -> None:
    place.run(FIRST, ANSWER, parent=77)
    place.run(FIRST + 1, ANSWER, parent=78)
    assert find(pid=77, machine=place).pid == FIRST
    place.run(FIRST + 2, ANSWER, parent=77)
    assert says(place, pid=77)[0].startswith("2 netsvc processes")


def test_a_pid_of_something_else_is_told(place: Place) -> None:
    place.run(FIRST, ANSWER)
    (place.proc / str(FIRST) / "stat").write_text("nonsense")
    [line] = says(place, pid=99)
    assert re.match(r"process 99\b.*netsvc status", line)
    (place.proc / str(FIRST) / "stat").unlink()
    assert len(says(place, pid=99)) == 1


@pytest.mark.parametrize(
    "line",
    [
        f"{LINE} @netsvc-pid-x-1",
        f"{LINE} @netsvc-pid-0-1",
        f"{LINE} @netsvc-pid-{'1' * 20}-1",
        f"{LINE} @netsvc-pid-1-1 ",
        f"{LINE} netsvc-pid-1-1",
        f"{LINE} @netsvc-pid-1",
        LINE,
        "nonsense",
        f"{LINE.replace('00010000', '00000000')} {LISTED}",
        f"{LINE.replace(' 0001 ', ' 0002 ')} {LISTED}",
        f"{LINE} @{pid_name(FIRST + 7)[1:]}",
    ],
    ids=range(11),
)
def test_a_name_that_is_none_is_passed_over(place: Place, line: str) -> None:
    (place.proc / "net" / "unix").write_text(f"{line}\n\xff\n", encoding="latin-1")
    assert place.running() == []


def test_without_proc_nobody_is_found(place: Place, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "none")
    assert machine.running() == []
    assert machine.command(1) == "?"


def test_a_process_that_hears_nobody_is_passed_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PAUSE", 0)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
        listening.bind(pid_name(FIRST))
        listening.listen(0)
        other.connect(pid_name(FIRST))
        place.list(pid_name(FIRST))
        assert place.running() == []


def test_the_real_machine_is_seen() -> None:
    with answering(lambda line: ANSWER, pid_name(FIRST)):
        found = Machine().running()
        assert (pid_name(FIRST), os.getpid(), ME) in [(each.name, each.pid, each.user) for each in found]
        assert Machine().command(os.getpid()) != "?"
        assert Machine().parent(os.getpid()) == os.getppid()
        assert (Machine().directory(os.getpid()), Machine().is_here(os.getpid())) == (os.getcwd(), True)


def test_elsewhere_there_are_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ClientError, match=r"kill -HUP PID.*kill -TERM PID"):
        find()


def test_who_has_taken_over_is_known_by_where_it_listens(place: Place) -> None:
    place.run(FIRST, status(process(listeners=[ECHO])))
    place.pids[FIRST] = os.getpid()
    place.run(FIRST + 1, ANSWER)
    found = find_successor({ECHO.key}, place)
    assert found is not None
    assert found.names == [pid_name(FIRST)]
    assert find_successor({CHAT.key}, place) is None


def test_who_drains_has_not_taken_over(place: Place) -> None:
    place.run(FIRST, DRAINING)
    place.pids[FIRST] = os.getpid()
    assert find_successor({ECHO.key}, place) is None
