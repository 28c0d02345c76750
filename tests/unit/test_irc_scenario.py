"""The scenario of the chat, over IRC, over WebSocket, and with members of both."""

from __future__ import annotations

from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.irc.message import IrcMessage, parse_message
from tests.builders.chat_scenario import ChatScenario, Seen
from tests.builders.irc import IrcClient
from tests.builders.web import WebClient


def understand(message: IrcMessage) -> Seen | None:
    """Return what a message says; None for one that says nothing of others."""
    who, params = message.source.partition("!")[0], message.params
    room = params[0].removeprefix("#") if params else ""
    seen: Seen | None = None
    match message.command:
        case "PRIVMSG" if params[1].startswith("\x01ACTION "):
            seen = ("acted", room, who, params[1][8:-1])
        case "PRIVMSG":
            seen = ("said", room, who, params[1])
        case "JOIN":
            seen = ("joined", room, who)
        case "PART":
            seen = ("left", room, who)
        case "QUIT":
            seen = ("gone", who)
        case "NICK":
            seen = ("renamed", who, params[0])
        case "KICK":
            seen = ("kicked", room, params[1], who, params[2])
    if seen is not None and "batch" in message.tags:
        return ("past", *seen)
    return seen


class Chatter:
    """A `Chatter` with a client of IRC. Its own messages, which a client shows at once, are not seen."""

    def __init__(self, client: IrcClient) -> None:
        self._client = client

    @property
    def _name(self) -> str:
        member = self._client.protocol.session.member
        return str(member.name)

    def _send(self, *lines: str) -> None:
        for line in lines:
            self._client.protocol.dataReceived(f"{line}\r\n".encode())

    def rename(self, name: str) -> None:
        self._send(f"NICK :{name}")

    def login(self, name: str, password: str) -> None:
        self._client.authenticate(name, password)

    def join(self, room: str) -> None:
        self._send(f"JOIN #{room}")

    def part(self, room: str) -> None:
        self._send(f"PART #{room}")

    def say(self, room: str, text: str) -> None:
        self._send(f"PRIVMSG #{room} :{text}")

    def act(self, room: str, text: str) -> None:
        self._send(f"PRIVMSG #{room} :\x01ACTION {text}\x01")

    def kick(self, room: str, name: str, why: str) -> None:
        self._send(f"KICK #{room} {name} :{why}")

    def ban(self, room: str, name: str) -> None:
        # The host name of the member, as clients ask for it.
        self._client.sees()
        host = self._client.sends(f"USERHOST {name}")[0].rpartition("@")[2]
        self._send(f"MODE #{room} +b *!*@{host}")

    def quit(self) -> None:
        self._send("QUIT")

    def vanish(self) -> None:
        self._client.lose()

    def sees(self) -> list[Seen]:
        lines = [parse_message(line.encode()) for line in self._client.sees()]
        own = f"{self._name}!"
        seen = [understand(line) for line in lines if not line.source.startswith(own) or "batch" in line.tags]
        over = [("over",)] if self._client.transport.disconnecting else []
        return [*filter(None, seen), *over]


class TestIrc(ChatScenario):
    def call(self, core: ChatCore, peer: str) -> IrcClient:
        return IrcClient(core, peer)

    def connect(self, core: ChatCore, name: str, peer: str = "192.0.2.1") -> Chatter:
        client = self.call(core, peer)
        # Guests of the line protocol have names that others cannot choose.
        client.register("visitor" if name == "guest" else name, "server-time", "batch")
        client.sees()
        chatter = Chatter(client)
        chatter.join("lobby")
        return chatter


class TestWeb(TestIrc):
    def call(self, core: ChatCore, peer: str) -> IrcClient:
        return WebClient(core, peer)


class TestBoth(TestIrc):
    def call(self, core: ChatCore, peer: str) -> IrcClient:
        return (WebClient if len(list(core.members)) % 2 else IrcClient)(core, peer)
