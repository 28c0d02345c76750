"""The store in a SQLite file. A thread of its own reads and writes it, one transaction for all that waits."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.base.errors import UserError
from netsvc.base.text import escape
from netsvc.services.chat.store.database import Database, InUseError, Operation, UnusableError, reason_of
from netsvc.services.chat.store.interface import (
    Kept,
    Message,
    NewMessage,
    Record,
    StoreError,
    StoreLimits,
    StoreListener,
)

__all__ = ["SqliteStore", "Thread", "Work"]

T = TypeVar("T")

#: Seconds between attempts to open a file that the process before this one still uses.
_TURN = 0.02
#: Seconds until the first attempt to write to a file that could not be written, and the most between two.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 15.0
#: Seconds that it has to work, until a failure is a new one: a disk that comes and goes is tried ever more rarely, too,
#: as members are told of each change.
_STEADY = 60.0
#: Operations and characters of messages that wait before senders are slowed; eight times as many are refused.
_MANY = 1000
_MANY_CHARACTERS = 1 << 20
_REFUSED_BEYOND = 8
#: Messages removed in one transaction by `trim` and `forget`: others wait for it.
_PIECE = 1000


class Work(Protocol):
    """Runs functions that block, one after the other."""

    def run(self, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run a function elsewhere, and then `done` with its result in the thread of the reactor."""

    def end(self) -> None:
        """End after what was passed to `run`."""


class Thread:
    """One thread. The functions must not raise."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]] | None] = deque()
        # To put something into a queue would wake the thread while this one has the GIL, only to wait for that.
        self._count = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        # A daemon: a disk that hangs must not keep the process from ending. What is not kept is not acknowledged.
        threading.Thread(target=self._work, name="chat store", daemon=True).start()

    def run(self, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run a function in the thread."""
        self._waiting.append((function, done))
        os.eventfd_write(self._count, 1)

    def end(self) -> None:
        """End the thread."""
        self._waiting.append(None)
        os.eventfd_write(self._count, 1)

    def _work(self) -> None:
        while os.eventfd_read(self._count) and (item := self._waiting.popleft()) is not None:
            function, done = item
            self._reactor.callFromThread(done, function())
        os.close(self._count)


class _Batch:
    """Operations of one transaction."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        #: Of each, the Deferred that waits for its result; None for a message, whose result the listener gets.
        self.answers: list[Deferred[Any] | None] = []
        #: The characters of the messages.
        self.characters = 0


class SqliteStore:
    """The store in the SQLite file at `path`.

    What is asked for in one turn of the reactor, or while a transaction is under way, is one transaction. `full`: an
    acknowledged message survives a loss of power as well. `work` runs what blocks; by default it is a `Thread`.
    """

    is_lasting = True

    def __init__(
        self,
        path: str,
        limits: StoreLimits,
        reactor: Any,
        log: Logger,
        now: Callable[[], float],
        *,
        full: bool = False,
        patience: float = 1.0,
        make_directory: Callable[[], object] = lambda: None,
        predecessor: Callable[[], int] = os.getppid,
        work: Callable[[], Work] | None = None,
    ) -> None:
        self._path = path
        self._reactor = reactor
        self._log = log
        self._full = full
        self._make_directory = make_directory
        #: The process that may still use the file when this one opens it: an upgrade starts the new one from the old.
        self._predecessor = predecessor
        self._make_work = work or partial(Thread, reactor)
        self._database = Database(path, limits, full=full, patience=patience, now=now)
        self._failure: StoreError | None = None
        #: What waits for the next transaction, and what is in the one that is under way.
        self._waiting = _Batch()
        self._batch = self._waiting
        self._busy = False
        #: The calls that are due: of the next transaction, and of the next attempt to open the file or to write.
        self._turn: Any = None
        self._retry: Any = None
        self._pause = _FIRST_RETRY
        #: When it could be written again.
        self._resumed = reactor.seconds()
        self._is_open = False
        self._closed: Deferred[None] | None = None

    @property
    def worth(self) -> str:
        """What an acknowledged message survives."""
        more = " and a loss of power" if self._full else ", but not a loss of power (sync keeps it)"
        return f"messages are kept in {escape(self._path, 1000)}; one that was delivered survives a kill{more}"

    @property
    def is_behind(self) -> bool:
        """Whether many operations wait."""
        waiting = self._waiting
        return len(waiting.operations) >= _MANY or waiting.characters >= _MANY_CHARACTERS

    def check(self) -> None:
        """Do nothing: to look into a file that is in use would release its locks, as POSIX has it."""

    def open(self, listener: StoreListener, last: int) -> None:
        """Open the file, or wait until the predecessor has closed it."""
        self._make_directory()
        self._listener = listener
        self._last = last
        try:
            self._database.open()
        except InUseError as error:
            if error.pid != self._predecessor():
                raise UserError(
                    [f"{self._shown}: {error}; a chat needs a file of its own: give another one, or end that process"]
                ) from None
            self._log.info("{path}: {reason}; waiting until it has ended", path=self._shown, reason=str(error))
            self._work = self._make_work()
            self._retry = self._reactor.callLater(_TURN, self._open_later)
        except UnusableError as error:
            raise self._unusable(error) from None
        else:
            kept = self._load()
            if isinstance(kept, Exception):
                raise self._unusable(kept)
            self._work = self._make_work()
            self._opened(kept)

    def _unusable(self, error: Exception) -> UserError:
        return UserError([f"{self._shown}: {error}; give another file, or move this one away"])

    @property
    def _shown(self) -> str:
        return escape(self._path, 1000)

    def _load(self) -> Kept | Exception:
        try:
            (kept,) = self._database.run([lambda database: database.load(self._last)])
        except (sqlite3.Error, UnusableError) as error:
            self._database.close()
            return error
        assert isinstance(kept, Kept)
        return kept

    def _open_later(self) -> None:
        def open_now() -> Kept | Exception:
            try:
                self._database.open()
            except UnusableError as error:
                return error
            return self._load()

        self._retry = None
        self._busy = True
        self._work.run(open_now, self._opened)

    def _opened(self, kept: Kept | Exception) -> None:
        self._busy = False
        if isinstance(kept, Kept):
            self._is_open = True
            self._resume()
            self._log.info("{worth}", worth=self.worth)
            self._listener.opened(kept)
        elif not isinstance(kept, InUseError):
            self._fail(kept)
        if self._closed is not None:
            self._close()
        elif not self._is_open:
            self._retry = self._reactor.callLater(_TURN if isinstance(kept, InUseError) else 1.0, self._open_later)

    def close(self) -> Deferred[None]:
        """Keep what waits, and close the file."""
        self._closed = Deferred()
        closed = self._closed
        for call in (self._turn, self._retry):
            if call is not None:
                call.cancel()
        self._turn = self._retry = None
        if not self._busy:
            self._close()
        return closed

    def _close(self) -> None:
        """Close the file after a last transaction."""
        if self._waiting.operations:
            self._begin()
            return
        self._busy = True
        self._work.run(self._database.close, self._has_closed)
        self._work.end()

    def _has_closed(self, _result: None) -> None:
        assert self._closed is not None
        self._closed.callback(None)

    def limit(self, limits: StoreLimits) -> None:
        """Change the limits."""
        # One object is replaced by another: the thread sees the one or the other.
        self._database.limits = limits

    def append(self, new: NewMessage) -> None:
        """Append a message."""
        if error := self._refusal():
            self._listener.refused([new], error)
            return
        self._waiting.characters += len(new.text)
        self._add(new, None)

    def put(self, *records: Record) -> Deferred[None]:
        """Keep records."""
        return self._ask(lambda database: database.put(records))

    def remove(self, *records: Record) -> Deferred[None]:
        """Remove records."""
        return self._ask(lambda database: database.remove(records))

    def read(
        self, room: str, limit: int, *, before: int | None = None, after: int | None = None, since: float | None = None
    ) -> Deferred[list[Message]]:
        """Return messages of a room."""
        return self._ask(lambda database: database.read(room, limit, before, after, since))

    def mark(self, account: str, room: str, id: int) -> Deferred[None]:
        """Keep a read marker."""
        return self._ask(lambda database: database.mark(account, room, id))

    def marks(self, account: str) -> Deferred[dict[str, int]]:
        """Return the read markers of an account."""
        return self._ask(lambda database: database.marks(account))

    def forget(self, account: str) -> Deferred[int]:
        """Delete all messages of an account, a piece after the other."""
        return self._in_pieces(lambda database: database.forget(account, _PIECE))

    def trim(self) -> Deferred[int]:
        """Remove the messages that are too old or too many, a room and a piece after the other."""
        return self._ask(Database.rooms).addCallback(lambda rooms: self._trim(rooms[::-1], 0))

    def _trim(self, rooms: list[str], before: int) -> int | Deferred[int]:
        if not rooms or self._closed is not None:
            return before
        room = rooms.pop()
        trimmed = self._in_pieces(lambda database: database.trim(room, _PIECE))
        return trimmed.addCallback(lambda removed: self._trim(rooms, before + removed))

    def _in_pieces(self, operation: Callable[[Database], int], before: int = 0) -> Deferred[int]:
        def go_on(piece: int) -> int | Deferred[int]:
            removed = before + piece
            return removed if piece < _PIECE or self._closed is not None else self._in_pieces(operation, removed)

        return self._ask(operation).addCallback(go_on)

    def _refusal(self) -> StoreError | None:
        waiting = self._waiting
        if self._failure is None and (
            len(waiting.operations) >= _MANY * _REFUSED_BEYOND
            or waiting.characters >= _MANY_CHARACTERS * _REFUSED_BEYOND
        ):
            return StoreError("the disk is too slow")
        return self._failure

    def _ask(self, operation: Callable[[Database], T]) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        if error := self._refusal():
            answer.errback(error)
        else:
            self._add(operation, answer)
        return answer

    def _add(self, operation: Operation, answer: Deferred[Any] | None) -> None:
        self._waiting.operations.append(operation)
        self._waiting.answers.append(answer)
        if not self._busy and self._turn is None and self._is_open:
            self._turn = self._reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        """Begin a transaction with everything that waits."""
        self._turn = None
        self._busy = True
        self._batch, self._waiting = self._waiting, _Batch()
        self._work.run(self._write, self._written)

    def _write(self) -> list[Any] | Exception:
        """Write in the thread; return the results, or why nothing was written."""
        try:
            return self._database.run(self._batch.operations)
        except Exception as error:  # noqa: BLE001  (the reactor's thread reports it)
            return error

    def _written(self, results: list[Any] | Exception) -> None:
        self._busy = False
        batch, self._batch = self._batch, _Batch()
        if isinstance(results, Exception):
            self._fail(results)
            self._refuse(batch)
            waiting, self._waiting = self._waiting, _Batch()
            self._refuse(waiting)
        else:
            self._report(batch, results)
        if self._closed is not None:
            self._close()
        elif self._waiting.operations and not self._busy and self._turn is None:
            self._begin()

    def _report(self, batch: _Batch, results: list[Any]) -> None:
        """Report the results in the order of the operations; consecutive messages together."""
        appended: list[tuple[Message, NewMessage | None]] = []
        for operation, answer, result in zip(batch.operations, batch.answers, results, strict=True):
            if isinstance(operation, NewMessage) and result[1]:
                appended.append((result[0], operation))
                continue
            if appended:
                self._listener.appended(appended)
                appended = []
            if isinstance(operation, NewMessage):
                self._listener.repeated(result[0], operation)
            else:
                _answer(answer, result)
        if appended:
            self._listener.appended(appended)

    def _refuse(self, batch: _Batch) -> None:
        assert self._failure is not None
        for operation, answer in zip(batch.operations, batch.answers, strict=True):
            if isinstance(operation, NewMessage):
                self._listener.refused([operation], self._failure)
            else:
                _answer(answer, StoreError(str(self._failure)))

    def _fail(self, error: Exception) -> None:
        """Refuse everything until the file can be written."""
        if not isinstance(error, (sqlite3.Error, UnusableError)):
            self._log.failure("the chat store failed", Failure(error))
        if self._failure is None:
            self._log.error(
                "{path}: {reason}: the chat refuses messages until it can keep them",
                path=self._shown,
                reason=str(error),
            )
            self._failure = StoreError(reason_of(error))
            if self._reactor.seconds() - self._resumed >= _STEADY:
                self._pause = _FIRST_RETRY
            self._listener.failed(self._failure)
        if self._is_open and self._closed is None and self._retry is None:
            self._retry = self._reactor.callLater(self._pause, self._try_again)
            self._pause = min(self._pause * 2, _LONGEST_RETRY)

    def _try_again(self) -> None:
        self._retry = None
        self._busy = True
        self._work.run(self._reopen, self._reopened)

    def _reopen(self) -> Exception | None:
        try:
            self._database.reopen()
        except (sqlite3.Error, UnusableError, OSError) as error:
            return error
        return None

    def _reopened(self, error: Exception | None) -> None:
        self._busy = False
        if error is not None:
            self._fail(error)
        else:
            self._resume()
        if self._closed is not None:
            self._close()

    def _resume(self) -> None:
        if self._failure is not None:
            self._failure = None
            self._resumed = self._reactor.seconds()
            self._log.info("{path} can be written again", path=self._shown)
            if self._is_open:
                self._listener.resumed()


def _answer(answer: Deferred[Any] | None, result: Any) -> None:
    assert answer is not None
    if isinstance(result, StoreError):
        answer.errback(result)
    else:
        answer.callback(result)
