"""A chat's SQLite file: its schema, and what is read and written. Blocks; used by one thread at a time.

The schema is described in docs/reference/chat-file.md.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import Any, TypeVar

from netsvc.services.chat.store.interface import (
    AccountRecord,
    Ban,
    Kept,
    Message,
    NewMessage,
    Record,
    RoomRecord,
    StoreError,
    StoreLimits,
)

__all__ = ["INDEX", "LOOK", "MIGRATIONS", "Database", "InUseError", "Operation", "UnusableError"]

T = TypeVar("T")

#: Seconds after which it is looked again whether the file was deleted or replaced. What was written meanwhile is not
#: lost: a deleted file is written again.
LOOK = 0.25

#: Bytes for the index of SQLite's log, `-shm`: of a log that has grown to 128 MiB during a backup.
INDEX = 256 * 1024

#: Marks the file as a chat of netsvc: "nchT".
APPLICATION_ID = 0x6E636854

#: The statements that lead from each version of the schema to the next. A released one never changes.
MIGRATIONS = (
    """
    CREATE TABLE room (
        key TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        made REAL NOT NULL,
        founder TEXT NOT NULL,
        operators TEXT NOT NULL,
        topic TEXT NOT NULL,
        topic_by TEXT NOT NULL,
        topic_time REAL NOT NULL,
        modes TEXT NOT NULL,
        bans TEXT NOT NULL
    ) STRICT;
    CREATE TABLE account (
        key TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        password TEXT NOT NULL,
        made REAL NOT NULL,
        seen REAL NOT NULL
    ) STRICT;
    CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        room TEXT NOT NULL,
        name TEXT NOT NULL,
        text TEXT NOT NULL,
        account TEXT NOT NULL,
        acted INTEGER NOT NULL,
        token TEXT
    ) STRICT;
    CREATE INDEX message_room ON message (room);
    CREATE INDEX message_time ON message (time);
    CREATE INDEX message_account ON message (account) WHERE account != '';
    CREATE UNIQUE INDEX message_token ON message (room, token) WHERE token IS NOT NULL;
    CREATE TABLE marker (
        id INTEGER PRIMARY KEY,
        account TEXT NOT NULL,
        room TEXT NOT NULL,
        message INTEGER NOT NULL,
        UNIQUE (account, room)
    ) STRICT;
    """,
    # A commit writes each page that it changes, so that the fewest indices make it cheap.
    """
    CREATE TABLE message_2 (
        room TEXT NOT NULL,
        id INTEGER NOT NULL,
        time REAL NOT NULL,
        name TEXT NOT NULL,
        text TEXT NOT NULL,
        account TEXT NOT NULL,
        acted INTEGER NOT NULL,
        token TEXT,
        PRIMARY KEY (room, id)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO message_2 SELECT room, id, time, name, text, account, acted, token FROM message ORDER BY room, id;
    CREATE TABLE removed (last INTEGER NOT NULL) STRICT;
    INSERT INTO removed SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'message';
    DROP TABLE message;
    ALTER TABLE message_2 RENAME TO message;
    CREATE INDEX message_account ON message (account) WHERE account != '';
    CREATE UNIQUE INDEX message_token ON message (room, token) WHERE token IS NOT NULL;
    """,
)

_SELECT = "SELECT id, time, room, name, text, account, acted FROM message WHERE "
_APPEND = "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
#: The rooms that have messages, each found by one search.
_ROOMS = """
    WITH RECURSIVE found (room) AS (
        SELECT min(room) FROM message
        UNION ALL SELECT (SELECT min(room) FROM message WHERE room > found.room) FROM found WHERE room IS NOT NULL
    ) SELECT room FROM found WHERE room IS NOT NULL
"""
_PUT_ROOM = """
    INSERT INTO room VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET name = excluded.name,
        made = excluded.made, founder = excluded.founder, operators = excluded.operators, topic = excluded.topic,
        topic_by = excluded.topic_by, topic_time = excluded.topic_time, modes = excluded.modes, bans = excluded.bans
"""
_PUT_ACCOUNT = """
    INSERT INTO account VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET name = excluded.name,
        password = excluded.password, made = excluded.made, seen = excluded.seen
"""

#: What members are told of an error, by its primary result code.
_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk has an error",
    sqlite3.SQLITE_READONLY: "the disk is read-only",
    sqlite3.SQLITE_BUSY: "another program has locked the history",
    sqlite3.SQLITE_LOCKED: "another program has locked the history",
    sqlite3.SQLITE_CORRUPT: "the history is damaged",
    sqlite3.SQLITE_NOTADB: "the history is damaged",
    sqlite3.SQLITE_CANTOPEN: "the history cannot be opened",
    sqlite3.SQLITE_PERM: "the history may not be written",
}


class UnusableError(Exception):
    """The file cannot be used. The text is the reason, for the log; `reason` is the one for members."""

    def __init__(self, detail: str, reason: str = "the history cannot be opened") -> None:
        super().__init__(detail)
        self.reason = reason


class InUseError(UnusableError):
    """Another process, `pid`, uses the file; 0 if it is unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} uses it" if pid else "another process uses it")
        self.pid = pid


#: A message to be appended, or what else one does with a `Database`.
Operation = NewMessage | Callable[["Database"], Any]


class Database:
    """The file at `path`. `full`: a commit survives a loss of power as well (`synchronous=FULL`).
    `patience`: seconds to wait for a lock of another program.

    `open` takes the lock of the file, `PATH.lock`, so that no other process of netsvc uses it; programs that only read
    may. After an error call `reopen`.
    """

    def __init__(
        self,
        path: str,
        limits: StoreLimits,
        *,
        full: bool = False,
        patience: float = 1.0,
        now: Callable[[], float] = time.time,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        self.path = path
        self.limits = limits
        self._full = full
        self._patience = patience
        self._now = now
        self._migrations = migrations
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        #: The descriptor of the index. If it was closed before the connection is, that would lose its locks.
        self._index: int | None = None
        #: What executes the statements of the transaction.
        self._cursor: sqlite3.Cursor | sqlite3.Connection
        #: The device and inode of the file and of its log, and when they were last compared.
        self._identity: tuple[tuple[int, int] | None, ...] = ()
        self._looked = -LOOK
        #: The time of the transaction.
        self._time = 0.0
        #: The greatest id that a message has or had.
        self._last = 0
        #: Messages by room, for the rooms where they were counted.
        self._counts: dict[str, int] = {}

    # Opening and closing

    def open(self) -> None:
        """Take the lock, and open or create the file. Raises `UnusableError`, and then holds nothing."""
        self._take_lock()
        try:
            self._check_space()
            self._connect()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, and release the lock."""
        self._disconnect()
        if self._lock is not None:
            # Not removed: another process may have opened it, and wait for it.
            os.close(self._lock)
            self._lock = None

    def reopen(self) -> None:
        """Open the file again after an error, and try to write. Raises `UnusableError` or `sqlite3.Error`.

        A file that was deleted is written again, with all that was in it.
        """
        self._check_space()
        connection = self._connection
        if connection is not None and self._identity != (found := self._identify()):
            if found[0] is not None and found[0] != self._identity[0]:
                raise UnusableError("it was replaced; restart netsvc to use the new one", "the history was replaced")
            self._rewrite(connection)
        self._disconnect()
        self._connect()
        assert self._connection is not None
        with _Transaction(self._connection) as cursor:
            cursor.execute(f"PRAGMA user_version = {len(self._migrations)}")

    def _rewrite(self, connection: sqlite3.Connection) -> None:
        copy = f"{self.path}.copy"
        with suppress(FileNotFoundError):
            os.unlink(copy)
        if connection.in_transaction:
            connection.rollback()
        connection.execute("VACUUM INTO ?", (copy,))
        os.chmod(copy, 0o600)
        self._disconnect()
        for name in (f"{self.path}-wal", f"{self.path}-shm"):
            with suppress(FileNotFoundError):
                os.unlink(name)
        os.replace(copy, self.path)

    def _take_lock(self) -> None:
        try:
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UnusableError(f"{error.strerror}: {os.path.basename(self.path)}.lock") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            holder = os.pread(lock, 20, 0).strip()
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InUseError(int(holder) if holder.isdigit() else 0) from None
            raise UnusableError(error.strerror or "it cannot be locked") from error
        self._lock = lock

    def _check_space(self) -> None:
        """Raise `UnusableError` if the disk has no space for the index.

        SQLite maps it into memory. If there is no block left for a page of it, the system kills the process (SIGBUS);
        that happens where blocks are smaller than pages, as in small ext4 file systems.
        """
        assert self._lock is not None
        try:
            size = os.fstat(self._lock).st_size
            try:
                _allocate(self._lock, INDEX)
            finally:
                os.ftruncate(self._lock, size)
        except OSError as error:
            raise UnusableError(error.strerror or "its lock cannot be written", "the disk has an error") from error

    def _connect(self) -> None:
        try:
            # SQLite would create it with the permissions that the umask leaves.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise UnusableError(error.strerror or "it cannot be created") from error
        try:
            connection = sqlite3.connect(
                self.path, timeout=self._patience, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            self._prepare(connection)
            self._counts = {}
            (self._last,) = connection.execute(
                f"SELECT max((SELECT last FROM removed), "  # noqa: S608  (constants)
                f"ifnull((SELECT max((SELECT max(id) FROM message WHERE message.room = each.room)) "
                f"FROM ({_ROOMS}) AS each), 0))"
            ).fetchone()
            # What was read has created it.
            self._index = os.open(f"{self.path}-shm", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            _allocate(self._index, INDEX)
        except sqlite3.Error as error:
            raise UnusableError(str(error), reason_of(error)) from error
        except OSError as error:
            raise UnusableError(error.strerror or "its index cannot be opened") from error
        self._identity = self._identify()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = _pragma(connection, "user_version")
        marked = _pragma(connection, "application_id")
        if version > len(self._migrations) and marked == APPLICATION_ID:
            known = len(self._migrations)
            raise UnusableError(f"it was written by a newer netsvc: schema {version}, and this one knows {known}")
        if marked not in (0, APPLICATION_ID) or (not marked and _has_tables(connection)):
            raise UnusableError("it is the database of another program")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._full else 'NORMAL'}")
        # What is deleted is overwritten.
        connection.execute("PRAGMA secure_delete = ON")
        if version < len(self._migrations):
            with _Transaction(connection) as cursor:
                for script in self._migrations[version:]:
                    for statement in filter(str.strip, script.split(";")):
                        cursor.execute(statement)
                cursor.execute(f"PRAGMA user_version = {len(self._migrations)}")
                cursor.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        if self._index is not None:
            os.close(self._index)
            self._index = None

    def _identify(self) -> tuple[tuple[int, int] | None, ...]:
        return (_identity(self.path), _identity(f"{self.path}-wal"))

    # Transactions

    def run(self, operations: Sequence[Operation]) -> list[Any]:
        """Do all operations in one transaction, and return their results: a `StoreError` for one that is refused.

        A message is appended; the result is the kept one, and whether it is new.

        Raises `sqlite3.Error` or `UnusableError`, and then nothing of it was done, and `reopen` has to be called.
        """
        connection = self._connection
        now = self._time = self._now()
        is_due = not 0 <= now - self._looked < LOOK
        if connection is None or (is_due and self._identify() != self._identity):
            raise UnusableError("it was deleted or replaced", "the history was deleted")
        if is_due:
            self._looked = now
        if len(operations) == 1 and isinstance(operations[0], NewMessage) and self._fits(operations[0]):
            # One statement is a transaction: with two of its own around it, it would take a fifth longer.
            self._cursor = connection
            return [self.append(operations[0])]
        results: list[Any] = []
        with _Transaction(connection) as cursor:
            self._cursor = cursor
            for operation in operations:
                try:
                    results.append(self.append(operation) if isinstance(operation, NewMessage) else operation(self))
                except StoreError as error:
                    results.append(error)
        return results

    # Operations: each checks first, and then changes

    def append(self, new: NewMessage) -> tuple[Message, bool]:
        """Append a message; return it, and whether it is a new one."""
        execute, token = self._cursor.execute, new.token or None
        if token:
            found = execute(_SELECT + "room = ? AND token = ?", (new.room, token)).fetchone()
            if found:
                return _message(found), False
        now = self._time
        count = self._counts[new.room] = self._count(new.room) + 1
        self._last = id = self._last + 1
        execute(_APPEND, (new.room, id, now, new.name, new.text, new.account, new.acted, token))
        message = Message(id, now, new.room, new.name, new.text, new.account, new.acted)
        if count > self._most:
            self._cut(new.room)
        return message, True

    def put(self, records: Sequence[Record]) -> None:
        """Keep records."""
        rooms = {each.key: each for each in records if isinstance(each, RoomRecord)}
        accounts = {each.key: each for each in records if isinstance(each, AccountRecord)}
        if rooms:
            self._check_limit("room", rooms, self.limits.rooms)
        if accounts:
            self._check_limit("account", accounts, self.limits.accounts)
        for room in rooms.values():
            self._cursor.execute(
                _PUT_ROOM,
                (
                    room.key,
                    room.name,
                    room.made,
                    room.founder,
                    _json(sorted(room.operators)),
                    room.topic,
                    room.topic_by,
                    room.topic_time,
                    _json(sorted(room.modes)),
                    _json([astuple(ban) for ban in room.bans]),
                ),
            )
        for account in accounts.values():
            self._cursor.execute(_PUT_ACCOUNT, astuple(account))

    def _check_limit(self, table: str, keys: Iterable[str], limit: int) -> None:
        execute = self._cursor.execute
        # `table` is a constant.
        known = f"SELECT 1 FROM {table} WHERE key = ?"  # noqa: S608
        added = sum(execute(known, (key,)).fetchone() is None for key in keys)
        if added:
            (count,) = execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            if count + added > limit:
                raise StoreError(f"there is no room for another {table}")

    def remove(self, records: Sequence[Record]) -> None:
        """Remove records."""
        execute = self._cursor.execute
        for record in records:
            if isinstance(record, RoomRecord):
                execute("DELETE FROM room WHERE key = ?", (record.key,))
                self._delete("room = ?", (record.key,))
                execute("DELETE FROM marker WHERE room = ?", (f"#{record.key}",))
                self._counts.pop(record.key, None)
            else:
                execute("DELETE FROM account WHERE key = ?", (record.key,))
                execute("DELETE FROM marker WHERE account = ?", (record.key,))

    def read(self, room: str, limit: int, before: int | None, after: int | None, since: float | None) -> list[Message]:
        """Return messages of a room."""
        where, values = ["room = ?"], list[Any]([room])
        for condition, value in (("id < ?", before), ("id > ?", after), ("time >= ?", since)):
            if value is not None:
                where.append(condition)
                values.append(value)
        forward = after is not None or since is not None
        order = "ASC" if forward else "DESC"
        query = f"{_SELECT}{' AND '.join(where)} ORDER BY id {order} LIMIT ?"
        found = [_message(row) for row in self._cursor.execute(query, (*values, limit))]
        return found if forward else found[::-1]

    def forget(self, account: str, most: int) -> int:
        """Delete at most `most` messages of an account; return their number."""
        return self._delete(
            "(room, id) IN (SELECT room, id FROM message WHERE account = ? AND account != '' LIMIT ?)", (account, most)
        )

    def mark(self, account: str, room: str, id: int) -> None:
        """Keep a read marker."""
        execute = self._cursor.execute
        if not execute("SELECT 1 FROM account WHERE key = ?", (account,)).fetchone():
            raise StoreError("there is no such account")
        before = execute("SELECT message FROM marker WHERE account = ? AND room = ?", (account, room)).fetchone()
        execute("DELETE FROM marker WHERE account = ? AND room = ?", (account, room))
        # Inserted again, so that the one set last has the greatest id.
        execute(
            "INSERT INTO marker (id, account, room, message) SELECT ifnull(max(id), 0) + 1, ?, ?, ? FROM marker",
            (account, room, max(id, before[0] if before else 0)),
        )
        execute(
            "DELETE FROM marker WHERE account = ?1 AND id NOT IN "
            "(SELECT id FROM marker WHERE account = ?1 ORDER BY id DESC LIMIT ?2)",
            (account, self.limits.markers),
        )

    def marks(self, account: str) -> dict[str, int]:
        """Return the read markers of an account."""
        return dict(self._cursor.execute("SELECT room, message FROM marker WHERE account = ? ORDER BY id", (account,)))

    def rooms(self) -> list[str]:
        """Return the rooms that have messages."""
        return [room for (room,) in self._cursor.execute(_ROOMS)]

    def trim(self, room: str, most: int) -> int:
        """Remove at most `most` messages of a room that are too old or too many; return their number."""
        removed = 0
        if self._count(room) > self.limits.messages:
            removed += self._cut(room, most)
        if self.limits.days is not None and removed < most:
            oldest = self._time - self.limits.days * 86400
            (end,) = self._cursor.execute(
                "SELECT ifnull((SELECT id FROM message WHERE room = ? AND time >= ? ORDER BY id LIMIT 1), ?)",
                (room, oldest, self._last + 1),
            ).fetchone()
            removed += self._delete(
                "room = ?1 AND id IN (SELECT id FROM message WHERE room = ?1 AND id < ?2 ORDER BY id LIMIT ?3)",
                (room, end, most - removed),
            )
        return removed

    def load(self, last: int) -> Kept:
        """Return what is kept, with the last messages of each room."""
        execute = self._cursor.execute
        rooms = [_room(row) for row in execute("SELECT * FROM room ORDER BY rowid")]
        accounts = [AccountRecord(*row) for row in execute("SELECT * FROM account ORDER BY rowid")]
        messages = {room.key: tuple(self.read(room.key, last, None, None, None)) for room in rooms} if last else {}
        return Kept(tuple(rooms), tuple(accounts), messages)

    def _fits(self, new: NewMessage) -> bool:
        """Return whether one statement appends a message."""
        return not new.token and self._counts.get(new.room, self._most) < self._most

    @property
    def _most(self) -> int:
        """The messages of a room beyond which the first ones are removed."""
        return self.limits.messages + self.limits.messages // 8

    def _count(self, room: str) -> int:
        count = self._counts.get(room)
        if count is None:
            found = self._cursor.execute("SELECT count(*) FROM message WHERE room = ?", (room,))
            (count,) = found.fetchone()
            self._counts[room] = count
        return int(count)

    def _cut(self, room: str, most: int = 1 << 62) -> int:
        excess = min(self._count(room) - self.limits.messages, most)
        return self._delete(
            "room = ?1 AND id IN (SELECT id FROM message WHERE room = ?1 ORDER BY id LIMIT ?2)", (room, excess)
        )

    def _delete(self, where: str, values: tuple[object, ...]) -> int:
        query = f"DELETE FROM message WHERE {where} RETURNING room"  # noqa: S608  (`where` is a constant)
        gone = Counter(room for (room,) in self._cursor.execute(query, values).fetchall())
        for room, count in gone.items():
            if room in self._counts:
                self._counts[room] -= count
        if gone:
            # One of them may have been the last one.
            self._cursor.execute("UPDATE removed SET last = ?", (self._last,))
        return gone.total()


class _Transaction:
    """A write transaction on a connection: committed at the end of the block, rolled back by an error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        return cursor

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            # A full disk has rolled back already.
            self._connection.execute("ROLLBACK")


def reason_of(error: BaseException) -> str:
    """Return what members are told of an error."""
    if isinstance(error, UnusableError):
        return error.reason
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return _REASONS.get(code, "the history cannot be written")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is not None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _allocate(descriptor: int, size: int) -> None:
    """Make a file at least so large, with blocks on the disk for all of it. Raises `UnusableError`."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        # A file system that cannot tell.
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else "the disk has an error"
        raise UnusableError(error.strerror or "it has no space", reason) from error


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _message(row: tuple[Any, ...]) -> Message:
    id, time, room, name, text, account, acted = row
    return Message(id, time, room, name, text, account, bool(acted))


def _room(row: tuple[Any, ...]) -> RoomRecord:
    key, name, made, founder, operators, topic, topic_by, topic_time, modes, bans = row
    return RoomRecord(
        key,
        name,
        made,
        founder,
        frozenset(json.loads(operators)),
        topic,
        topic_by,
        topic_time,
        frozenset(json.loads(modes)),
        tuple(Ban(*ban) for ban in json.loads(bans)),
    )
