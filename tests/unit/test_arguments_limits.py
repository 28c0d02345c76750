"""Limits and other twistd plugins on the command line, at each level."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from twisted.internet.protocol import Protocol
from twisted.python import usage

from netsvc.base.errors import PluginError
from netsvc.config.discovery import FoundService
from netsvc.config.settings import RESERVED
from netsvc.plan.address import Proxy
from netsvc.plan.limits import DAYS, LIMITS, Hours
from netsvc.plan.plan import TwistdUse
from netsvc.service import Service
from tests.builders.arguments import Loaded, mistake, plan
from tests.builders.facts import lacks


def test_limits_have_three_levels() -> None:
    made = plan(
        "--limit", "connections=10", "--limit=idle=5", "--tcp", "guard:perip=2:idle=7:9001", "--tcp", "9002",
        "--echo-limit", "idle=6", "--echo-limit=perip=none", "--gate", "0", "--gate-limit=life=1",
    )  # fmt: skip
    assert made.limits == {"connections": 10, "idle": 5.0}
    assert made.uses["echo"].limits == {"idle": 6.0, "perip": None}
    assert made.uses["gate"].limits == {"life": 1.0}
    assert [each.limits for each in made.listeners] == [{"perip": 2, "idle": 7.0}, {}, {}]


def test_what_is_not_set_is_not_there() -> None:
    made = plan("--tcp", "0")
    assert (made.limits, made.uses["echo"].limits, made.listeners[0].limits) == ({}, {}, {})


def test_the_last_value_counts() -> None:
    assert plan("--tcp", "0", "--limit", "idle=1", "--limit", "idle=2").limits == {"idle": 2.0}


def test_lists_have_commas() -> None:
    made = plan(
        "--tcp", "0", "--limit", "allow=10.0.0.0/8, 2001:db8::/32", "--limit", "hours=mon 08:00-09:00",
        "--limit=dryrun=all",
    )  # fmt: skip
    assert made.limits == {
        "allow": ("10.0.0.0/8", "2001:db8::/32"),
        "hours": (Hours(frozenset({DAYS.index("mon")}), 480, 540),),
        "dryrun": frozenset({"all"}),
    }


@pytest.mark.parametrize(
    ("address", "text", "limits"),
    [
        ("guard:perip=2:9001", "9001", {"perip": 2}),
        ("guard:perip=2:guard:idle=3:tcp:9001", "tcp:9001", {"perip": 2, "idle": 3.0}),
        (r"guard:deny=2001\:db8\:\:/32:unix:/run/x", "unix:/run/x", {"deny": ("2001:db8::/32",)}),
        ("guard:perip=2:proxy:trust=10.0.0.1:9001", "proxy:trust=10.0.0.1:9001", {"perip": 2}),
        (
            r"proxy:trust=unix,\:\:1:timeout=2.5:guard:perip=2:9001",
            r"proxy:trust=unix,\:\:1:timeout=2.5:9001",
            {"perip": 2},
        ),
    ],
)
def test_those_of_an_address_become_the_listeners(address: str, text: str, limits: dict[str, object]) -> None:
    made = plan("--tcp", address).listeners[0]
    assert made.address.text == text
    assert made.address.limits == {}
    assert made.limits == limits
    without = plan("--tcp", text).listeners[0]
    assert made.address == without.address
    assert without.limits == {}
    assert (made.address.proxy is None) == ("proxy" not in text)
    assert made.address.proxy is None or isinstance(made.address.proxy, Proxy)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--limit"], ("--limit", "NAME=VALUE", "--limit perip=20")),
        (["--limit", "idle"], ("--limit idle: ", "NAME=VALUE", "--limit perip=20")),
        (["--limit", "=1"], ("--limit =1: ", "NAME=VALUE", "--limit perip=20")),
        (["--echo-limit", "idle"], ("--echo-limit idle: ", "NAME=VALUE", "--echo-limit perip=20")),
        (["--limit", "idle="], ("--limit idle=: ", "0.1 to 31622400", "10m", "none")),
        (["--limit", "idle=x y"], ("--limit idle=x y: ", "0.1 to 31622400", "none")),
        (["--echo-limit", "idle=\x1b"], (r"--echo-limit idle=\x1b: ", "0.1 to 31622400", "none")),
        (["--limit", "idel=1"], ("--limit idel: ", "did you mean idle?")),
        (["--limit", "q\x1b=1"], ("--limit q\\x1b: ", ", ".join(LIMITS))),
        (["--udp", "guard:perip=x:1"], ("--udp guard:perip=x:1: perip=x: ", "1 to 1000000", "none")),
        (["--udp", "guard:amplfy=1:1"], ("--udp guard:amplfy=1:1: amplfy: ", "did you mean amplify?")),
        (["--limt", "idle=1"], ("--limt: ", "did you mean --limit")),
        (["--gate-limit", "idle=1"], ("--gate-limit idle ", " gate ", "--gate ADDRESS")),
        (["--echo-limt", "idle=1"], ("--echo-limt: echo ", "did you mean --echo-limit?")),
    ],
)
def test_each_mistake_is_a_line(words: Sequence[str], expected: tuple[str, ...]) -> None:
    line = mistake("--tcp", "0", *words)
    assert line.startswith(expected[0])
    assert lacks(line, *expected) == []


def test_a_listener_has_limits_of_its_kind() -> None:
    line = mistake("--udp", "guard:handshake=1:0")
    assert lacks(line, "--udp guard:handshake=1:0: handshake: ", "datagrams", "sessions, perip, ") == []
    line = mistake("--tcp", "guard:sessions=1:0")
    assert lacks(line, "--tcp guard:sessions=1:0: sessions: ", "streams", "connections, perip, ") == []
    # A service may have both kinds.
    assert plan("--tcp", "0", "--echo-limit", "sessions=1", "--echo-limit", "idle=1").uses["echo"].limits


def test_a_service_alone_has_those_of_the_process() -> None:
    made = plan("0", "--limit", "idle=1", alone="gate")
    assert (made.limits, made.uses["gate"].limits) == ({"idle": 1.0}, {})
    assert mistake("0", "--limt", "idle=1", alone="gate").endswith("; did you mean --limit?")
    for own in ("config", "with"):
        assert mistake("0", f"--{own}", "x", alone="gate").startswith(f"--{own}: gate ")


def test_other_twistd_plugins_run_beside() -> None:
    made = plan("--with", "web --listen tcp:8080 --path 'a b'", "--with=ftp", "--tcp", "0")
    assert made.twistd == (TwistdUse(("web", "--listen", "tcp:8080", "--path", "a b")), TwistdUse(("ftp",)))
    assert plan("--with", "web").listeners == ()


def test_what_is_to_run_beside_is_one_word() -> None:
    assert lacks(mistake("--tcp", "0", "--with"), "--with needs a value", '--with "web --listen ') == []
    for value, facts in (
        ("", ("--with : ",)),
        ("web '", ("--with web ': ", "no closing quotation")),
        ("web \\", ("--with web \\\\: ", "no escaped character")),
    ):
        assert lacks(mistake("--tcp", "0", "--with", value), *facts, "web --listen ") == []


def test_what_runs_beside_cannot_be_divided() -> None:
    assert lacks(mistake("--tcp", "0", "--with", "web", "--workers", "2"), "--workers 2: web ", "--workers") == []


def test_many_listeners_at_one_port_are_a_line_each() -> None:
    assert lacks(mistake(*["--tcp", "9001"] * 3), "9001 ", "echo tcp", "echo tcp") == []
    # Pair by pair it would be 50 million comparisons.
    assert (
        plan(*(word for port in range(10_000) for word in ("--tcp", str(port + 1)))).listeners[-1].address.port
        == 10_000
    )


@pytest.mark.parametrize("word", sorted(RESERVED))
def test_no_protocol_and_no_option_of_a_plugin_has_a_word_of_ours(word: str) -> None:
    class Options(usage.Options):
        optParameters = [[word, None, 1, "It"]]

    for service in (
        Service("x", "X", streams={word: Protocol}),
        Service("x", "X", options=Options, streams={"tcp": Protocol}),
    ):
        with pytest.raises(PluginError) as raised:
            FoundService("x", "x.py", "x:service", Loaded(service)).load()
        [line] = raised.value.errors
        assert lacks(line, "service x ", f" {word}", "(from x.py)", "rename") == []
