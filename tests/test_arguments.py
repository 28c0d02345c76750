"""Command line words become a plan, or a line for every mistake in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.python import usage

from netsvc.address import parse_address
from netsvc.arguments import EXAMPLES, load_use, read_arguments
from netsvc.discovery import Catalogue, Found, discover
from netsvc.errors import MistakeError, PluginError
from netsvc.interfaces import Options
from netsvc.plan import DEFAULT_DRAIN, Listener, Plan, ServiceUse
from netsvc.service import Service
from netsvc.settings import whole_number


class GateOptions(Options):
    optParameters = [
        ["size", None, 5, "How large", whole_number(0, 10)],
        ["text", None, None, "What to say"],
    ]
    optFlags = [["loud", None, "Say it loudly"]]

    def postOptions(self) -> None:
        if self["loud"] and self["text"] is None:
            raise usage.UsageError("--loud needs --text")


class Loaded:
    """What loads at once, or fails to."""

    def __init__(self, result: object) -> None:
        self._result = result

    def load(self) -> Any:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class Line(Protocol):
    pass


class Letter(DatagramProtocol):
    pass


#: For --serve.
THIS = "tests.test_arguments"


def catalogue() -> Catalogue:
    """Our own services, and some of others: sound, with a long name, broken, and claimed twice."""
    found = discover()
    gate = Service(
        "gate", "A gate", options=GateOptions, streams={"line": Line, "v2": Line}, datagrams={"letter": Letter}
    )
    bot = Service("gate-bot", "A robot at the gate", datagrams={"letter": Letter})
    found.add(Found("gate", "gate.py", "gate:service", Loaded(gate)))
    found.add(Found("gate-bot", "bot.py", "bot:service", Loaded(bot)))
    found.add(Found("broken", "broken.py", "broken:service", Loaded(ImportError("no module named x"))))
    found.add(Found("twice", "one.py", "one:service", Loaded(gate)))
    found.add(Found("twice", "two.py", "two:service", Loaded(gate)))
    return found


def plan(*words: str, alone: str | None = None) -> Plan:
    return read_arguments(words, catalogue(), alone)


def mistakes(*words: str, alone: str | None = None) -> tuple[str, ...]:
    with pytest.raises(MistakeError) as raised:
        plan(*words, alone=alone)
    return raised.value.mistakes


def mistake(*words: str, alone: str | None = None) -> str:
    [line] = mistakes(*words, alone=alone)
    return line


def listens(made: Plan) -> list[tuple[str, str, str, str]]:
    return [(each.use, each.protocol, each.address.kind, each.address.text) for each in made.listeners]


def test_a_plan_says_what_listens_where_with_which_options() -> None:
    made = plan("--gate", "9001", "--gate-size", "7", "--gate-loud", "--gate-text", "hi", "--drain", "2.5")
    assert made == Plan(
        {"gate": ServiceUse("gate", {"size": "7", "loud": True, "text": "hi"})},
        (Listener("gate", "line", parse_address("9001", "stream")),),
        2.5,
    )


def test_tcp_and_udp_are_short_for_those_of_echo() -> None:
    assert plan("--tcp", "9001", "--udp", "9001") == plan("--echo-tcp", "9001", "--echo-udp", "9001")
    assert listens(plan("--tcp", "9001", "--udp", "9001")) == [
        ("echo", "tcp", "stream", "9001"),
        ("echo", "udp", "datagram", "9001"),
    ]


def test_a_services_own_name_is_its_default_protocol() -> None:
    assert listens(plan("--gate", "1", "--gate-line", "2", "--gate-v2", "3", "--gate-letter", "4", "--echo", "5")) == [
        ("gate", "line", "stream", "1"),
        ("gate", "line", "stream", "2"),
        ("gate", "v2", "stream", "3"),
        ("gate", "letter", "datagram", "4"),
        ("echo", "tcp", "stream", "5"),
    ]
    assert listens(plan("--gate-bot", "1")) == [("gate-bot", "letter", "datagram", "1")]


def test_addresses_repeat_and_listeners_keep_their_order() -> None:
    made = plan("--udp", "1", "--tcp", "2", "--tcp", "unix:/run/x", "--tcp", "[::1]:3", "--udp", "udp6:4", "--tcp", "0")
    assert [each.address.text for each in made.listeners] == ["1", "2", "unix:/run/x", "[::1]:3", "udp6:4", "0"]
    assert list(made.uses) == ["echo"]


@pytest.mark.parametrize("words", [("--gate=9001", "--gate-size=7"), ("--gate-size=7", "--gate", "9001")])
def test_a_value_may_be_joined_and_options_may_come_in_any_order(words: Sequence[str]) -> None:
    made = plan(*words)
    assert made.uses["gate"].settings == {"size": "7"}
    assert listens(made) == [("gate", "line", "stream", "9001")]


@pytest.mark.parametrize("value", ["--x", "a=b", "=", "", "-", "a b", "--gate-loud"])
def test_a_joined_value_may_be_anything(value: str) -> None:
    assert plan("--gate", "0", f"--gate-text={value}").uses["gate"].settings == {"text": value}


@pytest.mark.parametrize("value", ["-x", "-", "", "a b", "a=b"])
def test_a_value_of_its_own_may_be_anything_but_an_option(value: str) -> None:
    assert plan("--gate", "0", "--gate-text", value).uses["gate"].settings == {"text": value}


def test_the_last_value_of_an_option_counts() -> None:
    assert plan("--gate", "0", "--gate-size", "1", "--gate-size", "2").uses["gate"].settings == {"size": "2"}


def test_a_flag_takes_no_value_and_leaves_the_next_word_alone() -> None:
    assert plan("--gate-loud", "--gate-text", "hi", "--gate", "0").uses["gate"].settings["loud"] is True
    assert mistake("--gate", "0", "--gate-text=x", "--gate-loud=yes") == "--gate-loud takes no value"
    assert mistake("--gate", "0", "--gate-text=x", "--gate-loud", "yes") == (
        "yes: what is that? Write --<service> ADDRESS, such as --tcp 9001"
    )


def test_the_longest_service_name_that_fits_is_meant() -> None:
    assert listens(plan("--gate-bot-letter", "1", "--gate-letter", "2")) == [
        ("gate-bot", "letter", "datagram", "1"),
        ("gate", "letter", "datagram", "2"),
    ]


def test_the_drain_is_in_seconds_within_bounds() -> None:
    assert plan("--tcp", "0").drain == DEFAULT_DRAIN
    assert plan("--tcp", "0", "--drain", "0").drain == 0
    assert plan("--tcp", "0", "--drain=86400").drain == 86400
    assert mistake("--tcp", "0", "--drain", "86401") == "--drain 86401: seconds from 0 to 86400, or with m, h, d (10m)"
    assert mistake("--tcp", "0", "--drain", "-1") == "--drain -1: seconds from 0 to 86400, or with m, h, d (10m)"
    assert mistake("--tcp", "0", "--drain", "soon") == "--drain soon: seconds from 0 to 86400, or with m, h, d (10m)"
    assert mistake("--tcp", "0", "--drain") == "--drain needs a value"


def test_every_mistake_is_found_at_once() -> None:
    assert mistakes(
        "--gate", "99999", "--gate-size", "11", "--gat", "1", "word", "--gate-bot-size", "1", "--drain", "x",
        "--reply-text", "hi", "--echo", "--tcp", "unix:",
    ) == (
        "--gate 99999: a port is a number from 0 to 65535; an address is a port, HOST:PORT, [IPv6]:PORT, "
        "or an endpoint (tcp:PORT, unix:PATH, tls:PORT:…, systemd:NAME)",
        "--gat: there is no such option, and no service of that name; did you mean --gate?",
        "word: what is that? Write --<service> ADDRESS, such as --tcp 9001",
        "--gate-bot-size: gate-bot has no protocol and no option of that name",
        "--drain x: seconds from 0 to 86400, or with m, h, d (10m)",
        "--echo needs an address, such as --echo 9001",
        "--tcp unix:: an address is a port, HOST:PORT, [IPv6]:PORT, "
        "or an endpoint (tcp:PORT, unix:PATH, tls:PORT:…, systemd:NAME)",
        "--reply-text is set, but reply listens nowhere: add --reply ADDRESS",
        "--gate-size 11: a whole number from 0 to 10",
    )  # fmt: skip


def test_the_same_mistake_made_twice_is_one_line() -> None:
    assert len(mistakes("--nonsense", "1", "--nonsense", "2", "--tcp", "0")) == 1


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--ehco", "; did you mean --echo?"),
        ("--tpc", "; did you mean --tcp?"),
        ("--chta-line", "; did you mean --chat?"),
        ("--file", "; did you mean --files?"),
        ("--drian", "; did you mean --drain?"),
        ("--serv", "; did you mean --serve?"),
        ("--worker", "; did you mean --workers?"),
        ("--quux", ""),
        ("--", ""),
        ("--=x", ""),
        ("--\x1b[2J", ""),
    ],
)
def test_an_unknown_option_is_explained_with_the_nearest(word: str, hint: str) -> None:
    line = mistake("--tcp", "0", word, "1") if word != "--=x" else mistake("--tcp", "0", word)
    shown = word.partition("=")[0].replace("\x1b", r"\x1b")
    assert line == f"{shown}: there is no such option, and no service of that name{hint}"


def test_an_unknown_option_of_a_known_service_is_explained_with_the_nearest() -> None:
    assert mistake("--gate", "0", "--gate-siz", "1") == (
        "--gate-siz: gate has no protocol and no option of that name; did you mean --gate-size?"
    )
    assert mistake("--gate-leter", "0").endswith("; did you mean --gate-letter?")
    assert mistake("--gate", "0", "--gate-help").startswith("--gate-help: gate has no protocol and no option")
    assert mistake("--echo-", "0").startswith("--echo-: there is no such option")


def test_a_missing_value_is_named() -> None:
    assert mistake("--tcp") == "--tcp needs an address, such as --tcp 9001"
    assert mistake("--tcp", "--udp", "0") == "--tcp needs an address, such as --tcp 9001"
    assert mistake("--gate", "0", "--gate-text") == "--gate-text needs a value"
    assert mistake("--gate", "0", "--gate-text", "--gate-size", "1") == "--gate-text needs a value"
    assert mistake("--tcp=").startswith("--tcp : an address is ")


@pytest.mark.parametrize("word", ["word", "-", "9001", ""])
def test_a_bare_word_is_no_option(word: str) -> None:
    assert mistake("--tcp", "0", word) == (
        f"{word or 'an empty word'}: what is that? Write --<service> ADDRESS, such as --tcp 9001"
    )


def test_options_of_a_service_that_listens_nowhere_are_named() -> None:
    assert mistakes("--gate-size", "1", "--gate-loud", "--tcp", "0") == (
        "--gate-size is set, but gate listens nowhere: add --gate ADDRESS",
        "--gate-loud is set, but gate listens nowhere: add --gate ADDRESS",
    )


def test_what_a_service_says_of_its_options_together_names_them_as_they_were_written() -> None:
    assert mistake("--gate", "0", "--gate-loud") == "--gate-loud needs --gate-text"
    assert mistake("0", "--loud", alone="gate") == "--loud needs --text"
    assert mistake("--reply", "0", "--reply-text", "☃", "--reply-encoding", "gbk") == (
        "--reply-encoding gbk cannot express --reply-text '☃': choose another of either"
    )


def test_nothing_to_run_is_a_mistake_with_examples() -> None:
    assert mistake() == (
        "nothing to run; for example: twistd -n netsvc --tcp 9001 --udp 9001  or  twistd -n netsvc --chat 9002  or  "
        "twistd -n netsvc --files 9003 --files-root ./public"
    )
    assert mistake(alone="echo") == "nothing to run; for example: twistd -n netsvc-echo 9001"
    assert mistake("--drain", "1").startswith("nothing to run; for example: ")


def test_a_file_of_the_usual_name_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--config" not in mistake()
    (tmp_path / "netsvc.toml").touch()
    assert mistake().endswith("; or, as it is here: --config netsvc.toml")


def test_the_certificates_of_addresses_that_are_in_use_are_not_read(tmp_path: Path) -> None:
    words = ["--tcp", f"tls:9001:cert={tmp_path}/none.pem"]
    assert "none.pem" in mistake(*words)
    address = parse_address(words[1], "stream")
    assert read_arguments(words, catalogue(), in_use=[address]).listeners[0].address == address


def test_the_examples_are_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "public").mkdir()
    for example in EXAMPLES:
        assert read_arguments(example.split(), discover()).listeners


@pytest.mark.parametrize(
    "words",
    [
        ("--tcp", "9001", "--gate", "9001"),
        ("--tcp", "9001", "--gate", "127.0.0.1:9001"),
        ("--tcp", "127.0.0.1:9001", "--gate", "127.0.0.1:9001"),
        ("--udp", "9001", "--gate-letter", "udp:9001"),
        ("--tcp", "unix:/run/x", "--gate", "unix:/run/x"),
        ("--udp", "unixgram:/run/x", "--gate-letter", "unixgram:/run/x"),
        ("--tcp", "tcp:9001", "--gate", "tcp:9001"),
        ("--tcp", "9001", "--gate", "tcp:9001"),
        ("--tcp", "tcp6:9001", "--gate", "tcp:9001"),
        ("--tcp", "tcp:9001:interface=127.0.0.1", "--gate", "127.0.0.1:9001"),
        ("--tcp", "0.0.0.0:9001", "--gate", "127.0.0.1:9001"),
        ("--tcp", "[::1]:9001", "--gate", "[::]:9001"),
    ],
)
def test_an_address_that_is_asked_for_twice_is_named_with_both_that_ask(words: Sequence[str]) -> None:
    line = mistake(*words)
    both = "echo udp and by gate letter" if "--udp" in words else "echo tcp and by gate line"
    assert line == f"{words[3]} is asked for twice: by {both}"


@pytest.mark.parametrize(
    "words",
    [
        ("--tcp", "9001", "--udp", "9001"),
        ("--tcp", "9001", "--gate", "9002"),
        ("--tcp", "127.0.0.1:9001", "--gate", "127.0.0.2:9001"),
        ("--tcp", "tcp:9001", "--gate", "[::1]:9001"),
        ("--tcp", "tcp:9001:interface=127.0.0.1", "--gate", "127.0.0.2:9001"),
        ("--tcp", "0", "--gate", "0"),
        ("--tcp", "localhost:0", "--gate", "localhost:0"),
        ("--tcp", "tcp:0", "--gate", "tcp:0"),
        ("--tcp", "tcp:port=0", "--gate", "tcp:port=0"),
        ("--tcp", "haproxy:tcp:0:interface=127.0.0.1", "--gate", "haproxy:tcp:0:interface=127.0.0.1"),
        ("--udp", "udp:0", "--gate-letter", "udp:0"),
        ("--tcp", "unix:/run/x", "--gate", "unix:/run/y"),
    ],
)
def test_what_may_be_had_by_both_is_no_clash(words: Sequence[str]) -> None:
    assert len(plan(*words).listeners) == 2


def test_an_endpoint_that_twisted_cannot_read_is_a_mistake() -> None:
    assert mistake("--tcp", "nonsense:1:2").startswith("--tcp nonsense:1:2: ")
    assert mistake("--tcp", "tcp:9001:nonsense=1").endswith("has no argument nonsense; write tcp:PORT[:interface=ADDR]")
    assert "no/such.pem: No such file or directory; write ssl:PORT:privateKey=KEY.pem:certKey=CERT.pem" in mistake(
        "--tcp", "ssl:9001:privateKey=no/such.pem"
    )


@pytest.mark.parametrize("word", ["--list=x", "--version=3", "--help=me"])
def test_an_option_that_shows_something_takes_no_value(word: str) -> None:
    assert mistake(word) == f"{word.partition('=')[0]} takes no value"


def test_a_broken_or_doubtful_plugin_that_is_not_used_does_no_harm() -> None:
    assert listens(plan("--tcp", "0")) == [("echo", "tcp", "stream", "0")]


def test_a_broken_plugin_that_is_used_is_one_line_however_often() -> None:
    line = mistake("--broken", "0", "--broken-size", "1", "--broken-loud")
    assert line.startswith("service broken does not load: ImportError: no module named x at ")
    assert line.endswith(" (from broken.py); mend or uninstall it")
    assert mistake("0", "--size", "1", alone="broken") == line


def test_a_name_that_is_declared_twice_is_refused_when_it_is_used() -> None:
    assert mistake("--twice", "0") == (
        "service twice is declared twice: by one:service (from one.py) and two:service (from two.py); "
        "uninstall one of them"
    )


def test_an_unknown_option_is_explained_with_the_plugin_files_that_do_not_load() -> None:
    doubtful = catalogue()
    doubtful.problems.append("plugin file x.py does not load: why; mend or remove it")
    with pytest.raises(MistakeError) as raised:
        read_arguments(["--quux", "1"], doubtful)
    assert raised.value.mistakes[1:] == ("plugin file x.py does not load: why; mend or remove it",)
    assert read_arguments(["--tcp", "0"], doubtful).listeners


def test_serve_runs_a_class_from_a_module_or_a_file() -> None:
    made = plan("--serve", f"{THIS}:Line=9001", "--serve", f"{__file__}:Letter=udp:9002", "--serve", f"{THIS}:Line=0")
    assert listens(made) == [
        (f"{THIS}:Line", "stream", "stream", "9001"),
        (f"{__file__}:Letter", "datagram", "datagram", "udp:9002"),
        (f"{THIS}:Line", "stream", "stream", "0"),
    ]
    assert made.uses[f"{THIS}:Line"] == ServiceUse(f"{THIS}:Line", adhoc=True)
    assert listens(plan(f"--serve={THIS}:Line=9001")) == [(f"{THIS}:Line", "stream", "stream", "9001")]


@pytest.mark.parametrize("value", ["", "x", "x:Y", "x=1", "x:Y=", ":Y=1", "x:=1", "=1", "\x1b=1"])
def test_serve_without_its_parts_is_a_mistake_with_the_form(value: str) -> None:
    shown = value.replace("\x1b", r"\x1b")
    assert mistake("--serve", value) == (
        f"--serve {shown}: write PATH_OR_MODULE:NAME=ADDRESS, such as ./my.py:MyProtocol=9001"
    )


def test_serve_needs_a_value() -> None:
    assert "write PATH_OR_MODULE:NAME=ADDRESS" in mistake("--serve")


def test_what_serve_cannot_load_is_one_line_however_often() -> None:
    line = mistake("--serve", "./no/such.py:X=1", "--serve", "./no/such.py:X=2")
    assert line == "--serve ./no/such.py:X does not load: FileNotFoundError: there is no file ./no/such.py"


def test_a_wrong_address_of_serve_is_named_as_it_was_written() -> None:
    assert mistake("--serve", f"{THIS}:Line=99999").startswith(f"--serve {THIS}:Line=99999: a port is a number")


def test_a_use_is_loaded_by_name_or_from_where_it_says() -> None:
    assert load_use(ServiceUse("echo"), discover()).name == "echo"
    assert load_use(ServiceUse(f"{THIS}:Line", adhoc=True), discover()).protocols == {"stream": "stream"}
    with pytest.raises(PluginError):
        load_use(ServiceUse("quux"), discover())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("--pidfile", "x"),
            "--pidfile is an option of twistd: write it before the plugin's name, twistd -n --pidfile … netsvc …",
        ),
        (("./n.toml",), "./n.toml: what is that? Write --config ./n.toml"),
        (("./kv.py:KV",), "./kv.py:KV: what is that? Write --serve ./kv.py:KV=9001"),
        (("-n",), "-n is no option here; those of twistd go before the plugin's name"),
    ],
)
def test_an_option_of_twistd_in_the_wrong_place_is_sent_to_the_right_one(words: tuple[str, ...], expected: str) -> None:
    assert mistake("--tcp", "0", *words) == expected
