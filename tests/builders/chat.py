"""Builds chat cores, their members, and clients of the line protocol, in memory."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.interfaces import Context
from netsvc.options import parse_settings
from netsvc.service import stream_factory
from netsvc.services.chat.archive import Archive
from netsvc.services.chat.commands import Conversation
from netsvc.services.chat.core import LOBBY, ChatCore, ChatRoom, Member
from netsvc.services.chat.events import Event, Receiver, Said, Several
from netsvc.services.chat.line import LineChat
from netsvc.services.chat.names import name_key
from netsvc.services.chat.options import ChatOptions
from netsvc.services.chat.store.interface import AccountRecord, Kept, Store
from netsvc.services.chat.wording import line_form, wording

#: That of each account.
PASSWORD = "correct horse"


def account(name: str, password: str = PASSWORD) -> AccountRecord:
    """An account with a hash at the lowest cost, so that tests are fast."""
    salt = b"0123456789abcdef"
    derived = hashlib.scrypt(password.encode(), salt=salt, n=2, r=1, p=1, dklen=16)
    texts = [base64.b64encode(each).decode().rstrip("=") for each in (salt, derived)]
    return AccountRecord(name_key(name), name, f"$scrypt$ln=1,r=1,p=1${'$'.join(texts)}")


def build_core(store: Store | None = None, **chosen: object) -> ChatCore:
    """A core whose options are the defaults and `chosen` (with _ for -), and whose clock is a `Clock`."""
    options = parse_settings(ChatOptions, {name.replace("_", "-"): value for name, value in chosen.items()})
    assert isinstance(options, ChatOptions)
    clock = Clock()
    core = ChatCore(options, Context(clock, Logger()), clock.seconds, store)
    core.start()
    return core


class Recorder:
    """An outlet that keeps what it gets; of several events at once, each."""

    is_confidential = True
    is_encrypted = False

    def __init__(self, peer: str = "192.0.2.1") -> None:
        self.peer = peer
        self.receiver = Receiver(self.deliver)
        self.got: list[Event] = []
        self.ended = 0

    def deliver(self, event: Event) -> None:
        self.got += event.events if isinstance(event, Several) else (event,)

    def end(self) -> None:
        self.ended += 1

    def take(self) -> list[Event]:
        got, self.got = self.got, []
        return got


def said(name: str, *texts: object, room: str = LOBBY) -> list[Said]:
    """What a member said in a room."""
    return [Said(room, name, str(text)) for text in texts]


def shown(*events: Event, encoding: str = "utf-8", end: str = "\n") -> bytes:
    """The lines of events as a client gets them."""
    return line_form(encoding, end).encode(map(wording, events))


def enter(
    core: ChatCore, name: str | None = None, room: str | None = LOBBY, peer: str = "192.0.2.1"
) -> tuple[Member, Recorder]:
    outlet = Recorder(peer)
    member = core.enter(outlet)
    if name:
        core.rename(member, name)
    if room:
        core.join(member, room)
    return member, outlet


def lobby(core: ChatCore) -> ChatRoom:
    found = core.rooms.find(LOBBY)
    assert found
    return found


def build_protocol(core: ChatCore) -> Any:
    return stream_factory(LineChat, core).buildProtocol(IPv4Address("TCP", "192.0.2.1", 4000))


class Client:
    """One connection of the line protocol over a fake transport, and what the client does and sees.

    It has arrived, and ends its lines with LF; a `fresh` one has sent nothing yet.
    """

    def __init__(self, core: ChatCore, transport: Any = None, *, fresh: bool = False) -> None:
        self.core = core
        self.clock = core.context.reactor
        self.transport = transport or cast(Any, StringTransport())
        self.protocol = build_protocol(core)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)
        if not fresh:
            if not (self.protocol._closing or self.protocol._waiting):
                self.protocol._arrive()
            self.protocol.dataReceived(b"\n")

    def sends(self, data: bytes | str) -> bytes:
        """Send; return what has come since the last time."""
        self.protocol.dataReceived(data.encode() if isinstance(data, str) else data)
        return self.sees()

    def sees(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def patience(self) -> float:
        """Seconds until it may be disconnected for what waits for it."""
        options = self.core.options
        return float(options["send-bytes"] / options["send-rate"])

    @property
    def state(self) -> str:
        return str(self.transport.producerState)


class Person:
    """A conversation, the lines that it shows, and the events that it is sent, in order."""

    is_confidential = True
    is_encrypted = False

    def __init__(self, core: ChatCore, name: str | None = None, peer: str = "192.0.2.1") -> None:
        self.peer = peer
        self.receiver = Receiver(self.deliver)
        self.ended = False
        self.shown: list[Any] = []
        self.conversation = Conversation(core, self, self.tell)
        self.conversation.begin()
        self.conversation.arrive()
        if name:
            self.does(f"/nick {name}")

    def tell(self, lines: Iterable[str]) -> None:
        self.shown += lines

    def deliver(self, event: Event) -> None:
        self.shown.append(event)

    def end(self) -> None:
        self.ended = True

    def does(self, *lines: str) -> list[Any]:
        """Type lines; return what was shown since the last time."""
        self.sees()
        for line in lines:
            self.conversation.line_received(line)
        return self.sees()

    def sees(self) -> list[Any]:
        shown, self.shown = self.shown, []
        return shown


class _Opened(Archive):
    """A listener that takes what a store has."""

    def __init__(self) -> None:
        pass

    def opened(self, kept: Kept) -> None:
        self.kept = kept


def kept_by(core: ChatCore) -> Kept:
    """What the store of a core would give to the next one. The core is of no use afterwards."""
    opened = _Opened()
    core.archive.store.open(opened, 0)
    return opened.kept


class FillingTransport(StringTransport):
    """A transport with a buffer as Twisted's: full, it pauses its producer, and resumes it when all of it is sent."""

    disconnected = False

    def __init__(self, size: int = 65536) -> None:
        super().__init__()
        self._size = size
        self._buffer = bytearray()
        self._full = False

    def write(self, data: bytes) -> None:
        self._buffer += data
        if self.producer and not self._full and len(self._buffer) > self._size:
            self._full = True
            self.producer.pauseProducing()

    def flush(self, most: int | None = None) -> None:
        """Give the kernel what was written; at most as many bytes."""
        sent = bytes(self._buffer[:most])
        del self._buffer[:most]
        super().write(sent)
        if self.producer and self._full and not self._buffer:
            self._full = False
            self.producer.resumeProducing()

    def read(self) -> bytes:
        """Take what the kernel has."""
        data: bytes = self.value()
        self.clear()
        return data


def client(core: ChatCore, name: str | None = None, transport: Any = None) -> Client:
    """A client past its greeting; the others have seen it come."""
    made = Client(core, transport)
    if name:
        made.sends(f"/nick {name}\n")
    made.sees()
    return made
