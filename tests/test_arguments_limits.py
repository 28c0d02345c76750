"""Limits and other twistd plugins on the command line, at each level."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from twisted.internet.protocol import Protocol
from twisted.python import usage

from netsvc.address import Proxy
from netsvc.discovery import RESERVED, Found
from netsvc.errors import PluginError
from netsvc.limits import DAYS, LIMITS, Hours
from netsvc.plan import TwistdUse
from netsvc.service import Service
from tests.test_arguments import Loaded, mistake, mistakes, plan


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
        (["--limit"], "--limit : write NAME=VALUE, such as --limit perip=20"),
        (["--limit", "idle"], "--limit idle: write NAME=VALUE, such as --limit perip=20"),
        (["--limit", "=1"], "--limit =1: write NAME=VALUE, such as --limit perip=20"),
        (["--echo-limit", "idle"], "--echo-limit idle: write NAME=VALUE, such as --echo-limit perip=20"),
        (["--limit", "idle="], "--limit idle=: seconds from 0.1 to 31622400, or with m, h, d (10m), or none"),
        (["--limit", "idle=x y"], "--limit idle=x y: seconds from 0.1 to 31622400, or with m, h, d (10m), or none"),
        (
            ["--echo-limit", "idle=\x1b"],
            r"--echo-limit idle=\x1b: seconds from 0.1 to 31622400, or with m, h, d (10m), or none",
        ),
        (["--limit", "idel=1"], "--limit idel: there is no limit of that name; did you mean idle?"),
        (["--limit", "q\x1b=1"], f"--limit q\\x1b: there is no limit of that name; there are {', '.join(LIMITS)}"),
        (
            ["--udp", "guard:perip=x:1"],
            "--udp guard:perip=x:1: perip=x: a whole number from 1 to 1000000, or none",
        ),
        (
            ["--udp", "guard:amplfy=1:1"],
            "--udp guard:amplfy=1:1: amplfy: there is no limit of that name; did you mean amplify?",
        ),
        (
            ["--limt", "idle=1"],
            "--limt: there is no such option, and no service of that name; did you mean --limit or --list?",
        ),
        (["--gate-limit", "idle=1"], "--gate-limit idle is set, but gate listens nowhere: add --gate ADDRESS"),
        (
            ["--echo-limt", "idle=1"],
            "--echo-limt: echo has no protocol and no option of that name; did you mean --echo-limit?",
        ),
    ],
)
def test_each_mistake_is_a_line(words: Sequence[str], expected: str) -> None:
    assert mistake("--tcp", "0", *words) == expected


def test_a_listener_has_limits_of_its_kind() -> None:
    assert mistake("--udp", "guard:handshake=1:0").startswith(
        "--udp guard:handshake=1:0: handshake: this is no limit of datagrams, which have sessions, perip, "
    )
    assert mistake("--tcp", "guard:sessions=1:0").startswith(
        "--tcp guard:sessions=1:0: sessions: this is no limit of streams, which have connections, perip, "
    )
    # A service may have both kinds.
    assert plan("--tcp", "0", "--echo-limit", "sessions=1", "--echo-limit", "idle=1").uses["echo"].limits


def test_a_service_alone_has_those_of_the_process() -> None:
    made = plan("0", "--limit", "idle=1", alone="gate")
    assert (made.limits, made.uses["gate"].limits) == ({"idle": 1.0}, {})
    assert mistake("0", "--limt", "idle=1", alone="gate").endswith("; did you mean --limit?")
    for own in ("config", "with"):
        assert mistake("0", f"--{own}", "x", alone="gate").startswith(f"--{own}: gate has no protocol and no option")


def test_other_twistd_plugins_run_beside() -> None:
    made = plan("--with", "web --listen tcp:8080 --path 'a b'", "--with=ftp", "--tcp", "0")
    assert made.twistd == (TwistdUse(("web", "--listen", "tcp:8080", "--path", "a b")), TwistdUse(("ftp",)))
    assert plan("--with", "web").listeners == ()


def test_what_is_to_run_beside_is_one_word() -> None:
    form = "write a twistd plugin and its options"
    assert mistake("--tcp", "0", "--with").startswith(f"--with needs a value; {form} as one word: ")
    assert mistake("--tcp", "0", "--with", "").startswith(f"--with : nothing is named; {form}, such as web --listen ")
    assert mistake("--tcp", "0", "--with", "web '").startswith(f"--with web ': no closing quotation; {form}, such as")
    assert mistake("--tcp", "0", "--with", "web \\").startswith(
        f"--with web \\\\: no escaped character; {form}, such as"
    )


def test_what_runs_beside_cannot_be_divided() -> None:
    assert mistakes("--tcp", "0", "--with", "web", "--workers", "2") == (
        "--workers 2: web opens its own ports, which several processes cannot share; "
        "run it in a netsvc of its own, without --workers",
    )


def test_many_listeners_at_one_port_are_a_line_each() -> None:
    assert mistakes(*["--tcp", "9001"] * 3) == ("9001 is asked for twice: by echo tcp and by echo tcp",)
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
            Found("x", "x.py", "x:service", Loaded(service)).load()
        [line] = raised.value.mistakes
        assert line == (
            f"service x has a protocol or an option called {word}, which is a word of netsvc's own (from x.py); "
            "rename it"
        )
