"""What is wrong with another twistd plugin is a line, whatever it is."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from twisted.application.service import Service
from twisted.python import usage

from netsvc.embedded.service import examine_twistd
from netsvc.errors import MistakeError
from netsvc.plan import TwistdUse
from tests.acme import DECLARATION, Plugin, installed
from tests.conftest import LoggedErrors
from tests.site import Place, new_place

place = pytest.fixture(new_place)
plugin = pytest.fixture(installed)


def mistakes(*words: str, place: str = "") -> tuple[str, ...]:
    """Return what is wrong with a use."""
    found, notes = examine_twistd(TwistdUse(words, place=place))
    assert notes == []
    return tuple(found)


def mistake(*words: str) -> str:
    [line] = mistakes(*words)
    return line


# To find it.


def test_a_plugin_nobody_has_heard_of_is_a_line_with_the_nearest_names() -> None:
    assert mistake("wbe", "--path", "x") == "--with wbe: no twistd plugin is called wbe; did you mean web?"
    assert mistake("zzzz") == "--with zzzz: no twistd plugin is called zzzz; twistd --help lists them"
    assert mistake("a\x1bb").startswith("--with a\\x1bb: no twistd plugin is called a\\x1bb; ")
    assert mistakes("") == ("--with : no twistd plugin is called that; twistd --help lists them",)


def test_where_it_was_written_begins_the_line() -> None:
    assert mistakes("zzzz", place="netsvc.toml:7: twistd: ") == (
        "netsvc.toml:7: twistd: no twistd plugin is called zzzz; twistd --help lists them",
    )


def test_netsvc_and_its_services_are_run_without_this() -> None:
    assert mistake("netsvc") == "--with netsvc: that is what runs already; write its options without --with"
    assert mistake("netsvc-chat", "9002") == (
        "--with netsvc-chat: that is a service of netsvc; write --chat ADDRESS instead"
    )
    # Nor are they suggested.
    assert "netsvc" not in mistake("netsv")


def test_a_plugin_file_that_does_not_load_harms_nobody_and_is_named_where_it_may_matter(
    place: Place, logged_errors: LoggedErrors
) -> None:
    place.plugin_file("acme_plugins", "1 / 0")
    assert mistakes("portforward", "--port", "tcp:0") == ()
    first, second = mistakes("acme")
    assert first == "--with acme: no twistd plugin is called acme; twistd --help lists them"
    assert "acme_plugins.py does not load: ZeroDivisionError" in second
    # The events are there, but without a text: no log shows them.
    logged_errors.flush(ZeroDivisionError)


def test_a_plugin_declared_twice_is_a_line(place: Place, plugin: Plugin) -> None:
    place.plugin_file("bcme_plugins", DECLARATION.replace("acme_tap", "other_tap"))
    assert mistake("acme") == (
        "--with acme: acme is declared twice: by acme_tap and by other_tap; uninstall one of them"
    )


def test_the_same_declaration_found_twice_is_one(place: Place, plugin: Plugin) -> None:
    place.plugin_file("bcme_plugins", DECLARATION)
    assert mistakes("acme") == ()


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
    assert mistakes("acme") == ()


def test_a_plugin_whose_module_does_not_import_is_a_line(place: Place) -> None:
    place.plugin_file("acme_plugins", DECLARATION)
    place.write("acme_tap.py", "import acme_needs")
    line = mistake("acme")
    assert line.startswith("--with acme: acme does not load: ModuleNotFoundError: No module named 'acme_needs' at ")
    assert line.endswith("acme_tap.py:1; mend it, or install what it needs")


def test_one_without_a_service_maker_is_a_line(place: Place) -> None:
    place.plugin_file("acme_plugins", DECLARATION)
    place.write("acme_tap.py", "from twisted.python.usage import Options")
    assert mistake("acme").startswith("--with acme: acme cannot be built: AttributeError: ")


# To read its options.


def test_wrong_options_are_a_line() -> None:
    line = mistake("socks", "--no-such-option")
    assert line == "--with socks: option --no-such-option not recognized; twistd socks --help lists its options"


@pytest.mark.parametrize("words", [["--help"], ["--port", "1080", "--version"]])
def test_options_that_show_a_page_are_a_line_that_says_where_to_see_it(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    command = " ".join(["twistd", "socks", *words])
    assert mistake("socks", *words) == (
        f"--with socks: these options of socks show something, and start nothing; run {command} to see it"
    )
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
    assert line.startswith("--with acme: acme cannot read its options: AttributeError: no decode at ")
    assert mistakes("acme", "--several") == (
        "--with acme: first; twistd acme --help lists its options",
        "--with acme: second; twistd acme --help lists its options",
    )
    assert mistake("acme", "--silent") == "--with acme: wrong options; twistd acme --help lists its options"
    assert capsys.readouterr() == ("", "")
    assert mistakes("acme") == ()
    assert capsys.readouterr() == ("a page\n", "Traceback\n")


def test_the_options_that_fail_in_todays_words_are_a_line() -> None:
    assert mistake("words", "--group", "x").startswith(
        "--with words: words cannot read its options: AttributeError: 'str' object has no attribute 'decode' at "
    )


# To build it.


def test_a_plugin_that_cannot_make_its_service_is_a_line(plugin: Plugin) -> None:
    def broken(options: Any) -> Any:
        raise ZeroDivisionError("division")

    plugin.service = broken
    assert mistake("acme").startswith("--with acme: acme cannot be built: ZeroDivisionError: division at ")


def test_an_endpoint_string_that_is_wrong_is_a_line() -> None:
    assert mistake("portforward", "--port", "tpc:8080").startswith(
        "--with portforward: portforward cannot be built: ValueError: Unknown endpoint type: 'tpc' at "
    )


def test_a_plugin_that_makes_no_service_is_a_line(plugin: Plugin) -> None:
    plugin.service = lambda options: None
    assert mistake("acme") == "--with acme: acme makes a NoneType, which is no service; mend the plugin"


def test_a_service_that_will_not_join_is_a_line(plugin: Plugin) -> None:
    class Alone(Service):
        """Wants to be alone."""

        def setServiceParent(self, parent: Any) -> None:
            raise MistakeError(["one thing", "another"])

    plugin.service = Alone()
    assert mistakes("acme") == ("--with acme: one thing", "--with acme: another")
