"""Builds plans from command lines, over a catalogue of services that load, do not load, and are claimed twice."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import strategies as st
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.python import usage

from netsvc.base.errors import UserError
from netsvc.config.arguments import read_arguments
from netsvc.config.discovery import Catalogue, FoundService, discover
from netsvc.interfaces import Options
from netsvc.options import whole_number
from netsvc.plan.limits import LIMITS
from netsvc.plan.plan import Plan
from netsvc.service import Service


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
    """A stream protocol."""


class Letter(DatagramProtocol):
    """A datagram protocol."""


#: A module with protocols, `Line` and `Letter`, for --serve.
THIS = __name__
#: The file of that module.
FILE = __file__


@cache
def _installed() -> Catalogue:
    """Look once at all that is installed: it takes longer than most tests."""
    return discover()


def catalogue() -> Catalogue:
    """Our own services, and some of others: sound, with a long name, broken, and claimed twice."""
    found = Catalogue(dict(_installed().services))
    gate = Service(
        "gate", "A gate", options=GateOptions, streams={"line": Line, "v2": Line}, datagrams={"letter": Letter}
    )
    bot = Service("gate-bot", "A robot at the gate", datagrams={"letter": Letter})
    found.add(FoundService("gate", "gate.py", "gate:service", Loaded(gate)))
    found.add(FoundService("gate-bot", "bot.py", "bot:service", Loaded(bot)))
    found.add(FoundService("broken", "broken.py", "broken:service", Loaded(ImportError("no module named x"))))
    found.add(FoundService("twice", "one.py", "one:service", Loaded(gate)))
    found.add(FoundService("twice", "two.py", "two:service", Loaded(gate)))
    return found


def plan(*words: str, alone: str | None = None) -> Plan:
    return read_arguments(words, catalogue(), alone)


def errors(*words: str, alone: str | None = None) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        plan(*words, alone=alone)
    return raised.value.errors


def mistake(*words: str, alone: str | None = None) -> str:
    [line] = errors(*words, alone=alone)
    return line


def listens(made: Plan) -> list[tuple[str, str, str, str]]:
    return [(each.use, each.protocol, each.address.kind, each.address.text) for each in made.listeners]


#: A configuration file with every kind of table.
WHOLE = """\
drain = 2.5
workers = 1

[limits]
connections = 10_000
deny = ["192.0.2.0/24", "@/run/blocked.txt"]
hours = "mon-fri 08:00-18:00"
idle = "none"
read = "64K"

[services.echo]
tcp = 9001
udp = [9002, "127.0.0.1:9003", { address = "udp:9004", limits = { sessionidle = 5, dryrun = ["sessions"] } }]

[services.gate]
line = [{ address = 9005, limits = { perip = 4 } }, "unix:/run/gate"]
letter = 9006
size = 7
loud = true
text = "hi"
limits = { idle = 86400, periprate = 0.5 }

[[twistd]]
run = "web --listen tcp:8080 --path 'a b'"
"""


#: Keys of a configuration file, and others.
KEY = st.sampled_from(
    ["drain", "workers", "limits", "services", "twistd", "echo", "gate", "lobby", "service", "serve", "listen", "tcp",
     "udp", "line", "letter", "size", "loud", "text", "run", "address", "broken", "twice", *LIMITS, "q", '"\\u001b"']
)  # fmt: skip


#: Values as they stand in a configuration file.
VALUE = st.recursive(
    st.sampled_from(
        ["1", "-1", "0.5", "9001", '"9001"', "true", "'gate'", "'${HOME}'", "'${X:-5}'", "'none'", "'$'", "inf",
         "2000-01-01", "08:00:00", "'web --path x'", '"\'"', "'unix:x'", "'guard:perip=1:9001'", "'tests.a:B'", "''",
         '"\\u001b\\u202e"', "0xffffffffffffffffffffffffff", "'all'", "'10.0.0.0/8'", "'@x'", "'mon 08:00-09:00'"]
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    | st.lists(st.tuples(KEY, inner), max_size=3, unique_by=lambda pair: pair[0]).map(
        lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"
    ),
    max_leaves=6,
)  # fmt: skip
