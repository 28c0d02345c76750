"""Builds stores of the chat whose answers come at once, and a listener that keeps what it hears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger

from netsvc.services.chat.store.interface import Kept, Message, NewMessage, Store, StoreError, StoreLimits
from netsvc.services.chat.store.memory import MemoryStore
from netsvc.services.chat.store.sqlite import SqliteStore


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.kept: Kept | None = None
        self.messages: list[Message] = []
        self.again: list[Message] = []
        self.lost: list[NewMessage] = []
        #: The reason of each failure, and an empty text for each end of one.
        self.changes: list[str] = []

    def opened(self, kept: Kept) -> None:
        self.kept = kept

    def appended(self, messages: Sequence[tuple[Message, NewMessage | None]]) -> None:
        self.messages += [message for message, _ in messages]

    def repeated(self, message: Message, new: NewMessage) -> None:
        self.again.append(message)

    def refused(self, messages: Sequence[NewMessage], error: StoreError) -> None:
        self.lost += messages

    def failed(self, error: StoreError) -> None:
        self.changes.append(str(error))

    def resumed(self) -> None:
        self.changes.append("")


class AtOnce:
    """Runs in the test what would block; with `held`, when the test calls `go_on`."""

    def __init__(self) -> None:
        self.held = False
        self.waiting: list[Callable[[], None]] = []
        self.ended = False
        self.runs = 0

    def run(self, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
        assert not self.ended
        self.runs += 1
        self.waiting.append(lambda: done(function()))
        if not self.held:
            self.go_on()

    def go_on(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()

    def end(self) -> None:
        self.ended = True


def result_of(answer: Deferred[Any]) -> Any:
    """What an answer that has come is. Raises what it failed with."""
    results: list[Any] = []
    answer.addCallbacks(results.append, lambda failure: results.append(failure.value))
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


class Kit:
    """A store in the hands of a test. The answers have come when a method returns."""

    def __init__(self, build: Callable[[Kit], Store]) -> None:
        self.clock = Clock()
        self.time = 1000.0
        self.work = AtOnce()
        self.heard = Heard()
        self._build = build
        self.store = build(self)

    def open(self, last: int = 20) -> Kept:
        self.heard = Heard()
        self.store.open(self.heard, last)
        assert self.heard.kept is not None
        return self.heard.kept

    def restart(self, last: int = 20) -> Kept:
        """Close the store, and open what is left of it. That in memory is the same one."""
        closed = self.store.close()
        self.clock.advance(0)
        assert result_of(closed) is None
        if not isinstance(self.store, MemoryStore):
            self.work = AtOnce()
            self.store = self._build(self)
        return self.open(last)

    def ask(self, answer: Deferred[Any]) -> Any:
        self.clock.advance(0)
        return result_of(answer)

    def say(self, *texts: object, room: str = "den", **more: Any) -> list[Message]:
        before = len(self.heard.messages)
        for text in texts:
            self.store.append(NewMessage(room, "Ann", str(text), **more))
        self.clock.advance(0)
        return self.heard.messages[before:]

    def read(self, limit: int = 100, room: str = "den", **more: Any) -> list[str]:
        return [message.text for message in self.ask(self.store.read(room, limit, **more))]


def memory_kit(_directory: Path, limits: StoreLimits) -> Kit:
    return Kit(lambda kit: MemoryStore(limits, lambda: kit.time))


def sqlite_kit(directory: Path, limits: StoreLimits, **more: Any) -> Kit:
    path = str(directory / "chat.sqlite")
    more.setdefault("patience", 0.0)
    return Kit(
        lambda kit: SqliteStore(path, limits, kit.clock, Logger(), lambda: kit.time, work=lambda: kit.work, **more)
    )
