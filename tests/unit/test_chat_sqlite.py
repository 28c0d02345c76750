"""The chat's SQLite file: its schema, its lock, and what happens when it cannot be written."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netsvc.errors import UserError
from netsvc.services.chat.store.database import INDEX, LOOK, MIGRATIONS, Database, UnusableError
from netsvc.services.chat.store.interface import NewMessage, RoomRecord, StoreError, StoreLimits
from tests.builders.stores import Kit, result_of, sqlite_kit

LIMITS = StoreLimits()


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = sqlite_kit(tmp_path, LIMITS)
    made.open()
    yield made
    made.work.held = False
    made.work.go_on()
    if not made.work.ended:
        made.store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chat.sqlite"


def rows(file: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_file_is_made_that_only_its_user_can_read(kit: Kit, file: Path) -> None:
    kit.say("hello")
    for name in (file, f"{file}-wal", f"{file}.lock"):
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600


def test_other_programs_read_it_meanwhile_and_back_it_up(kit: Kit, file: Path, tmp_path: Path) -> None:
    kit.say("one")
    source, copy = sqlite3.connect(file), sqlite3.connect(tmp_path / "copy")
    source.backup(copy)
    kit.say("two")
    assert source.execute("SELECT text FROM message").fetchall() == [("one",), ("two",)]
    assert copy.execute("SELECT text FROM message").fetchall() == [("one",)]
    source.close()
    copy.close()
    kit.say("three")


def test_the_last_messages_come_back_after_a_restart(kit: Kit) -> None:
    kit.store.put(RoomRecord("den", "Den"))
    said = kit.say(*"abc")
    kept = kit.restart(last=2)
    assert kept.messages == {"den": tuple(said[1:])}
    assert kit.say("d")[0].id > said[-1].id


def test_what_waits_for_one_transaction_is_kept_or_refused_together(kit: Kit) -> None:
    kit.work.held = True
    kit.say("one")
    kit.say("two", "three")
    assert kit.heard.messages == [] and len(kit.work.waiting) == 1
    kit.work.go_on()
    assert [message.text for message in kit.heard.messages] == ["one", "two", "three"]


class TestLock:
    def test_another_process_is_refused_in_one_line_that_names_the_file(self, kit: Kit, tmp_path: Path) -> None:
        with pytest.raises(UserError) as caught:
            sqlite_kit(tmp_path, LIMITS).open()
        (line,) = caught.value.errors
        assert str(tmp_path / "chat.sqlite") in line and str(os.getpid()) in line

    def test_the_successor_waits_until_the_file_is_closed_and_then_has_everything(
        self, kit: Kit, tmp_path: Path
    ) -> None:
        kit.store.put(RoomRecord("den", "Den"))
        kit.say("one")
        late = sqlite_kit(tmp_path, LIMITS, predecessor=os.getpid)
        late.store.open(late.heard, 5)
        late.clock.pump([0.05] * 20)
        assert late.heard.kept is None
        kit.say("two")
        kit.store.close()
        late.clock.pump([0.05] * 20)
        assert late.heard.kept is not None
        assert [message.text for message in late.heard.kept.messages["den"]] == ["one", "two"]
        late.store.close()

    def test_the_successor_can_give_up_waiting(self, kit: Kit, tmp_path: Path) -> None:
        late = sqlite_kit(tmp_path, LIMITS, predecessor=os.getpid)
        late.store.open(late.heard, 5)
        late.clock.pump([0.05] * 5)
        assert result_of(late.store.close()) is None
        assert late.work.ended and not late.clock.getDelayedCalls()
        kit.say("one")


class TestFiles:
    @pytest.mark.parametrize(
        "make",
        [
            lambda file: file.write_bytes(b"no database, but a letter of many pages " * 1000),
            lambda file: file.mkdir(),
            lambda file: file.symlink_to("/nonexistent/chat"),
            lambda file: sqlite3.connect(file).execute("CREATE TABLE mail (x)").connection.close(),
        ],
        ids=["text", "directory", "nowhere", "other"],
    )
    def test_what_is_no_chat_is_refused_and_left_alone(
        self, make: Callable[[Path], object], file: Path, tmp_path: Path
    ) -> None:
        make(file)
        before = file.read_bytes() if file.is_file() else None
        with pytest.raises(UserError) as caught:
            sqlite_kit(tmp_path, LIMITS).open()
        (line,) = caught.value.errors
        assert str(file) in line
        assert before is None or file.read_bytes() == before

    def test_a_missing_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="missing"):
            sqlite_kit(tmp_path / "missing", LIMITS).open()

    def test_a_newer_schema_is_refused_and_left_alone(self, kit: Kit, file: Path, tmp_path: Path) -> None:
        kit.store.close()
        connection = sqlite3.connect(file)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        connection.close()
        with pytest.raises(UserError, match="newer"):
            sqlite_kit(tmp_path, LIMITS).open()
        assert rows(file, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


RECORDED = Path(__file__).parents[1] / "data" / "chat-version-1.sql"


def write_version_1(file: Path) -> None:
    """The file that the first version of netsvc with a store wrote."""
    connection = sqlite3.connect(file)
    connection.executescript(RECORDED.read_text("utf-8"))
    connection.close()


class TestMigration:
    def test_a_file_of_version_1_is_read_and_written(self, file: Path, tmp_path: Path) -> None:
        write_version_1(file)
        kit = sqlite_kit(tmp_path, LIMITS)
        kept = kit.open()
        assert [room.key for room in kept.rooms] == ["lobby", "den"]
        (account,) = kept.accounts
        assert (account.key, account.name) == ("ann", "Ann")
        den = kept.rooms[1]
        assert (den.founder, den.topic, [ban.pattern for ban in den.bans]) == ("ann", "a topic", ["192.0.2.7"])
        assert [message.text for message in kept.messages["lobby"]] == ["hello", "waves", "再见"]
        assert kit.ask(kit.store.marks("ann")) == {"lobby": 2}
        assert kit.say("new", room="lobby")[0].id == 5
        kit.store.close()
        assert rows(file, "PRAGMA user_version") == [(len(MIGRATIONS),)]

    def test_a_step_is_done_entirely_or_not_at_all(self, file: Path) -> None:
        write_version_1(file)
        grow = "ALTER TABLE room ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'; CREATE TABLE extra (x)"
        failing = Database(str(file), LIMITS, migrations=(*MIGRATIONS, grow + "; CREATE TABLE extra (y)"))
        with pytest.raises(UnusableError):
            failing.open()
        assert rows(file, "SELECT * FROM pragma_table_info('room') WHERE name = 'colour'") == []
        working = Database(str(file), LIMITS, migrations=(*MIGRATIONS, grow))
        working.open()
        working.close()
        assert rows(file, "SELECT colour FROM room") == [("red",)] * 2
        assert rows(file, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


def fill(kit: Kit) -> None:
    """Let the file grow no more, until it is opened again."""
    connection = kit.store._database._connection  # type: ignore[attr-defined]
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")


class TestFailures:
    def test_a_full_disk_refuses_and_the_chat_resumes_by_itself(self, kit: Kit, file: Path) -> None:
        kit.say("before")
        fill(kit)
        kit.say("x" * 100_000)
        assert [new.text[:1] for new in kit.heard.lost] == ["x"]
        assert kit.heard.changes == ["the disk is full"]
        assert kit.say("refused") == []
        for answer in (kit.store.put(RoomRecord("den", "Den")), kit.store.read("den", 5), kit.store.trim()):
            with pytest.raises(StoreError, match="full"):
                result_of(answer)
        kit.clock.advance(1)
        assert kit.heard.changes == ["the disk is full", ""]
        kit.say("after")
        assert kit.read() == ["before", "after"]
        assert [text for (text,) in rows(file, "SELECT text FROM message")] == ["before", "after"]

    def test_a_disk_that_is_read_only_now_is_a_failure_like_others(self, kit: Kit) -> None:
        kit.say("before")
        kit.store._database._connection.execute("PRAGMA query_only = ON")  # type: ignore[attr-defined]
        kit.say("x")
        assert kit.heard.changes == ["the disk is read-only"]
        kit.clock.advance(1)
        kit.say("after")
        assert kit.read() == ["before", "after"]

    def test_all_of_a_transaction_is_refused_in_order(self, kit: Kit) -> None:
        fill(kit)
        kit.work.held = True
        answer = kit.store.put(RoomRecord("den", "Den"))
        kit.say("a", "x" * 100_000, "b")
        kit.say("c")
        kit.work.go_on()
        assert [new.text[:1] for new in kit.heard.lost] == ["a", "x", "b", "c"]
        with pytest.raises(StoreError):
            result_of(answer)

    def test_a_lock_of_another_program_is_reported_and_waited_out(self, kit: Kit, file: Path) -> None:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        kit.say("x")
        assert len(kit.heard.lost) == 1
        other.execute("ROLLBACK")
        other.close()
        kit.clock.advance(1)
        assert kit.heard.changes[-1:] == [""]
        kit.say("y")
        assert kit.read() == ["y"]

    def test_attempts_grow_rarer_and_a_change_is_logged_once(self, kit: Kit, file: Path) -> None:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        kit.say("x")
        before = kit.work.runs
        kit.clock.pump([1] * 30)
        other.close()
        assert 3 <= kit.work.runs - before <= 6
        assert len(kit.heard.changes) == 1

    def test_a_disk_that_comes_and_goes_is_tried_ever_more_rarely(self, kit: Kit) -> None:
        for pause in (1, 2, 4, 8, 15, 15):
            fill(kit)
            kit.say("x" * 100_000)
            kit.clock.advance(pause - 0.1)
            assert kit.heard.changes[-1]
            kit.clock.advance(0.1)
            assert not kit.heard.changes[-1]
        kit.clock.advance(60)
        fill(kit)
        kit.say("x" * 100_000)
        kit.clock.advance(1)
        assert not kit.heard.changes[-1]

    def test_the_index_that_is_mapped_has_its_blocks_so_that_a_full_disk_kills_nothing(
        self, kit: Kit, file: Path
    ) -> None:
        kit.say("before")
        assert Path(f"{file}-shm").stat().st_blocks * 512 >= INDEX
        assert Path(f"{file}.lock").stat().st_size < 20
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        other = Database(str(file.with_name("other")), LIMITS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (INDEX - 1, limit[1]))
        try:
            with pytest.raises(UnusableError):
                other.open()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        # It was not opened: nothing has been mapped.
        assert not file.with_name("other").exists()
        other.open()
        other.close()

    def test_a_deleted_file_is_written_again_with_all_that_was_in_it(self, kit: Kit, file: Path) -> None:
        kit.store.put(RoomRecord("den", "Den"))
        kit.say("before")
        for name in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
            name.unlink()
        kit.say("not noticed yet")
        kit.time += LOOK
        kit.say("x")
        assert [new.text for new in kit.heard.lost] == ["x"]
        kit.clock.advance(1)
        kit.say("after")
        kept = ["before", "not noticed yet", "after"]
        assert [text for (text,) in rows(file, "SELECT text FROM message")] == kept
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [message.text for message in kit.restart().messages["den"]] == kept

    def test_a_replaced_file_is_not_touched_and_the_own_one_is_taken_back(self, kit: Kit, file: Path) -> None:
        kit.say("before")
        away = file.rename(file.with_name("away"))
        file.write_text("something else")
        kit.time += LOOK
        kit.say("x")
        kit.clock.advance(30)
        assert kit.heard.changes == ["the history was deleted"]
        assert file.read_text() == "something else"
        away.rename(file)
        kit.clock.advance(30)
        kit.say("after")
        assert kit.read() == ["before", "after"]

    def test_a_deleted_directory_is_a_failure_like_others(self, kit: Kit, file: Path, tmp_path: Path) -> None:
        kit.say("before")
        moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-away"))
        kit.time += LOOK
        kit.say("x")
        kit.clock.advance(1)
        assert len(kit.heard.changes) == 1
        moved.rename(tmp_path)
        kit.clock.advance(30)
        kit.say("after")
        assert kit.read() == ["before", "after"]

    def test_a_damaged_file_is_a_failure_like_others(self, kit: Kit, file: Path) -> None:
        kit.say(*range(100))
        database = kit.store._database  # type: ignore[attr-defined]
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database._connection.execute("PRAGMA cache_size = 0")
        with file.open("r+b") as damaged:
            damaged.seek(4096)
            damaged.write(b"\xff" * (file.stat().st_size - 4096))
        kit.say("x")
        assert kit.heard.changes and len(kit.heard.lost) == 1

    def test_too_much_that_waits_slows_and_then_is_refused(self, kit: Kit) -> None:
        kit.work.held = True
        kit.say("first")
        assert not kit.store.is_behind
        kit.say(*range(1000))
        assert kit.store.is_behind
        kit.say(*range(8000))
        assert 0 < len(kit.heard.lost) < 2000
        assert kit.heard.changes == []
        kit.work.held = False
        kit.work.go_on()
        assert not kit.store.is_behind
        assert len(kit.heard.messages) + len(kit.heard.lost) == 9001

    def test_closing_keeps_what_waits(self, kit: Kit, file: Path) -> None:
        kit.work.held = True
        kit.say("one")
        kit.store.append(NewMessage("den", "Ann", "two"))
        closed = kit.store.close()
        assert not closed.called
        kit.work.go_on()
        assert closed.called and kit.work.ended
        assert [message.text for message in kit.heard.messages] == ["one", "two"]
        assert not kit.clock.getDelayedCalls()
        assert [text for (text,) in rows(file, "SELECT text FROM message")] == ["one", "two"]

    def test_closing_in_a_failure_ends_all_attempts(self, kit: Kit) -> None:
        fill(kit)
        kit.say("x" * 100_000)
        assert result_of(kit.store.close()) is None
        assert kit.work.ended and not kit.clock.getDelayedCalls()


def test_much_is_removed_in_pieces(kit: Kit) -> None:
    kit.say(*range(2500), account="ann")
    kit.work.held = True
    answer = kit.store.forget("ann")
    pieces = 0
    kit.clock.advance(0)
    while kit.work.waiting:
        kit.work.waiting.pop()()
        kit.clock.advance(0)
        pieces += 1
    assert result_of(answer) == 2500
    assert pieces == 3


def test_what_is_deleted_is_overwritten(kit: Kit, file: Path) -> None:
    kit.say("a very particular secret", account="ann")
    kit.ask(kit.store.forget("ann"))
    kit.store.close()
    assert b"particular" not in file.read_bytes()
