"""Command line words become a plan, or a line for every mistake in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from netsvc.base.errors import PluginError, UserError
from netsvc.config.arguments import EXAMPLES, read_arguments
from netsvc.config.discovery import discover
from netsvc.config.draft import load_use
from netsvc.plan.address import parse_address
from netsvc.plan.plan import DEFAULT_DRAIN, Listener, Plan, ServiceUse
from tests.builders.arguments import FILE, THIS, catalogue, errors, listens, mistake, plan
from tests.builders.facts import lacks
from tests.builders.processes import ROOT


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
    assert lacks(mistake("--gate", "0", "--gate-text=x", "--gate-loud=yes"), "--gate-loud", "no value") == []
    line = mistake("--gate", "0", "--gate-text=x", "--gate-loud", "yes")
    assert line.startswith("yes: ")
    assert "--tcp 9001" in line


def test_the_longest_service_name_that_fits_is_meant() -> None:
    assert listens(plan("--gate-bot-letter", "1", "--gate-letter", "2")) == [
        ("gate-bot", "letter", "datagram", "1"),
        ("gate", "letter", "datagram", "2"),
    ]


def test_the_drain_is_in_seconds_within_bounds() -> None:
    assert plan("--tcp", "0").drain == DEFAULT_DRAIN
    assert plan("--tcp", "0", "--drain", "0").drain == 0
    assert plan("--tcp", "0", "--drain=86400").drain == 86400
    for value in ("86401", "-1", "soon"):
        assert lacks(mistake("--tcp", "0", "--drain", value), f"--drain {value}: ", "0 to 86400", "10m") == []
    assert lacks(mistake("--tcp", "0", "--drain"), "--drain", "needs a value") == []


def test_debug_is_a_flag() -> None:
    assert not plan("--tcp", "0").debug
    assert plan("--debug", "--tcp", "0").debug
    assert lacks(mistake("--tcp", "0", "--debug=yes"), "--debug", "takes no value") == []
    # The next word is not its value.
    assert lacks(mistake("--tcp", "0", "--debug", "yes"), "yes: ") == []


def test_every_mistake_is_found_at_once() -> None:
    lines = errors(
        "--gate", "99999", "--gate-size", "11", "--gat", "1", "word", "--gate-bot-size", "1", "--drain", "x",
        "--reply-text", "hi", "--echo", "--tcp", "unix:",
    )  # fmt: skip
    facts = (
        ("--gate 99999: ", "0 to 65535", "HOST:PORT", "[IPv6]:PORT", "unix:PATH", "systemd:NAME"),
        ("--gat: ", "--gate?"),
        ("word: ", "--tcp 9001"),
        ("--gate-bot-size: ", "gate-bot"),
        ("--drain x: ", "0 to 86400"),
        ("--echo ", "an address", "--echo 9001"),
        ("--tcp unix:: ", "HOST:PORT"),
        ("--reply-text ", "reply", "--reply ADDRESS"),
        ("--gate-size 11: ", "0 to 10"),
    )
    assert [lacks(line, *each) for line, each in zip(lines, facts, strict=True)] == [[]] * len(facts)
    assert [line.startswith(each[0]) for line, each in zip(lines, facts, strict=True)] == [True] * len(facts)


def test_the_same_mistake_made_twice_is_one_line() -> None:
    assert len(errors("--nonsense", "1", "--nonsense", "2", "--tcp", "0")) == 1


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
    assert line.startswith(f"{shown}: ")
    assert "did you mean" not in line if not hint else line.endswith(hint)


def test_an_unknown_option_of_a_known_service_is_explained_with_the_nearest() -> None:
    assert lacks(mistake("--gate", "0", "--gate-siz", "1"), "--gate-siz: ", "gate ", "--gate-size?") == []
    assert mistake("--gate-leter", "0").endswith("; did you mean --gate-letter?")
    assert mistake("--gate", "0", "--gate-help").startswith("--gate-help: gate ")
    assert mistake("--echo-", "0").startswith("--echo-: ")


def test_a_missing_value_is_named() -> None:
    for words in (["--tcp"], ["--tcp", "--udp", "0"]):
        assert lacks(mistake(*words), "--tcp ", "an address", "--tcp 9001") == []
    for words in (["--gate-text"], ["--gate-text", "--gate-size", "1"]):
        assert lacks(mistake("--gate", "0", *words), "--gate-text ", "needs a value") == []
    assert mistake("--tcp=").startswith("--tcp : an address is ")


@pytest.mark.parametrize("word", ["word", "-", "9001", ""])
def test_a_bare_word_is_no_option(word: str) -> None:
    line = mistake("--tcp", "0", word)
    assert line.startswith(f"{word}: " if word else "an empty ")
    assert "--tcp 9001" in line


def test_options_of_a_service_that_listens_nowhere_are_named() -> None:
    size, loud = errors("--gate-size", "1", "--gate-loud", "--tcp", "0")
    assert lacks(size, "--gate-size ", " gate ", "--gate ADDRESS") == []
    assert lacks(loud, "--gate-loud ", " gate ", "--gate ADDRESS") == []


def test_what_a_service_says_of_its_options_together_names_them_as_they_were_written() -> None:
    assert mistake("--gate", "0", "--gate-loud") == "--gate-loud needs --gate-text"
    assert mistake("0", "--loud", alone="gate") == "--loud needs --text"
    line = mistake("--reply", "0", "--reply-text", "☃", "--reply-encoding", "gbk")
    assert lacks(line, "--reply-encoding gbk", "--reply-text '☃'") == []


def test_nothing_to_run_is_a_mistake_with_examples() -> None:
    assert lacks(mistake(), "nothing to run", *(f"twistd -n netsvc {example}" for example in EXAMPLES)) == []
    assert lacks(mistake(alone="echo"), "nothing to run", "twistd -n netsvc-echo 9001") == []
    assert mistake("--drain", "1").startswith("nothing to run")


def test_a_file_of_the_usual_name_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--config" not in mistake()
    (tmp_path / "netsvc.toml").touch()
    assert mistake().endswith("--config netsvc.toml")


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
        ("--tcp", "9001", "--gate", "[::1]:9001"),
        ("--tcp", "[0:0::1]:9001", "--gate", "[::1]:9001"),
        ("--tcp", "9001", "--gate", "haproxy:tcp:9001"),
        ("--tcp", "unix:/run/x", "--gate", "unix:/run/./x:mode=600"),
    ],
)
def test_an_address_that_is_asked_for_twice_is_named_with_both_that_ask(words: Sequence[str]) -> None:
    line = mistake(*words)
    both = "echo udp and by gate letter" if "--udp" in words else "echo tcp and by gate line"
    assert line.startswith(f"{words[3]} ")
    assert lacks(line, *both.split(" and by ")) == []


@pytest.mark.parametrize("tcp", ["9001", "127.0.0.1:9001", "[::1]:9001"])
@pytest.mark.parametrize("admin", ["9001", "localhost:9001"])
def test_the_admin_address_is_one_of_them(tcp: str, admin: str) -> None:
    line = mistake("--tcp", tcp, "--admin", admin)
    assert lacks(line, f"{admin} is used twice", "echo tcp", "admin") == []
    assert plan("--udp", "9001", "--tcp", "127.0.0.2:9001", "--admin", admin).admin is not None


@pytest.mark.parametrize(
    ("several", "every"),
    [("127.0.0.{}:9001", "0.0.0.0:9001"), ("[::{}]:9001", "[::]:9001"), ("127.0.0.{}:9001", "9001")],
)
@pytest.mark.parametrize("first", [True, False])
def test_an_address_for_every_interface_clashes_with_each_single_one(several: str, every: str, first: bool) -> None:
    words = [word for number in range(1, 201) for word in ("--tcp", several.format(number))]
    words = [*("--gate", every), *words] if first else [*words, *("--gate", every)]
    lines = errors(*words)
    assert len(lines) == (200 if first else 1)
    assert all(lacks(line, "9001", "echo tcp", "gate line") == [] for line in lines)


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


def test_thousands_of_addresses_with_one_port_are_looked_up_not_compared() -> None:
    # Each compared with all others would be 12 million comparisons.
    words = [word for number in range(5000) for word in ("--tcp", f"127.0.{number >> 8}.{number & 255}:9001")]
    assert len(plan(*words).listeners) == 5000


def test_an_endpoint_that_twisted_cannot_read_is_a_mistake() -> None:
    assert mistake("--tcp", "nonsense:1:2").startswith("--tcp nonsense:1:2: ")
    assert lacks(mistake("--tcp", "tcp:9001:nonsense=1"), " nonsense", "tcp:PORT[:interface=ADDR]") == []
    line = mistake("--tcp", "ssl:9001:privateKey=no/such.pem")
    assert lacks(line, "no/such.pem: No such file", "ssl:PORT:privateKey=KEY.pem:certKey=CERT.pem") == []


@pytest.mark.parametrize("option", ["--access", "--state"])
def test_a_path_that_no_file_system_accepts_is_a_mistake(option: str) -> None:
    longest = "/" + "/".join(["x" * 255] * 15) + "/" + "y" * 254
    assert plan("--tcp", "0", option, longest).listeners
    assert lacks(mistake("--tcp", "0", option, f"{longest}/y"), option, "4095") == []
    assert lacks(mistake("--tcp", "0", option, "/tmp/" + "é" * 128), option, "255") == []


@pytest.mark.parametrize("word", ["--list=x", "--version=3", "--help=me"])
def test_an_option_that_shows_something_takes_no_value(word: str) -> None:
    assert lacks(mistake(word), f"{word.partition('=')[0]} ", "no value") == []


def test_a_broken_or_doubtful_plugin_that_is_not_used_does_no_harm() -> None:
    assert listens(plan("--tcp", "0")) == [("echo", "tcp", "stream", "0")]


def test_a_broken_plugin_that_is_used_is_one_line_however_often() -> None:
    line = mistake("--broken", "0", "--broken-size", "1", "--broken-loud")
    assert lacks(line, "service broken ", "ImportError: no module named x at ", "(from broken.py)") == []
    assert mistake("0", "--size", "1", alone="broken") == line


def test_a_name_that_is_declared_twice_is_refused_when_it_is_used() -> None:
    line = mistake("--twice", "0")
    assert lacks(line, "service twice ", "one:service (from one.py)", "two:service (from two.py)", "uninstall") == []


def test_an_unknown_option_is_explained_with_the_plugin_files_that_do_not_load() -> None:
    doubtful = catalogue()
    doubtful.problems.append("plugin file x.py does not load: why")
    with pytest.raises(UserError) as raised:
        read_arguments(["--quux", "1"], doubtful)
    assert raised.value.errors[1:] == ("plugin file x.py does not load: why",)
    assert read_arguments(["--tcp", "0"], doubtful).listeners


def test_serve_runs_a_class_from_a_module_or_a_file() -> None:
    made = plan("--serve", f"{THIS}:Line=9001", "--serve", f"{FILE}:Letter=udp:9002", "--serve", f"{THIS}:Line=0")
    assert listens(made) == [
        (f"{THIS}:Line", "stream", "stream", "9001"),
        (f"{FILE}:Letter", "datagram", "datagram", "udp:9002"),
        (f"{THIS}:Line", "stream", "stream", "0"),
    ]
    assert made.uses[f"{THIS}:Line"] == ServiceUse(f"{THIS}:Line", adhoc=True)
    assert listens(plan(f"--serve={THIS}:Line=9001")) == [(f"{THIS}:Line", "stream", "stream", "9001")]


@pytest.mark.parametrize("value", ["", "x", f"{THIS}:Line", "x=1", "x:Y=", ":Y=1", "x:=1", "=1", "\x1b=1", "X=x:Y=1"])
def test_serve_without_its_parts_is_a_mistake_with_the_form(value: str) -> None:
    shown = value.replace("\x1b", r"\x1b")
    assert lacks(mistake("--serve", value), f"--serve {shown}: ", "PATH_OR_MODULE:NAME=ADDRESS", "./my.py:") == []


SHOUT = "examples/shout/shout.py"


def test_a_served_class_has_the_name_and_the_options_that_it_is_given() -> None:
    for words in (
        ("--serve", f"loud={THIS}:Line=9001", "--loud-limit", "perip=4", "--loud", "9002"),
        ("--loud-limit", "perip=4", f"--serve=loud={THIS}:Line=9001", "--loud-stream", "9002"),
        ("--loud-limit", "perip=4", "--serve", f"loud={THIS}:Line", "--loud", "9001", "--loud", "9002"),
    ):
        made = plan(*words)
        assert made.uses == {"loud": ServiceUse(f"{THIS}:Line", adhoc=True, limits={"perip": 4}, name="loud")}
        assert listens(made) == [("loud", "stream", "stream", "9001"), ("loud", "stream", "stream", "9002")]
    assert load_use(made.uses["loud"], discover()).name == "loud"


def test_a_declared_service_is_served_with_its_name_protocols_and_options() -> None:
    made = plan("--serve", f"{ROOT / SHOUT}:service=9001", "--shout-udp", "9001", "--shout-drain", "9")
    assert listens(made) == [("shout", "tcp", "stream", "9001"), ("shout", "udp", "datagram", "9001")]
    assert made.uses["shout"].drain == 9
    made = plan("--up-udp", "9001", "--serve", f"up={ROOT / SHOUT}:service")
    assert listens(made) == [("up", "udp", "datagram", "9001")]
    assert load_use(made.uses["up"], discover()).name == "shout"


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("--serve", f"gate={THIS}:Line=1"), (f"--serve {THIS}:Line: gate ", "--serve NAME=")),
        (("--serve", f"drain={THIS}:Line=1"), (f"--serve {THIS}:Line: drain ", "--serve NAME=")),
        (("--serve", f"tcp={THIS}:Line=1"), (f"--serve {THIS}:Line: tcp ", "--serve NAME=")),
        (
            ("--serve", f"a={THIS}:Line=1", "--serve", f"a={THIS}:Letter=1"),
            (f"--serve {THIS}:Letter: a ", f"{THIS}:Line", "--a ADDRESS"),
        ),
        (("--serve", f"{ROOT / SHOUT}:service"), (f"--serve {ROOT / SHOUT}:service: shout ", "--shout ADDRESS")),
        (("--serve", f"a={THIS}:Line"), (f"--serve {THIS}:Line: a ", "--a ADDRESS")),
        (("--serve", f"a={THIS}:Line=1", "--a-limt", "2"), ("--a-limt: a has no ", "--a-limit")),
    ],
)
def test_a_name_that_cannot_be_had_and_a_service_without_an_address_are_told(
    words: Sequence[str], facts: Sequence[str]
) -> None:
    assert lacks(mistake(*words), *facts) == []


def test_serve_needs_a_value() -> None:
    assert "PATH_OR_MODULE:NAME=ADDRESS" in mistake("--serve")


def test_what_serve_cannot_load_is_one_line_however_often() -> None:
    line = mistake("--serve", "./no/such.py:X=1", "--serve", "./no/such.py:X=2")
    assert lacks(line, "--serve ./no/such.py:X ", "FileNotFoundError: ", "./no/such.py") == []


def test_a_wrong_address_of_serve_is_named_as_it_was_written() -> None:
    assert mistake("--serve", f"{THIS}:Line=99999").startswith(f"--serve {THIS}:Line=99999: ")


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
            ("--pidfile ", "twistd -n --pidfile … netsvc …"),
        ),
        (("./n.toml",), ("./n.toml: ", "--config ./n.toml")),
        (("./kv.py:KV",), ("./kv.py:KV: ", "--serve ./kv.py:KV=9001")),
        (("-n",), ("-n", "twistd", "before")),
    ],
)
def test_an_option_of_twistd_in_the_wrong_place_is_sent_to_the_right_one(
    words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    line = mistake("--tcp", "0", *words)
    assert line.startswith(expected[0])
    assert lacks(line, *expected) == []
