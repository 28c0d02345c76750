"""What is wrong with another twistd plugin is a line, whatever it is."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from twisted.application.service import Service
from twisted.python import usage

from netsvc.base.errors import UserError
from netsvc.embedded.service import examine_twistd
from netsvc.plan.plan import TwistdUse
from tests.builders.acme import DECLARATION, Plugin, installed
from tests.builders.facts import lacks, states
from tests.builders.site import Place, new_place
from tests.conftest import LoggedErrors

place = pytest.fixture(new_place)
plugin = pytest.fixture(installed)


def errors(*words: str, place: str = "") -> tuple[str, ...]:
    """Return what is wrong with a use."""
    found, notes, _ = examine_twistd(TwistdUse(words, origin=place))
    assert notes == []
    return tuple(found)


def mistake(*words: str) -> str:
    [line] = errors(*words)
    return line


# To find it.


def test_a_plugin_nobody_has_heard_of_is_a_line_with_the_nearest_names() -> None:
    assert lacks(mistake("wbe", "--path", "x"), "--with wbe: ", "wbe", "web?") == []
    assert lacks(mistake("zzzz"), "--with zzzz: ", "zzzz", "twistd --help") == []
    assert "?" not in mistake("zzzz")
    assert lacks(mistake("a\x1bb"), "--with a\\x1bb: ", "a\\x1bb") == []
    assert lacks(mistake(""), "--with : ", "twistd --help") == []


def test_where_it_was_written_begins_the_line() -> None:
    [line] = errors("zzzz", place="netsvc.toml:7: twistd: ")
    assert line.startswith("netsvc.toml:7: twistd: ")
    assert line.removeprefix("netsvc.toml:7: twistd: ") == mistake("zzzz").removeprefix("--with zzzz: ")


def test_netsvc_and_its_services_are_run_without_this() -> None:
    assert mistake("netsvc").startswith("--with netsvc: ")
    line = mistake("netsvc-chat", "9002")
    assert line.startswith("--with netsvc-chat: ")
    assert " --chat ADDRESS" in line
    # Nor are they suggested.
    assert "netsvc" not in mistake("netsv")


def test_a_plugin_file_that_does_not_load_harms_nobody_and_is_named_where_it_may_matter(
    place: Place, logged_errors: LoggedErrors
) -> None:
    place.plugin_file("acme_plugins", "1 / 0")
    assert errors("portforward", "--port", "tcp:0") == ()
    first, second = errors("acme")
    assert lacks(first, "--with acme: ", "acme", "twistd --help") == []
    assert lacks(second, "acme_plugins.py", "ZeroDivisionError") == []
    # The events are there, but without a text: no log shows them.
    logged_errors.flush(ZeroDivisionError)


def test_a_plugin_declared_twice_is_a_line(place: Place, plugin: Plugin) -> None:
    place.plugin_file("bcme_plugins", DECLARATION.replace("acme_tap", "other_tap"))
    assert lacks(mistake("acme"), "--with acme: ", "acme_tap", "other_tap") == []


def test_the_same_declaration_found_twice_is_one(place: Place, plugin: Plugin) -> None:
    place.plugin_file("bcme_plugins", DECLARATION)
    assert errors("acme") == ()


def test_what_is_no_plugin_of_twistd_is_passed_over(place: Place, plugin: Plugin) -> None:
    place.plugin_file(
        "bcme_plugins",
        """
from twisted.application.service import IServiceMaker
from twisted.plugin import IPlugin
from zope.interface import implementer
@implementer(IServiceMaker, IPlugin)
class Nameless:
    pass
nameless = Nameless()
""",
    )
    assert errors("acme") == ()


def test_a_plugin_whose_module_does_not_import_is_a_line(place: Place) -> None:
    place.plugin_file("acme_plugins", DECLARATION)
    place.write("acme_tap.py", "import acme_needs")
    line = mistake("acme")
    assert states(line, "--with acme: ", "ModuleNotFoundError: No module named 'acme_needs'", "acme_tap.py:1")


def test_one_without_a_service_maker_is_a_line(place: Place) -> None:
    place.plugin_file("acme_plugins", DECLARATION)
    place.write("acme_tap.py", "from twisted.python.usage import Options")
    assert states(mistake("acme"), "--with acme: ", "AttributeError: ", "makeService")


# To read its options.


def test_wrong_options_are_a_line() -> None:
    assert states(mistake("socks", "--no-such-option"), "--with socks: ", "--no-such-option", "twistd socks --help")


@pytest.mark.parametrize("words", [["--help"], ["--port", "1080", "--version"]])
def test_options_that_show_a_page_are_a_line_that_says_where_to_see_it(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    command = " ".join(["twistd", "socks", *words])
    assert states(mistake("socks", *words), "--with socks: ", command)
    assert capfd.readouterr() == ("", "")


class Loud(usage.Options):
    """Prints, and then fails if it is told to."""

    optFlags = [["fail", "", "Fail"], ["several", "", "Fail in several lines"], ["silent", "", "Say nothing"]]

    def postOptions(self) -> None:
        print("a page")
        print("Traceback", file=sys.stderr)
        if self["fail"]:
            raise AttributeError("no decode\nin two lines")
        if self["several"]:
            raise usage.UsageError("first\n\n  second")
        if self["silent"]:
            raise usage.UsageError("")


def test_whatever_the_options_raise_is_a_line_and_nothing_is_printed(
    plugin: Plugin, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin.options = Loud
    line = mistake("acme", "--fail")
    assert states(line, "--with acme: ", "AttributeError: no decode at ", __file__)
    several = errors("acme", "--several")
    for line, reason in zip((*several, mistake("acme", "--silent")), ("first; ", "second; ", ""), strict=True):
        assert states(line, f"--with acme: {reason}", "twistd acme --help")
    assert capsys.readouterr() == ("", "")
    assert errors("acme") == ()
    assert capsys.readouterr() == ("a page\n", "Traceback\n")


def test_the_options_that_fail_in_todays_words_are_a_line() -> None:
    line = mistake("words", "--group", "x")
    assert states(line, "--with words: ", "AttributeError: 'str' object has no attribute 'decode'")


# To build it.


def test_a_plugin_that_cannot_make_its_service_is_a_line(plugin: Plugin) -> None:
    def broken(options: Any) -> Any:
        raise ZeroDivisionError("division")

    plugin.service = broken
    assert states(mistake("acme"), "--with acme: ", "ZeroDivisionError: division at ", __file__)


def test_an_endpoint_string_that_is_wrong_is_a_line() -> None:
    line = mistake("portforward", "--port", "tpc:8080")
    assert states(line, "--with portforward: ", "ValueError: Unknown endpoint type: 'tpc'")


def test_a_plugin_that_makes_no_service_is_a_line(plugin: Plugin) -> None:
    plugin.service = lambda options: None
    assert states(mistake("acme"), "--with acme: ", "NoneType")


def test_a_service_that_will_not_join_is_a_line(plugin: Plugin) -> None:
    class Alone(Service):
        """Wants to be alone."""

        def setServiceParent(self, parent: Any) -> None:
            raise UserError(["one thing", "another"])

    plugin.service = Alone()
    assert errors("acme") == ("--with acme: one thing", "--with acme: another")
