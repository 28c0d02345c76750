"""One client of the IRC protocol: who it is, what it understands, and how it is answered. Knows no transport."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from netsvc.base.bucket import Bucket
from netsvc.services.chat.connection import Outbox
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import (
    Acted,
    Closed,
    Event,
    Marked,
    Noticed,
    Outlet,
    Reason,
    Said,
    Several,
    Tagged,
    Unsent,
    Whispered,
)
from netsvc.services.chat.irc.form import Detail, IrcForm, irc_form, irc_time
from netsvc.services.chat.irc.message import IrcMessage, escape_tag, format_message, with_tag
from netsvc.services.chat.presence import Absent, Present
from netsvc.services.chat.room import ChatRoom, Member
from netsvc.services.chat.rules import Role
from netsvc.services.chat.store.interface import AccountRecord

__all__ = ["CAPABILITIES", "IrcSession", "Labelled"]

#: The capabilities whose presence changes the lines of events.
_DETAILS = {
    "server-time": Detail.TIME,
    "account-tag": Detail.ACCOUNT_TAG,
    "message-tags": Detail.TAGS,
    "extended-join": Detail.EXTENDED_JOIN,
    "away-notify": Detail.AWAY,
    "account-notify": Detail.ACCOUNT,
    "setname": Detail.SETNAME,
    "invite-notify": Detail.INVITE,
}
#: All that every client can have; `sasl`, `draft/account-registration` and `sts` depend on the connection.
CAPABILITIES = (
    *_DETAILS,
    "batch",
    "cap-notify",
    "draft/chathistory",
    "draft/event-playback",
    "draft/read-marker",
    "echo-message",
    "extended-monitor",
    "labeled-response",
    "multi-prefix",
    "standard-replies",
    "userhost-in-names",
)


class Labelled:
    """The answer to a command with a label: what it consists of so far, and how much is to come."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: list[bytes] = []
        #: Its messages whose echoes are to come; and whether the command itself is done.
        self.echoes = 0
        self.is_done = False


class IrcSession:
    """One client, whose lines go into `outbox`; `over` says that the connection is to be closed."""

    def __init__(self, core: ChatCore, outlet: Outlet, outbox: Outbox) -> None:
        self.core = core
        self.outlet = outlet
        self.options = core.options
        self.server: str = core.options["irc-name"]
        self._outbox = outbox
        now = core.context.reactor.seconds()
        self.bucket = Bucket(core.options["rate"], core.options["burst"], now)
        self.member: Member | None = None
        self.over = False
        #: What it says to the others when it leaves.
        self.farewell = ""
        self.form: IrcForm = irc_form(self.server, Detail(0), core.now)
        outbox.form = self.form
        #: What it has said of itself until it is registered.
        self.nick = self.user = self.real_name = self.password = ""
        self.account: AccountRecord | None = None
        self.capabilities: set[str] = set()
        #: The version of its capability negotiation, and whether it has begun and not ended that.
        self.version = 0
        self.negotiates = False
        #: What it has sent of a SASL exchange; None if there is none.
        self.exchange: list[str] | None = None
        #: The names that it watches, by their keys; and of a guest, up to when it has read each room (milliseconds).
        self.watched: dict[str, str] = {}
        self.markers: dict[str, int] = {}
        self._batches = 0
        #: The message that is being processed, how many of its targets are done, and its answer if it has a label.
        self._message: IrcMessage | None = None
        self._done = 0
        self._labelled: Labelled | None = None
        #: For each message of its own whose echo is to come, the answer that the echo belongs to.
        self._echoes: deque[Labelled | None] = deque()

    @property
    def name(self) -> str:
        """What the server calls it."""
        return self.member.name if self.member is not None else self.nick or "*"

    @property
    def me(self) -> Member:
        """The member that it is. Only for commands of registered clients."""
        assert self.member is not None
        return self.member

    def has(self, capability: str) -> bool:
        """Return whether the client has asked for a capability."""
        return capability in self.capabilities

    def change_capabilities(self, capabilities: set[str]) -> None:
        """Note what the client understands now."""
        self.capabilities = capabilities
        details = Detail(0)
        for name in capabilities:
            details |= _DETAILS.get(name, Detail(0))
        self.form = irc_form(self.server, details, self.core.now)
        self._adapt()
        if self.member is not None:
            self.member.echoes = "echo-message" in capabilities

    def _adapt(self) -> None:
        """Take rendered events, unless one may be an echo."""
        self._outbox.form = None if self._echoes else self.form

    # What it is sent.

    def reply(self, code: str, *params: str) -> None:
        """Answer with a numeric; the last parameter may have spaces. What a client wrote is made fit for the others."""
        *middle, last = params
        words = [each if each and " " not in each and each[0] != ":" else _word(each) for each in middle]
        self.answer(format_message(code, self.name, *words, last, source=self.server))

    def fail(self, command: str, code: str, *params: str) -> None:
        """Answer with a standard reply. All clients get these, as no numeric would say as much."""
        self.answer(format_message("FAIL", command, code, *params, source=self.server))

    def notice(self, text: str) -> None:
        """Show a line of the server's."""
        self.answer(format_message("NOTICE", self.name, text, source=self.server))

    def answer(self, line: str) -> None:
        """Answer with a line."""
        self._answer([f"{line}\r\n".encode("utf-8", "replace")])

    def _answer(self, lines: list[bytes]) -> None:
        if self._labelled is not None:
            self._labelled.lines += lines
        else:
            self._send(b"".join(lines))

    def listed(self, code: str, head: tuple[str, ...], words: Iterable[str], most: int = 400) -> None:
        """Answer with words in as many numerics as they need, of `most` bytes each."""
        line: list[str] = []
        size = 0
        for word in words:
            length = len(word.encode("utf-8", "replace")) + 1
            if line and size + length > most:
                self.reply(code, *head, " ".join(line))
                line, size = [], 0
            line.append(word)
            size += length
        if line:
            self.reply(code, *head, " ".join(line))

    def batch(self, kind: str, *params: str) -> Batch:
        """Return a batch to answer with: a `with` block in which lines are added."""
        self._batches += 1
        return Batch(self, f"b{self._batches}", kind, params)

    def _send(self, data: bytes) -> None:
        # Not kept: the outbox replaces it as the transport fills and empties.
        self._outbox.send(data)

    # What happens.

    def deliver(self, event: Event) -> None:
        """Send the lines of an event."""
        data = event.rendered.get(self.form)
        if data is None:
            data = self.form.render(event)
        if not self._echoes and data:
            self._outbox.send_event(data)
            return
        for each in event.events if isinstance(event, Several) else (event,):
            self._deliver_one(each)

    def _deliver_one(self, event: Event) -> None:
        if self._echoes and isinstance(event, Said | Acted) and event.name == self.name:
            self._echo(event)
        elif isinstance(event, Unsent):
            self._unsent(event)
        elif isinstance(event, Closed):
            reason = "all rooms are in use, and this one was closed"
            self._send(self._line("KICK", f"#{event.room}", self.name, reason))
        elif isinstance(event, Present):
            self._send(self._line("730", self.name, self.form.mask(event.name, event.source)))
        elif isinstance(event, Absent):
            self._send(self._line("731", self.name, event.name))
        elif isinstance(event, Marked):
            if self.has("draft/read-marker"):
                self._send(self._line("MARKREAD", event.target, f"timestamp={irc_time(event.time / 1000)}"))
        elif data := self.form.render(event):
            self._send(data)

    def _line(self, command: str, *params: str) -> bytes:
        return f"{format_message(command, *params, source=self.server)}\r\n".encode("utf-8", "replace")

    def _echo(self, event: Said | Acted) -> None:
        labelled = self._echoes.popleft()
        self._adapt()
        lines = [f"{line}\r\n".encode("utf-8", "replace") for line in self.form.lines(event)]
        if labelled is None:
            self._send(b"".join(lines))
            return
        labelled.lines += lines
        self._echoed(labelled)

    def _unsent(self, event: Unsent) -> None:
        labelled = self._echoes.popleft() if self._echoes else None
        self._adapt()
        line = self._line("404", self.name, f"#{event.room}", f"Not sent, as {event.reason}: {event.text[:100]}")
        if labelled is None:
            self._send(line)
            return
        labelled.lines.append(line)
        self._echoed(labelled)

    def _echoed(self, labelled: Labelled) -> None:
        labelled.echoes -= 1
        if labelled.is_done and not labelled.echoes:
            self._send_labelled(labelled)

    def own(self, event: Event) -> None:
        """Send the lines of what the client's own member did."""
        if isinstance(event, Whispered | Noticed | Tagged) and not self.has("echo-message"):
            return
        self._answer([f"{line}\r\n".encode("utf-8", "replace") for line in self.form.lines(event)])

    def expect_echo(self) -> None:
        """Note that a message to a room was accepted, whose echo comes when it is kept."""
        if self.has("echo-message"):
            self._echoes.append(self._labelled)
            self._adapt()
            if self._labelled is not None:
                self._labelled.echoes += 1

    # One command at a time.

    def begin(self, message: IrcMessage) -> None:
        """Begin to process a message. The same one again: go on where it had to wait."""
        if message is self._message:
            return
        self._message, self._done = message, 0
        self._labelled = None
        label = message.tags.get("label")
        if label and self.has("labeled-response") and self.has("batch"):
            self._labelled = Labelled(label)

    def each(self, targets: Iterable[str]) -> Iterator[str]:
        """Iterate over the targets of a command that are not done, if it is repeated because it had to wait."""
        for number, target in enumerate(targets):
            if number >= self._done:
                yield target
                self._done = number + 1

    def finish(self) -> None:
        """Note that the message is processed, and answered but for what is kept later."""
        labelled, self._labelled, self._message = self._labelled, None, None
        if labelled is None:
            return
        labelled.is_done = True
        if not labelled.echoes:
            self._send_labelled(labelled)

    def _send_labelled(self, labelled: Labelled) -> None:
        label = f"label={escape_tag(labelled.label)}"
        lines = labelled.lines
        if not lines:
            lines = [self._line("ACK")]
        first, last = lines[0], lines[-1]
        marks = first.split(b" ", 3)
        is_batch = marks[1] == b"BATCH" and last.split()[-1] == b"-" + marks[2].rstrip()[1:]
        if len(lines) > 1 and not is_batch:
            self._batches += 1
            name = f"b{self._batches}"
            inner = [
                line if b"batch=" in line.split(b" ", 1)[0] else with_tag([line], f"batch={name}")[0] for line in lines
            ]
            opening = self._line("BATCH", f"+{name}", "labeled-response")
            lines = [opening, *inner, self._line("BATCH", f"-{name}")]
        self._send(b"".join([*with_tag(lines[:1], label), *lines[1:]]))

    # Its place in the chat.

    def end(self, reason: Reason, why: str = "") -> None:
        """Leave the chat. Does nothing if it has left it, or never entered."""
        if self.member is not None:
            self.core.presence.unwatch(self.watched, self.member.deliver)
            self.core.depart(self.member, reason, why)

    def find_room(self, text: str) -> ChatRoom | None:
        """Return the room that a channel's name means, if the client may know that it exists."""
        room = self.core.rooms.find(text) if text.startswith("#") else None
        if room is None or not (room.members or room.is_permanent):
            return None
        return room

    def sees(self, room: ChatRoom) -> bool:
        """Return whether the client may know who is in a room."""
        return room in self.me.rooms or "secret" not in room.rules.modes or self.is_operator

    @property
    def is_operator(self) -> bool:
        """Whether it operates the whole chat."""
        return self.core.moderation.is_server_operator(self.me)

    def shares_room(self, other: Member) -> bool:
        """Return whether it is in a room with another member, or is that member."""
        return other is self.me or not self.me.rooms.keys().isdisjoint(other.rooms)

    def find_member(self, name: str) -> Member | None:
        """Return the member of a name."""
        return self.core.get(self.core.key_of(name))

    def prefix(self, room: ChatRoom, member: Member, *, all_of_them: bool = False) -> str:
        """Return the signs of a member's status in a room, the highest one or all."""
        operates = room.rules.role(member) >= Role.OPERATOR
        signs = "@" * operates + "+" * (member in room.rules.voiced)
        return signs if all_of_them else signs[:1]

    def note_registered(self) -> None:
        """Connect the client with its member."""
        member = self.me
        member.own = self.own
        member.echoes = self.has("echo-message")

    def mask(self, member: Member) -> str:
        """Return a member as `nick!user@host`."""
        return self.form.mask(member.name, member.source)


def _word(text: str) -> str:
    return text.replace(" ", "_").lstrip(":") or "*"


class Batch:
    """A batch of lines, or the lines alone for a client without batches."""

    def __init__(self, session: IrcSession, name: str, kind: str, params: tuple[str, ...]) -> None:
        self._session = session
        self._name = name
        self._opening = (f"+{name}", kind, *params)
        self._is_shown = session.has("batch")

    def __enter__(self) -> Batch:
        if self._is_shown:
            self._session.answer(format_message("BATCH", *self._opening, source=self._session.server))
        return self

    def __exit__(self, *_: Any) -> None:
        if self._is_shown:
            self._session.answer(format_message("BATCH", f"-{self._name}", source=self._session.server))

    def add(self, event: Event) -> None:
        """Add the lines of a message."""
        for line in self._session.form.lines(event, self._tag):
            self._session.answer(line)

    def replay(self, event: Event, time: float, id: str) -> None:
        """Add the line of something that happened at a time, under an id."""
        if line := self._session.form.replay(event, self._tag, time, id):
            self._session.answer(line)

    def line(self, line: str) -> None:
        """Add a line that has no tags."""
        self._session.answer(f"@{self._tag} {line}" if self._tag else line)

    @property
    def _tag(self) -> str:
        return f"batch={self._name}" if self._is_shown else ""
