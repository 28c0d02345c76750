"""Accounts: registered names, and the passwords that prove whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.threads import deferToThreadPool

from netsvc.base.bucket import PeerBuckets
from netsvc.base.passwords import PasswordError, hash_password, verify_password
from netsvc.services.chat.names import ChatError, NameIndex, name_key
from netsvc.services.chat.store.interface import AccountRecord, Store, StoreError

__all__ = ["Accounts"]

T = TypeVar("T")

#: Characters of a password, at least.
SHORTEST_PASSWORD = 8
#: Wrong passwords that an address may send at once, and a second from then on; and accounts that it may register. A
#: school has one address.
GUESS_BURST, GUESS_RATE = 10, 0.1
#: The same for each account, from all addresses together but the one that its owner logged in from last.
ACCOUNT_GUESS_BURST, ACCOUNT_GUESS_RATE = 100, 1 / 36
REGISTRATION_BURST, REGISTRATION_RATE = 40, 1 / 60
#: Passwords that are hashed at once, each in 32 MiB and some tenths of a second; and that wait for it.
AT_ONCE, MOST_WAITING = 2, 64


class Accounts:
    """The accounts. A name that is registered, or looks like one that is, belongs to the account's owner.

    Passwords are hashed in threads, a few at once. An address that guesses is slowed down, and so are many addresses
    that guess the password of one account. The Deferreds fail with
    `ChatError`, or with `StoreError` if it could not be kept; then nothing has changed.
    """

    def __init__(self, store: Store, clock: Any, now: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._now = now
        self._index: NameIndex[AccountRecord] = NameIndex()
        self._turns = DeferredSemaphore(AT_ONCE)
        seconds = clock.seconds()
        self._guesses = PeerBuckets(GUESS_RATE, GUESS_BURST, seconds)
        self._account_guesses = PeerBuckets(ACCOUNT_GUESS_RATE, ACCOUNT_GUESS_BURST, seconds)
        #: By account, the address that it was last logged in from. There are no more of them than accounts.
        self._homes: dict[str, str] = {}
        self._registrations = PeerBuckets(REGISTRATION_RATE, REGISTRATION_BURST, seconds)

    def __len__(self) -> int:
        """Return the number of accounts."""
        return len(self._index)

    def restore(self, records: Iterable[AccountRecord]) -> None:
        """Take what the store has."""
        for record in records:
            if self._index.get(record.key) is None:
                self._index.add(record.name, record)

    def get(self, key: str | None) -> AccountRecord | None:
        """Return the account with that key (`name_key`)."""
        return self._index.get(key)

    def owner(self, name: str) -> AccountRecord | None:
        """Return the account that a name belongs to: its own, or one that it looks like."""
        return self._index.similar(name)

    def register(self, name: str, password: str, peer: str) -> Deferred[AccountRecord]:
        """Create an account for a name that a member has."""
        return Deferred.fromCoroutine(self._register(name, password, peer))

    async def _register(self, name: str, password: str, peer: str) -> AccountRecord:
        self._check_free(name)
        _slow_down(self._registrations, peer, self._clock.seconds(), "new accounts from your address")
        hashed = await self._hash(password)
        # Others may have registered it meanwhile.
        self._check_free(name)
        now = self._now()
        record = AccountRecord(name_key(name), name, hashed, now, now)
        self._index.add(name, record)
        try:
            await self._store.put(record)
        except StoreError:
            self._index.remove(name)
            raise
        return record

    def _check_free(self, name: str) -> None:
        if owner := self.owner(name):
            raise ChatError(f"the name {owner.name} is registered already")

    def login(self, key: str | None, name: str, password: str, peer: str) -> Deferred[AccountRecord]:
        """Return the account with that key if the password is right. `name` is how the member wrote it."""
        return Deferred.fromCoroutine(self._login(key, name, password, peer))

    async def _login(self, key: str | None, name: str, password: str, peer: str) -> AccountRecord:
        record = self._index.get(key)
        if record is None:
            raise ChatError(f"the name {name} is not registered; /register PASSWORD registers the name that you have")
        _slow_down(self._guesses, peer, self._clock.seconds(), "wrong passwords from your address")
        is_home = self._homes.get(record.key) == peer
        if not is_home:
            _slow_down(self._account_guesses, record.key, self._clock.seconds(), "wrong passwords for this account")
        try:
            right = await self._run(verify_password, password, record.password)
        except PasswordError as error:
            raise ChatError(f"this account has a damaged password ({error}); ask the operator of the server") from error
        if not right:
            raise ChatError("wrong password")
        self._guesses.give_back(peer, self._clock.seconds())
        if not is_home:
            self._account_guesses.give_back(record.key, self._clock.seconds())
            self._homes[record.key] = peer
        record = replace(self._index.get(record.key) or record, seen=self._now())
        self._replace(record)
        # Not having this kept does no harm.
        self._store.put(record).addErrback(lambda failure: failure.trap(StoreError) and None)
        return record

    def change_password(self, record: AccountRecord, password: str) -> Deferred[None]:
        """Give an account another password."""
        return Deferred.fromCoroutine(self._change_password(record, password))

    async def _change_password(self, record: AccountRecord, password: str) -> None:
        hashed = await self._hash(password)
        record = replace(self._index.get(record.key) or record, password=hashed)
        await self._store.put(record)
        self._replace(record)

    def _replace(self, record: AccountRecord) -> None:
        if self._index.get(record.key) is not None:
            self._index.remove(record.name)
        self._index.add(record.name, record)

    async def _hash(self, password: str) -> str:
        if len(password) < SHORTEST_PASSWORD:
            raise ChatError(f"a password has at least {SHORTEST_PASSWORD} characters")
        try:
            return await self._run(hash_password, password)
        except PasswordError as error:
            raise ChatError(str(error)) from error

    def _run(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Call a function in a thread, when it is its turn."""
        if len(self._turns.waiting) >= MOST_WAITING:
            raise ChatError("too many passwords are being checked; try again later")
        clock = self._clock
        if not hasattr(clock, "getThreadPool"):
            return self._turns.run(maybeDeferred, function, *arguments)
        return self._turns.run(deferToThreadPool, clock, clock.getThreadPool(), function, *arguments)


def _slow_down(buckets: PeerBuckets, key: str, now: float, what: str) -> None:
    if wait := buckets.wait(key, now):
        raise ChatError(f"too many {what}; try again in {wait:.0f} seconds")
    buckets.take(key, now)
