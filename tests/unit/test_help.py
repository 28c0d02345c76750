"""The help fits two screens, and each option is on exactly one of its pages."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner
from twisted.protocols.basic import LineReceiver
from twisted.python import usage

from netsvc import tap
from netsvc.base.errors import StartError, UserError
from netsvc.cli.run import check, run
from netsvc.config.arguments import OF_MANY, OPTIONS, SHORTHANDS
from netsvc.config.discovery import Catalogue, FoundService, discover
from netsvc.config.help import help_page, help_topic, topics
from netsvc.config.pages import list_page
from netsvc.config.settings import SETTINGS
from netsvc.options import declared_settings, seconds
from netsvc.plan.limits import DEFAULTS, LIMITS
from netsvc.service import Service
from tests.builders.arguments import Loaded

CATALOGUE = discover()
OWN = ["echo", "reply", "chat", "files"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def entries(page: str) -> list[str]:
    """List the options that a page describes."""
    return re.findall(r"^  --([\w-]+)", page, re.M)


def options_of(name: str, prefix: str) -> set[str]:
    service = CATALOGUE.load(name)
    return {f"{prefix}{each}" for each in (*service.protocols, *(s.name for s in declared_settings(service.options)))}


@pytest.mark.parametrize("alone", [None, *OWN])
def test_the_main_page_fits_two_screens_and_that_of_a_service_three(alone: str | None) -> None:
    lines = help_page(CATALOGUE, alone=alone).splitlines()
    assert len(lines) <= (50 if alone is None else 75)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("topic", topics(CATALOGUE))
def test_a_page_is_as_wide_as_the_screen_at_most(topic: str) -> None:
    lines = help_page(CATALOGUE, topic).splitlines()
    assert max(map(len, lines)) <= 80
    assert topic == "all" or len(lines) <= (75 if topic in OWN else 50)


def test_each_option_is_on_one_page() -> None:
    counts = Counter(name for topic in ["", *topics(CATALOGUE)[:-1]] for name in entries(help_page(CATALOGUE, topic)))
    expected = {*OPTIONS, *SETTINGS, *SHORTHANDS}
    for name in OWN:
        expected |= {name, *options_of(name, f"{name}-"), f"{name}-limit", f"{name}-drain"}
    assert counts == Counter(expected)


def test_all_is_all_pages_together() -> None:
    pages = [help_page(CATALOGUE, topic) for topic in ["", *topics(CATALOGUE)[:-1]]]
    assert help_page(CATALOGUE, "all") == "\n".join(pages)


@pytest.mark.parametrize("name", OWN)
def test_the_command_of_one_service_has_its_options_without_prefix(name: str) -> None:
    pages = [help_page(CATALOGUE, topic, name) for topic in ["", *topics(CATALOGUE, name)[:-1]]]
    counts = Counter(option for page in pages for option in entries(page))
    assert counts == Counter({*OPTIONS, *SETTINGS, *options_of(name, "")} - set(OF_MANY))
    assert f"netsvc-{name} " in pages[0].splitlines()[0]


def test_the_page_of_limits_has_every_limit_and_default() -> None:
    page = help_page(CATALOGUE, "limits")
    assert re.findall(r"^  ([a-z]+) ", page, re.M) == list(LIMITS)
    for name, value in DEFAULTS.items():
        assert re.search(rf"^  {name} [^(]*\(default:\s+{value:g}\)", page, re.M)


def test_the_page_of_a_service_has_its_default_limits() -> None:
    assert "idle=86400" in help_page(CATALOGUE, "chat")


def test_an_unknown_topic_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean limits\?"):
        help_page(CATALOGUE, "limit")
    with pytest.raises(UserError, match="addresses, limits, logging, admin, all"):
        help_page(CATALOGUE, "\x1b")
    with pytest.raises(UserError, match="quux"):
        help_page(CATALOGUE, "quux", "echo")


@pytest.mark.parametrize(
    ("arguments", "topic"),
    [
        (["--help"], ""),
        (["-h"], ""),
        (["--tcp", "1", "--help", "chat"], "chat"),
        (["--help", "--tcp"], ""),
        (["--tcp", "1"], None),
    ],
)
def test_the_topic_follows_help(arguments: list[str], topic: str | None) -> None:
    assert help_topic(arguments) == topic


def test_twistd_shows_the_page_of_a_topic(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tap.Options()) == help_page(discover())
    with pytest.raises(SystemExit) as raised:
        tap.Options().parseOptions(["--help", "limits"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == help_page(CATALOGUE, "limits")
    with pytest.raises(StartError, match="quux"):
        tap.Options().parseOptions(["--help", "quux"])


@pytest.mark.parametrize("command", [check, run])
def test_check_and_run_have_the_same_pages_under_their_name(command: Any) -> None:
    page = CliRunner().invoke(command, ["--help"]).output
    same = help_page(CATALOGUE, command=f"netsvc {command.name}").splitlines()
    more = [line for line in page.splitlines() if line not in same]
    assert [line for line in page.splitlines() if line not in more] == same
    assert ("--reload-on-change" in "".join(more)) == bool(more) == (command is run)
    assert f"  netsvc {command.name} --" in page
    assert "twistd -n" not in page
    assert CliRunner().invoke(command, ["--help", "chat"]).output == help_page(CATALOGUE, "chat")
    assert isinstance(CliRunner().invoke(command, ["--help", "quux"]).exception, StartError)


def with_service(name: str, result: object) -> Catalogue:
    catalogue = Catalogue()
    description = getattr(result, "description", "")
    catalogue.add(FoundService(name, "/x", "x:y", Loaded(result), description))
    return catalogue


def test_a_service_that_does_not_load_is_reported_on_its_page() -> None:
    page = help_page(with_service("broken", ImportError("No module named nothing")), "broken")
    assert "ImportError: No module named nothing" in page


def test_a_long_option_does_not_break_the_columns() -> None:
    class Long(usage.Options):
        optParameters = [["a-very-long-name-for-an-option", None, 7, "What it is for"], ["b", None, None, "Other"]]

    page = help_page(with_service("long", Service("long", "Test", options=Long, streams={"tcp": LineReceiver})), "long")
    lines = page.splitlines()
    index = lines.index("  --long-a-very-long-name-for-an-option VALUE")
    [other] = [line for line in lines if line.startswith("  --long-b VALUE ")]
    assert lines[index + 1].index("What it is for (default: 7)") == other.index("Other")


def test_values_are_named_for_what_they_are_and_no_description_reaches_the_terminal_unescaped() -> None:
    class Options(usage.Options):
        optParameters = [
            ["wait", None, 7.0, 'How "long" to wait\x1b[2J', seconds(0, 9)],
            ["other", None, None, "Something", str],
        ]

    service = Service("x", "An \x1b[31m x\u202e", options=Options, streams={"tcp": LineReceiver})
    catalogue = with_service("x", service)
    page = help_page(catalogue, "all")
    assert re.search(r'--x-wait SECONDS +How "long" to wait\\x1b\[2J \(default: 7\)', page)
    assert "--x-other VALUE " in page
    for text in (page, list_page(catalogue)):
        assert "An \\x1b[31m x\\x202e" in text
        assert "\x1b" not in text
