"""What `netsvc init` writes is a plan, as it stands and with every comment mark taken away."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from netsvc.base.errors import StartError
from netsvc.cli.command import SUBCOMMANDS, main
from netsvc.config.arguments import read_arguments, survey_arguments
from netsvc.config.discovery import discover
from netsvc.config.example import OWN_SERVICES, example
from netsvc.config.file import KEYS
from netsvc.config.schema import write_schema
from netsvc.options import declared_settings
from netsvc.plan.limits import DEFAULTS, LIMITS
from tests.builders.arguments import listens

INSTALLED = discover()
TEXT = example(INSTALLED)
#: A key after a comment mark without a space between; the rest is prose.
COMMENTED = re.compile(r"^#(?! |$)", re.M)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="netsvc")


def read(text: str) -> Any:
    Path("x.toml").write_text(text, "utf-8")
    return read_arguments(["--config", "x.toml"], INSTALLED)


def test_as_it_stands_it_serves_echo_and_chat_with_the_defaults() -> None:
    made = read(TEXT)
    assert listens(made) == [
        ("echo", "tcp", "stream", "9001"),
        ("echo", "udp", "datagram", "9001"),
        ("chat", "line", "stream", "9002"),
    ]
    assert (made.drain, made.workers, made.limits, made.twistd) == (4, 1, {}, ())
    assert all(not use.settings and not use.limits for use in made.uses.values())


def test_with_every_mark_taken_away_it_has_every_key() -> None:
    text = COMMENTED.sub("", TEXT)
    made = read(text)
    assert set(made.limits) == set(LIMITS)
    assert {name: made.limits[name] for name in DEFAULTS} == DEFAULTS
    table = tomllib.loads(text)
    assert set(table) == set(KEYS)
    for name in OWN_SERVICES:
        service = discover().load(name)
        settings = declared_settings(service.options)
        assert {*service.protocols, *(each.name for each in settings)} == set(table["services"][name]) - {
            "limits",
            "drain",
        }
        for setting in settings:
            # Or it is a sample, where there is no default.
            assert setting.default in (table["services"][name][setting.name], None, 0)
    assert made.uses["lobby"].service == "chat"
    assert made.twistd[0].arguments[0] == "web"


@pytest.mark.parametrize("place", range(len(COMMENTED.findall(TEXT))))
def test_with_any_one_mark_taken_away_it_is_read_to_its_place(place: int) -> None:
    start = [match.start() for match in COMMENTED.finditer(TEXT)][place]
    text = TEXT[:start] + TEXT[start + 1 :]
    line = text.count("\n", 0, start) + 1
    Path("x.toml").write_text(text, "utf-8")
    # A key of a section that is still a comment belongs to the one before, which has none of that name, or has one
    # already; and a section alone lacks what it must have.
    for mistake in survey_arguments(["--config", "x.toml"], discover())[1]:
        assert mistake.startswith(f"x.toml:{line}: ")


def test_init_writes_it_and_check_passes_in_a_fresh_directory(here: Path) -> None:
    result = invoke("init")
    assert result.exit_code == 0
    assert re.fullmatch(r".*: netsvc check --config netsvc\.toml\n", result.output)
    assert Path("netsvc.toml").read_text("utf-8") == TEXT
    checked = invoke("check", "--config", "netsvc.toml")
    assert checked.exit_code == 0
    assert f"  config   {here}/netsvc.toml" in checked.output


def test_init_never_overwrites_a_file() -> None:
    for name in ("netsvc.toml", "other"):
        Path(name).write_text("mine")
        result = invoke("init", name)
        assert isinstance(result.exception, StartError)
        assert re.fullmatch(f"netsvc: {name}: .*; .*", str(result.exception))
        assert Path(name).read_text() == "mine"


def test_init_says_in_a_line_why_it_cannot_write() -> None:
    assert str(invoke("init", "no/such/x").exception).startswith("netsvc: no/such/x: No such file or directory; name")
    assert str(invoke("init", "\x1b\0").exception).startswith("netsvc: \\x1b\\x00: embedded null byte; name another")


def test_init_may_write_to_the_terminal() -> None:
    assert invoke("init", "-").output == TEXT
    assert list(Path().iterdir()) == []


def test_schema_writes_that_of_the_services_installed() -> None:
    result = invoke("schema")
    assert (result.exit_code, result.output) == (0, write_schema(discover()))


@pytest.mark.parametrize("name", ["init", "schema"])
def test_the_list_says_what_the_command_says(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert (command.name, command.get_short_help_str(100)[:25]) == (name, SUBCOMMANDS[name][1][:25])


def test_lines_are_no_longer_than_a_screen() -> None:
    assert max(map(len, TEXT.splitlines())) <= 120
