"""The chat: its members and rooms, and who is sent what. Knows no wire form."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from netsvc.base.bucket import Bucket
from netsvc.base.errors import UserError
from netsvc.base.hosts import UNKNOWN, is_loopback
from netsvc.base.text import escape
from netsvc.interfaces import Context
from netsvc.services.chat.accounts import Accounts
from netsvc.services.chat.archive import Archive, event_of
from netsvc.services.chat.cloak import Cloak, load_secret
from netsvc.services.chat.congestion import Congestion
from netsvc.services.chat.events import (
    Audience,
    Away,
    Closed,
    Delivery,
    Departed,
    Described,
    Displaced,
    Event,
    Expelled,
    Identified,
    Joined,
    Left,
    MemberOrigin,
    Noticed,
    Outlet,
    Proclaimed,
    Reason,
    Renamed,
    Retitled,
    Stopping,
    Tagged,
    Whispered,
)
from netsvc.services.chat.markers import ReadMarkers, marker_key
from netsvc.services.chat.moderation import LONGEST_REASON, Moderation
from netsvc.services.chat.names import (
    ChatError,
    EmptyTextError,
    NameIndex,
    NameTakenError,
    check_name,
    find_key,
    name_key,
    reserved_names,
)
from netsvc.services.chat.options import ChatOptions, read_password
from netsvc.services.chat.places import Places
from netsvc.services.chat.presence import Presence
from netsvc.services.chat.room import LOBBY, ChatRoom, Member, Rooms, tenth
from netsvc.services.chat.rules import Role
from netsvc.services.chat.store.interface import AccountRecord, Kept, NewMessage, Store
from netsvc.services.chat.store.open import build_store, store_limits
from netsvc.services.chat.text import clean_text, is_visible

__all__ = ["LOBBY", "ChatCore", "ChatRoom", "Member"]


class ChatCore:
    """The state that all protocols share.

    A protocol creates a member with `enter` and ends it with `depart`. What a member does is delivered to the others;
    the member itself gets no event, for the call has returned to its protocol. Any two receivers of the same two
    events get them in the same order. Methods that take a member's text raise `ChatError` if they refuse, and then
    have changed nothing; they store and deliver cleaned text only (`clean_text`). Methods that send something to
    others raise `CongestedError` if one of these is behind, and then have changed nothing either.
    """

    def __init__(
        self,
        options: ChatOptions,
        context: Context,
        now: Callable[[], float] = time.time,
        store: Store | None = None,
    ) -> None:
        self.options = options
        self.context = context
        #: The time in seconds since 1970, for what is shown and kept.
        self.now = now
        self.rooms = Rooms(options, self._close, self._forget)
        self._members: NameIndex[Member] = NameIndex()
        self._reserve(options)
        self.moderation = Moderation(self)
        self._places: Places[Member] = Places()
        self._guests = 0
        #: The greatest number of members that there were at a time.
        self.most_members = 0
        self._draining = False
        #: Called in a drain, after the goodbye.
        self.drains: list[Callable[[], None]] = []
        #: Protocols handle what arrived in one piece in one `with` block, so that it is delivered together.
        self.delivery = Delivery(context.log)
        self.presence = Presence(self.delivery.send)
        self.cloak = Cloak()
        self._ids = 0
        self._nonce = os.urandom(6).hex()
        #: Bounds the log records of connections that speak another protocol.
        self.foreign = Bucket(1, 10, context.reactor.seconds())
        self.congestion = Congestion(context.reactor, options["send-rate"])
        self.archive = Archive(
            store or build_store(options, context, now),
            store_limits(options),
            self.delivery,
            context.reactor,
            context.log,
            opened=self._opened,
            find=self.rooms.find,
            everyone=lambda: [member.deliver for member in self._members],
        )
        self.markers = ReadMarkers(self.archive.store)
        self.accounts = Accounts(self.archive.store, context.reactor, now)
        metrics = context.metrics
        self._messages = metrics.counter("messages", "Messages to a room, or to one member")
        self.archive.sent = self._messages.inc
        self.archive.unsent = metrics.counter("unsent", "Messages refused because they could not be kept").inc
        self._gauges = {
            metrics.gauge("members", "Members in the chat"): self.__len__,
            metrics.gauge("rooms", "Rooms that have members"): self._count_rooms,
            metrics.gauge("behind", "Members that are behind, to whom others send slowly"): self.congestion.__len__,
        }

    def _reserve(self, options: ChatOptions) -> None:
        #: The keys of the accounts that operate the whole chat.
        self.server_operators = frozenset(map(name_key, options["operators"] or ()))
        self._reserved = reserved_names(options["reserved"] or ())
        # Of an operator's name that is not registered yet, anyone could make an operator's account.
        self._reserved_elsewhere = reserved_names([*(options["reserved"] or ()), *(options["operators"] or ())])

    def _reserved_for(self, peer: str, account: AccountRecord | None) -> NameIndex[str]:
        """Return the names that a member cannot have. A client on this machine can have an operator's."""
        here = peer == UNKNOWN or is_loopback(peer)
        is_operator = account is not None and account.key in self.server_operators
        return self._reserved if here or is_operator else self._reserved_elsewhere

    def check(self) -> None:
        """Raise `UserError` if the store cannot be opened, or the file of a password cannot be read."""
        self.archive.store.check()
        self._read_password(self.options)

    def _read_password(self, options: ChatOptions) -> None:
        #: What clients of IRC must send as `PASS`; empty if they need not.
        self.password = read_password(options["irc-password"]) if options["irc-password"] is not None else ""

    def start(self) -> None:
        """Open the store, and register the gauges. Raises `UserError`."""
        self._read_password(self.options)
        if self.context.state_directory is not None:
            self.cloak = Cloak(load_secret(self.context.make_state_directory() / "cloak.key"))
        self.archive.open(self.options["history"])
        for gauge, count in self._gauges.items():
            gauge.add_function(count)

    def stop(self) -> None:
        """Close the store, and unregister the gauges."""
        self.archive.close()
        for gauge, count in self._gauges.items():
            gauge.remove_function(count)

    def _opened(self, kept: Kept) -> None:
        """Take what the store has: the rooms, those used last at the end."""
        self.accounts.restore(kept.accounts)
        last = {room: messages[-1].time for room, messages in kept.messages.items() if messages}
        for record in sorted(kept.rooms, key=lambda record: last.get(record.key, record.made)):
            room = self.rooms.restore(record)
            messages = kept.messages.get(record.key, ())
            room.history.extend((message.time, event_of(room.name, message)) for message in messages)
            room.last_id = messages[-1].id if messages else 0
        self.rooms.shrink()

    @property
    def log(self) -> Logger:
        """The log of the service."""
        return self.context.log

    @property
    def members(self) -> Iterable[Member]:
        """All members."""
        return self._members

    def key_of(self, text: str) -> str | None:
        """Return the `name_key` of a name, None if it is too long to be one."""
        return find_key(text, self.options["name-length"])

    def keep_room(self, room: ChatRoom) -> None:
        """Keep a room as it is now."""
        room.made = room.made or self.now()
        room.is_kept = True
        self.archive.keep(room.record)

    def _forget(self, room: ChatRoom) -> None:
        self.archive.forget(room.record)

    def _count_rooms(self) -> int:
        return sum(bool(room.members) for room in self.rooms)

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._members)

    def reconfigure(self, options: ChatOptions) -> bool:
        """Take new options in place, so that a reload does not separate new members from present ones.

        Raises `UserError` if the store is to be another one.
        """
        changed = [name for name in ("store", "sync") if options[name] != self.options[name]]
        if changed:
            raise UserError([f"{' and '.join(changed)} cannot change in a reload; restart netsvc"])
        self._read_password(options)
        self.options = options
        self._reserve(options)
        self.rooms.reconfigure(options)
        self.congestion.rate = options["send-rate"]
        self.archive.limit(store_limits(options))
        return True

    def enter(
        self,
        outlet: Outlet,
        name: str = "",
        account: AccountRecord | None = None,
        *,
        user: str = "chat",
        real_name: str = "",
    ) -> Member:
        """Create a member in no room, with a guest name if it has no other, and logged in to an account if it has one.

        Raises `ChatError` if the chat is full or stopping, or if it cannot have that name.
        """
        if self._draining:
            raise ChatError("the server is stopping; try again later")
        if len(self._members) >= self.options["members"] and not self._make_room(outlet.peer):
            raise ChatError(f"the chat is full ({len(self._members)} members); try again later")
        name = self._take_name(name, outlet.peer, account) if name else self._guest_name()
        bucket = Bucket(self.options["rate"], self.options["burst"], self.context.reactor.seconds())
        member = Member(name, outlet, bucket)
        member.account = account
        member.real_name = real_name
        member.source = MemberOrigin(user, self.cloak.host(outlet.peer), account.name if account else "")
        member.entered = member.spoke = self.now()
        self._members.add(member.name, member)
        self._places.heard(member, self.context.reactor.seconds())
        self.most_members = max(self.most_members, len(self._members))
        self.presence.came(member)
        return member

    def _guest_name(self) -> str:
        # No member can take such a name: see `check_name`.
        self._guests += 1
        return f"guest{self._guests}"

    def _make_room(self, peer: str) -> bool:
        """Disconnect a member that has to make room for a new one of `peer`, if there is one; see `Places`."""
        options = self.options
        now = self.context.reactor.seconds()
        kept = options["peer-members"] or tenth(options["members"], 50)
        found = self._places.find_victim(peer, now, kept=kept, silence=options["silence"])
        if found is None:
            return False
        victim, crowd = found
        victim.deliver(Displaced(crowd))
        victim.outlet.end()
        self.depart(victim, Reason.CROWDED if crowd else Reason.SILENT)
        return True

    def depart(self, member: Member, reason: Reason = Reason.ASKED, why: str = "") -> None:
        """Remove a member from the chat and from its rooms. Does nothing if it has left already.

        `why` is what it says itself.
        """
        if self._members.get(member.key) is not member:
            return
        self._members.remove(member.name)
        self.presence.went(member, self.now())
        self._places.leave(member)
        self.congestion.caught_up(member)
        rooms = list(member.rooms)
        self._note_read(member, rooms)
        for room in rooms:
            self.rooms.leave(room, member)
        # When everybody leaves at once, no one needs to know of each.
        if not self._draining:
            why = clean_text(why)[:LONGEST_REASON]
            departed = Departed(member.name, reason, why, source=member.source)
            self._note(departed, rooms)
            self.delivery.send(_neighbours(rooms), departed)

    def drain(self) -> Deferred[None]:
        """Refuse new members and messages; keep and deliver what was sent; disconnect every member after a goodbye."""
        self._draining = True
        for member in self._members:
            self._note_read(member, member.rooms)
        return self.archive.close().addCallback(lambda _: self._say_goodbye())

    def _note_read(self, member: Member, rooms: Iterable[ChatRoom]) -> None:
        """Advance the read markers of an account for what was delivered to its member, if that is read then."""
        if member.reads and member.account is not None and not self.archive.is_closed:
            for room in rooms:
                self.markers.advance(member.account.key, marker_key(room), int(self.now() * 1000))

    def _say_goodbye(self) -> None:
        members = list(self._members)
        self.delivery.send([member.deliver for member in members], Stopping())
        # Even in the middle of a `with` block: what is delivered after `end` is lost.
        self.delivery.flush()
        for member in members:
            member.outlet.end()
            self.depart(member)
        for end in self.drains:
            end()

    def wait(self, member: Member) -> float:
        """Count one action against a member's rate, and return 0.0; or return the seconds until it may act.

        A protocol asks before each thing that it does for a member, and delays or refuses what has to wait.
        `member.slowed` is 1 the first time that it must, which is when to report it.
        """
        now, bucket = self.context.reactor.seconds(), member.bucket
        self._places.heard(member, now)
        if member.slowed and bucket.left(now) >= bucket.burst:
            member.slowed = 0
        if wait := bucket.wait(1, now):
            member.slowed += 1
        else:
            bucket.take(1, now)
        return wait

    def get(self, key: str | None) -> Member | None:
        """Return the member with that key (`key_of`)."""
        return self._members.get(key)

    def find(self, name: str) -> Member:
        """Return the member of that name, whatever its case. Raises `ChatError` if there is none."""
        member = self._members.get(find_key(name, self.options["name-length"]))
        if member is None:
            raise ChatError(f'no such member: "{escape(name, 40)}"; /who lists the members of a room')
        return member

    def rename(self, member: Member, text: str) -> None:
        """Change a member's name."""
        name = self.check_free(text, member.peer, member.account, member)
        if name == member.name:
            raise ChatError(f"your name is {name} already")
        self.congestion.admit({other for room in member.rooms for other in room.members}, member.name, name)
        self._rename(member, self._take_name(name, member.peer, member.account, member))

    def check_free(self, text: str, peer: str, account: AccountRecord | None, member: Member | None = None) -> str:
        """Return `text` as the name that a member, or one to come, of that peer and account can have.

        Raises `NameTakenError`, or `ChatError` if no one could have it. Of its own account, it can have the name that
        someone else has now, and takes it away.
        """
        name = check_name(text, self.options["name-length"], self._reserved_for(peer, account))
        owner = self.accounts.owner(name)
        is_own = owner is not None and account is not None and owner.key == account.key
        similar = self._members.similar(name)
        if similar is not None and similar is not member and not is_own:
            taken = similar.key == name_key(name)
            why = "is taken" if taken else f"looks like {similar.name}, who is here"
            raise NameTakenError(f"the name {name} {why}; choose another one")
        if owner is not None and not is_own:
            what = "is" if owner.key == name_key(name) else f"looks like {owner.name}, which is"
            raise NameTakenError(f"the name {name} {what} registered; if it is yours, /login {owner.name} PASSWORD")
        return name

    def _take_name(self, text: str, peer: str, account: AccountRecord | None, member: Member | None = None) -> str:
        """Return `check_free`, after taking the name away from who has it."""
        name = self.check_free(text, peer, account, member)
        holder = self._members.similar(name)
        if holder is not None and holder is not member:
            self._end(holder, Expelled(), Reason.REPLACED)
        return name

    def _rename(self, member: Member, name: str) -> None:
        old = member.name
        self._members.remove(old)
        # In other capitals, it is the same name.
        is_other = name_key(name) != member.key
        if is_other:
            self.presence.went(member, self.now())
        member.name, member.key = name, name_key(name)
        self._members.add(name, member)
        if is_other:
            self.presence.came(member)
        renamed = Renamed(old, name, source=member.source)
        self._note(renamed, member.rooms)
        self._tell(member, _neighbours(member.rooms), renamed)

    def _note(self, event: Event, rooms: Iterable[ChatRoom]) -> None:
        for room in rooms:
            room.note(event, self.now())

    def _tell(self, member: Member, audience: Audience, event: Event, characters: int = 0) -> None:
        """Deliver what a member did to the others of an audience, and to its own protocol."""
        member.own(event)
        self.delivery.send(audience, event, member.deliver, characters)

    def _identify(self, member: Member, account: AccountRecord | None) -> None:
        member.account = account
        member.source = member.source._replace(account=account.name if account is not None else "")
        event = Identified(member.name, member.source.account, source=member.source)
        self._tell(member, self._near(member), event)

    def _near(self, member: Member) -> Audience:
        """Return the `deliver` of those who hear what a member says of itself."""
        return list(dict.fromkeys([*_neighbours(member.rooms), *self.presence.close_watchers(member.key)]))

    def register(self, member: Member, password: str) -> Deferred[None]:
        """Register a member's name, and log it in. Fails with `ChatError` or `StoreError`; see `Accounts`."""
        if member.account is not None:
            raise ChatError(f"you are logged in as {member.account.name} already")
        # A guest's name is reserved.
        reserved = self._reserved_for(member.peer, member.account)
        name = check_name(member.name, self.options["name-length"], reserved)

        def registered(account: AccountRecord) -> None:
            # It may have gone, or have another name now: the account stays, with its password.
            if self._is_present(member):
                self._identify(member, account)

        return self.accounts.register(name, password, member.peer).addCallback(registered)

    def login(self, member: Member, name: str, password: str) -> Deferred[None]:
        """Log a member in, and give it the account's name, from whoever has it. Fails as `register` does."""

        def logged_in(account: AccountRecord) -> None:
            if not self._is_present(member):
                return
            self._identify(member, account)
            # By look: one that only looks like it came before it was registered.
            holder = self._members.similar(account.name)
            if holder is not None and holder is not member:
                self._end(holder, Expelled(), Reason.REPLACED)
            if member.name != account.name:
                self._rename(member, account.name)

        return self.authenticate(name, password, member.peer).addCallback(logged_in)

    def authenticate(self, name: str, password: str, peer: str) -> Deferred[AccountRecord]:
        """Return the account of that name if the password is right. Fails as `register` does."""
        return self.accounts.login(self.key_of(name), escape(name, 40), password, peer)

    def operate(self, member: Member, name: str, password: str) -> Deferred[None]:
        """Make a member an operator of the chat by an account that is one. Fails as `register` does."""

        def authenticated(account: AccountRecord) -> None:
            if account.key not in self.server_operators:
                raise ChatError(f"{account.name} is no operator of this chat")
            member.is_operator = True

        return self.authenticate(name, password, member.peer).addCallback(authenticated)

    def logout(self, member: Member) -> None:
        """Log a member out; it gets a guest's name."""
        if member.account is None:
            raise ChatError("you are not logged in")
        self._identify(member, None)
        for room in member.rooms:
            room.rules.present.discard(member)
        self._rename(member, self._guest_name())

    def expel(self, member: Member, by: str, why: str) -> None:
        """Disconnect a member."""
        self._end(member, Expelled(by, why), Reason.EXPELLED)

    def _end(self, member: Member, event: Expelled, reason: Reason) -> None:
        member.deliver(event)
        member.outlet.end()
        self.depart(member, reason)

    def _is_present(self, member: Member) -> bool:
        return self._members.get(member.key) is member

    def join(self, member: Member, text: str, key: str = "", *, at_once: bool = False) -> ChatRoom:
        """Add a member to a room, which is created if necessary, and return it. Does nothing if it is in it already.

        Raises `EntryError` if the room is not for it.

        `at_once`: do not wait for receivers that are behind. For a new member, which would see nothing until then.
        """
        room = self.rooms.find(text)
        if room is not None and room in member.rooms:
            return room
        if len(member.rooms) >= self.options["member-rooms"]:
            raise ChatError(f"you are in {len(member.rooms)} rooms, which is the limit; leave one first")
        if room is not None and self.moderation.role(member, room) is Role.MEMBER:
            room.rules.check_entry(member, room.name, self.now(), key, len(room.members))
        if room is not None and not at_once:
            self.congestion.admit(room.members.keys(), room.name, member.name)
        room = self.rooms.open(text, member.peer)
        self.rooms.enter(room, member)
        if not room.is_kept:
            self.keep_room(room)
        joined = Joined(room.name, member.name, member.real_name, member.away, source=member.source)
        self._note(joined, [room])
        self._tell(member, room.everyone, joined)
        return room

    def _close(self, room: ChatRoom) -> None:
        """Remove all members from a room."""
        everyone = room.everyone
        for member in list(room.members):
            self.rooms.leave(room, member)
        self.delivery.send(everyone, Closed(room.name))

    def room_of(self, member: Member, text: str) -> ChatRoom:
        """Return a room that the member is in. Raises `ChatError` if it is not in such a room."""
        room = self.rooms.find(text)
        if room is None or room not in member.rooms:
            raise ChatError(f'you are not in a room "{escape(text, 40)}"')
        return room

    def leave(self, member: Member, room: ChatRoom, why: str = "") -> None:
        """Remove a member from a room that it is in. `why` is what it says itself."""
        why = clean_text(why)[:LONGEST_REASON]
        self.congestion.admit(room.members.keys(), room.name, member.name, why)
        self._note_read(member, [room])
        self.rooms.leave(room, member)
        left = Left(room.name, member.name, why, source=member.source)
        self._note(left, [room])
        self._tell(member, room.everyone, left)

    def retitle(self, member: Member, room: ChatRoom, text: str) -> None:
        """Change the topic of a room that the member is in; an empty one removes it."""
        topic = _visible(text).strip() if text else ""
        limit = self.options["topic-length"]
        if len(topic) > limit:
            raise ChatError(f"that topic has {len(topic)} characters; the limit is {limit}")
        if "topic" in room.rules.modes:
            self.moderation.require(member, room)
        self.congestion.admit(room.members.keys(), room.name, member.name, topic)
        self.archive.check("the topic is unchanged")
        room.topic, room.topic_by, room.topic_time = topic, member.name, self.now()
        self.keep_room(room)
        retitled = Retitled(room.name, member.name, topic, source=member.source)
        self._note(retitled, [room])
        self._tell(member, room.everyone, retitled, len(topic))

    def say(self, member: Member, room: ChatRoom, text: str, tags: str = "") -> None:
        """Send a message to a room that the member may speak in. It is delivered when it is kept."""
        self._talk(member, room, NewMessage(room.key, member.name, _visible(text), _account(member)), tags)

    def act(self, member: Member, room: ChatRoom, text: str, tags: str = "") -> None:
        """Send what the member does (`waves`) to a room that it may speak in. It is delivered when it is kept."""
        self._talk(member, room, NewMessage(room.key, member.name, _visible(text), _account(member), acted=True), tags)

    def check_speech(self, member: Member, room: ChatRoom) -> None:
        """Raise `ChatError` if a member may not speak in a room, though it is not in it."""
        if room not in member.rooms and "outside" not in room.rules.modes:
            raise ChatError(f"not sent: you are not in {room.name}")
        if room.rules.is_restricted and self.moderation.role(member, room) is Role.MEMBER:
            room.rules.check_speech(member, room.name, self.now())

    def _talk(self, member: Member, room: ChatRoom, new: NewMessage, tags: str) -> None:
        self.check_speech(member, room)
        archive = self.archive
        archive.check("not sent")
        if self._draining:
            raise ChatError("not sent: the server is stopping")
        if archive.store.is_behind:
            # It slows senders as a member that is behind does.
            self.congestion.fell_behind(archive)
            self.congestion.admit({archive}, new.text)
        else:
            self.congestion.caught_up(archive)
        self.congestion.admit(room.members.keys(), room.name, member.name, new.text, tags)
        archive.append(member, room, new, tags)
        member.spoke = self.now()

    def notify(self, member: Member, to: ChatRoom | Member, text: str, tags: str = "") -> None:
        """Send a notice, which is not kept, to a room that the member may speak in, or to one member."""
        self._pass_on(member, to, Noticed("", member.name, _visible(text), tags=tags, source=member.source))

    def tag(self, member: Member, to: ChatRoom | Member, tags: str) -> None:
        """Send tags without a text, which are not kept, to a room that the member may speak in, or to one member."""
        self._pass_on(member, to, Tagged("", member.name, tags=tags, source=member.source))

    def _pass_on(self, member: Member, to: ChatRoom | Member, event: Noticed | Tagged) -> None:
        if isinstance(to, ChatRoom):
            self.check_speech(member, to)
        receivers = to.members.keys() if isinstance(to, ChatRoom) else {to}
        self.congestion.admit(receivers, member.name, event.tags, getattr(event, "text", ""))
        room, receiver = (to.name, "") if isinstance(to, ChatRoom) else ("", to.name)
        event = replace(event, id=self.new_id(), room=room, to=receiver)
        member.own(event)
        everyone = to.everyone if isinstance(to, ChatRoom) else (to.deliver,)
        self.delivery.send(everyone, event, None if to is member else member.deliver)

    def proclaim(self, member: Member, text: str) -> None:
        """Send a notice to all who operate the chat. The caller sees to it that the member does."""
        text = _visible(text)
        operators = {each for each in self._members if self.moderation.is_server_operator(each)}
        self.congestion.admit(operators, member.name, text)
        event = Proclaimed(member.name, text, source=member.source)
        self._tell(member, [each.deliver for each in operators], event)

    def new_id(self) -> str:
        """Return an id for something that is not kept."""
        self._ids += 1
        return f"{self._ids:x}-{self._nonce}"

    def set_away(self, member: Member, text: str) -> None:
        """Note that a member is away, with what it says of it; an empty text: that it is back."""
        text = clean_text(text)[:LONGEST_REASON]
        neighbours = {other for room in member.rooms for other in room.members}
        self.congestion.admit(neighbours, member.name, text)
        member.away = text
        self._tell(member, self._near(member), Away(member.name, text, source=member.source))

    def describe(self, member: Member, text: str) -> None:
        """Change a member's real name."""
        text = clean_text(text)[:LONGEST_REASON]
        neighbours = {other for room in member.rooms for other in room.members}
        self.congestion.admit(neighbours, member.name, text)
        member.real_name = text
        self._tell(member, self._near(member), Described(member.name, text, source=member.source))

    def forget(self, account: str) -> Deferred[int]:
        """Delete the messages of an account in all rooms; return their number. Fails with `StoreError`."""

        def forgotten(count: int) -> int:
            for room in self.rooms.all():
                room.history = deque((each for each in room.history if each[1].account != account), room.history.maxlen)
            return count

        return self.archive.store.forget(account).addCallback(forgotten)

    def whisper(self, member: Member, receiver: Member, text: str, tags: str = "", *, acted: bool = False) -> str:
        """Send a message to one member alone; return it as it was sent."""
        text = _visible(text)
        self.congestion.admit({receiver}, member.name, text)
        self._messages.inc()
        to, source = receiver.name, member.source
        event = Whispered(member.name, text, to, self.new_id(), acted, source=source, tags=tags)
        member.spoke = self.now()
        member.own(event)
        self.delivery.send((receiver.deliver,), event)
        return text


def _account(member: Member) -> str:
    return member.account.key if member.account is not None else ""


def _neighbours(rooms: Iterable[ChatRoom]) -> Audience:
    """Return the `deliver` of every member of any of the rooms, each once."""
    return list({deliver: None for room in rooms for deliver in room.everyone})


def _visible(text: str) -> str:
    cleaned = clean_text(text)
    if not is_visible(cleaned):
        raise EmptyTextError("the message is empty")
    return cleaned
