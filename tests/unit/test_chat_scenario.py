"""The scenario of the chat, over its line protocol."""

from __future__ import annotations

import re

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport

from netsvc.services.chat.core import ChatCore
from tests.builders.chat import Client
from tests.builders.chat_scenario import ChatScenario, Seen

#: The lines that are seen, and what they say. What begins with `you` is an answer.
_LINES = [
    (r"\[(\S+)\] \* (\S+) (.*)", "acted", (1, 2, 3)),
    (r"\[(\S+)\] (\S+): (.*)", "said", (1, 2, 3)),
    (r"\* (?!you )(\S+) joined (\S+)", "joined", (2, 1)),
    (r"\* (?!you )(\S+) left the chat.*", "gone", (1,)),
    (r"\* (?!you )(\S+) left (\S+)", "left", (2, 1)),
    (r"\* (?!you )(\S+) is now (\S+)", "renamed", (1, 2)),
    (r"\* (?!you )(\S+) kicked (\S+) from (\S+) \((.*)\)", "kicked", (3, 2, 1, 4)),
]


def parse(line: str) -> Seen | None:
    """Return what a line says; None for an answer."""
    if past := re.fullmatch(r"\([^)]* ago\) (.*)|\(just now\) (.*)", line):
        seen = parse(past[1] or past[2])
        return seen and ("past", *seen)
    for pattern, what, groups in _LINES:
        if found := re.fullmatch(pattern, line):
            return (what, *(found[group] for group in groups))
    return None


class Typist:
    """A `Chatter` that types lines."""

    def __init__(self, made: Client) -> None:
        self._client = made
        self._room = "lobby"

    def _type(self, *lines: str) -> None:
        for line in lines:
            self._client.protocol.dataReceived(f"{line}\n".encode())

    def rename(self, name: str) -> None:
        self._type(f"/nick {name}")

    def login(self, name: str, password: str) -> None:
        self._type(f"/login {name} {password}")

    def join(self, room: str) -> None:
        self._room = room
        self._type(f"/join {room}")

    def _talk_in(self, room: str) -> None:
        if room != self._room:
            self.join(room)

    def part(self, room: str) -> None:
        self._type(f"/leave {room}")

    def say(self, room: str, text: str) -> None:
        self._talk_in(room)
        self._type(text)

    def act(self, room: str, text: str) -> None:
        self._talk_in(room)
        self._type(f"/me {text}")

    def kick(self, room: str, name: str, why: str) -> None:
        self._talk_in(room)
        self._type(f"/kick {name} {why}")

    def ban(self, room: str, name: str) -> None:
        self._talk_in(room)
        self._type(f"/ban {name}")

    def quit(self) -> None:
        self._type("/quit")

    def vanish(self) -> None:
        self._client.lose()

    def sees(self) -> list[Seen]:
        seen = [parse(line) for line in self._client.sees().decode().splitlines()]
        over = [("over",)] if self._client.transport.disconnecting else []
        return [*filter(None, seen), *over]


class TestLines(ChatScenario):
    def connect(self, core: ChatCore, name: str, peer: str = "192.0.2.1") -> Typist:
        made = Client(core, StringTransport(peerAddress=IPv4Address("TCP", peer, 4000)))
        typist = Typist(made)
        if name != "guest":
            typist.rename(name)
        return typist
