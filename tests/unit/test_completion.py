"""A shell completes commands, options, services and files; nothing of Twisted is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from netsvc.cli.command import SUBCOMMANDS, main
from netsvc.cli.completion import option_names, services
from netsvc.cli.run import RUN_OPTIONS
from netsvc.config.arguments import OPTIONS, SHORTHANDS
from netsvc.config.discovery import discover
from netsvc.config.settings import SETTINGS
from netsvc.options import declared_settings
from tests.builders.processes import ROOT


def completed(*words: str) -> list[str]:
    """Return what the last of these words is completed to; `<file>` stands for files."""
    complete = ShellComplete(main, {}, "netsvc", "_NETSVC_COMPLETE")
    items = complete.get_completions(list(words[:-1]), words[-1])
    return ["<file>" if item.type == "file" else item.value for item in items]


def test_commands() -> None:
    assert completed("") == list(SUBCOMMANDS)
    assert completed("re") == ["reload"]
    assert "--version" in completed("--")
    assert "--json" in completed("status", "--")


def test_options_are_all_those_of_the_arguments() -> None:
    run_only = {name.removeprefix("--").partition(" ")[0] for name, _ in RUN_OPTIONS}
    services = set(discover().services)
    assert set(option_names()) == {*OPTIONS, *SETTINGS, *SHORTHANDS, *run_only, *services}
    assert completed("run", "--adm") == ["--admin", "--admin-token", "--admin-ca"]
    assert completed("run", "--tcp", "9001", "--dr") == ["--drain"]


@pytest.mark.parametrize("name", ["echo", "reply", "chat", "files"])
def test_options_and_protocols_of_a_service(name: str) -> None:
    service = discover().load(name)
    wanted = {*service.protocols, *(setting.name for setting in declared_settings(service.options)), "limit", "drain"}
    assert set(completed("run", f"--{name}-")) == {f"--{name}-{each}" for each in wanted}


def test_values_are_files_and_the_first_word_of_check_a_service() -> None:
    assert completed("run", "--config", "net") == ["<file>"]
    assert completed("run", "") == ["<file>"]
    assert completed("check", "ec") == ["<file>", "echo"]
    assert completed("check", "--tcp", "1", "ec") == ["<file>"]


def test_services_of_files_that_are_broken_or_large_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "a.py").write_text('a = ServicePlugin("lights", "lights:service", "x")\nb = ServicePlugin(1 / 0, x)\n')
    (plugins / "b.py").write_text("def (")
    (plugins / "c.py").write_text('c = ServicePlugin("large", "l:s", "x")' + "\n" * 300_000)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = services()
    assert found["lights"] == "lights:service"
    assert "large" not in found
    assert completed("run", "--lights-") == ["--lights-limit", "--lights-drain"]


@pytest.mark.parametrize("variable", ["bash_source", "zsh_source", "fish_source"])
def test_the_documented_commands_write_what_a_shell_reads(variable: str) -> None:
    text = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
    assert f"_NETSVC_COMPLETE={variable} netsvc" in text
    result = CliRunner().invoke(main, env={"_NETSVC_COMPLETE": variable}, prog_name="netsvc")
    assert result.exit_code == 0
    assert "_NETSVC_COMPLETE=" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("words", ["netsvc ", "netsvc run --", "netsvc run --chat-", "netsvc check "])
def test_twisted_is_not_imported(words: str) -> None:
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*(each for each in sys.modules if 'twisted.' in each), file=sys.stderr))\n"
        "from netsvc.__main__ import main\nmain()"
    )
    environment = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_NETSVC_COMPLETE": "bash_complete",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stderr.split() == []
    assert "plain," in done.stdout
