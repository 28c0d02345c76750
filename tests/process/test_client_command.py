from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from netsvc import __version__
from netsvc.cli.command import SUBCOMMANDS, main
from netsvc.cli.errors import ClientError, LeaveError, OutputClosedError, conclude
from tests.builders.pems import Pem


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read no netsvc.toml: a reader of the README has written one into the checkout before running the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_alone_it_shows_help_with_three_examples(words: list[str]) -> None:
    result = CliRunner().invoke(main, words, prog_name="netsvc")
    assert result.exit_code == 0
    assert sum(line.startswith("    netsvc ") for line in result.stdout.splitlines()) == 3
    assert all(f"  {name} " in result.stdout for name in SUBCOMMANDS)


#: Those whose help is not the server's.
EXPLAINED = [name for name in SUBCOMMANDS if name not in ("run", "check")]


@pytest.mark.parametrize("name", ["talk", "get", "chat", "status", "reload"])
def test_each_command_explains_itself_with_examples(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"], prog_name="netsvc")
    assert result.exit_code == 0
    assert sum(f"netsvc {name} " in line for line in result.stdout.splitlines()) >= 3
    assert "\\b" not in result.stdout


@pytest.mark.parametrize("name", EXPLAINED)
def test_the_list_says_what_the_command_says(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").splitlines()[0] == SUBCOMMANDS[name][1]


def test_tells_its_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout == f"netsvc {__version__}\n"


@pytest.mark.parametrize(("word", "says"), [("tlak", "talk"), ("\x1bzzz", "\\x1bzzz")])
def test_an_unknown_command_names_the_nearest(word: str, says: str) -> None:
    result = CliRunner().invoke(main, [word])
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_shell_can_complete_the_commands() -> None:
    assert main.list_commands(click.Context(main)) == list(SUBCOMMANDS)


def test_no_command_is_no_command() -> None:
    assert main.get_command(click.Context(main), "none") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], {"twisted", "asyncio", "prompt_toolkit", "rich", "ssl"}),
        (["talk", "--help"], {"twisted", "prompt_toolkit", "rich"}),
        (["get", "--help"], {"twisted", "prompt_toolkit", "rich"}),
    ],
)
def test_help_imports_no_more_than_it_needs(words: list[str], unwanted: set[str]) -> None:
    program = "import sys; from netsvc.cli.command import main; main(sys.argv[1:], standalone_mode=False); "
    program += "print('|', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert not unwanted & set(done.stdout.partition("|")[2].split())


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "netsvc"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: netsvc [OPTIONS]")


class TestConclude:
    async def fail(self, error: BaseException) -> int:
        raise error

    def status(self, client: Coroutine[Any, Any, int]) -> int:
        with pytest.raises(click.exceptions.Exit) as caught:
            conclude(client)
        return caught.value.exit_code

    def test_an_exit_status_is_passed_on(self) -> None:
        async def client() -> int:
            await asyncio.sleep(0)
            return 3

        assert self.status(client()) == 3

    @pytest.mark.parametrize(
        ("error", "status", "says"),
        [
            (ClientError("what, where, cure"), 1, "netsvc: what, where, cure\n"),
            (LeaveError(), 130, ""),
            (KeyboardInterrupt(), 130, ""),
            (OutputClosedError(), 141, ""),
        ],
    )
    def test_each_end_has_its_status(
        self, error: BaseException, status: int, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.status(self.fail(error)) == status
        assert capsys.readouterr() == ("", says)

    def test_runs_outside_the_main_thread_where_no_signal_comes(self) -> None:
        statuses = []
        thread = threading.Thread(target=lambda: statuses.append(self.status(self.seven())))
        thread.start()
        thread.join()
        assert statuses == [7]

    async def seven(self) -> int:
        return 7

    def test_a_mistake_of_ours_is_not_hidden(self) -> None:
        with pytest.raises(ZeroDivisionError):
            conclude(self.fail(ZeroDivisionError()))


def test_check_warns_of_certificates_that_are_not_valid(tmp_path: Path) -> None:
    old, new = Pem("a.example", days=(-30, -1)), Pem("b.example")
    words: list[str] = []
    for name, pem in (("old", old), ("new", new)):
        cert, key = pem.write(tmp_path, name)
        words += ["--tcp", f"tls:0:cert={cert}:key={key}"]
    result = CliRunner().invoke(main, ["check", *words])
    assert result.exit_code == 0
    assert result.stderr == (
        f"netsvc: warning: {tmp_path}/old.crt: the certificate expired on {old.expires:%Y-%m-%d %H:%M} UTC; "
        "clients will refuse it\n"
    )
