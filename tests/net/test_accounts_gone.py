"""What listeners have counted that are gone is not forgotten: no sum is ever less than it was."""

from __future__ import annotations

from netsvc.guard.counters import MOST_DEPARTED, Book
from netsvc.plan.status import Counts, ProcessStatus, merge
from tests.builders.accounted import TCP, UDP, Accounts, accounts
from tests.builders.reloaded import ONE, plan


def totals(made: Accounts) -> Counts:
    """Add up what there is and what was."""
    status = made.status()
    gone = ProcessStatus("", 0, 0.0, listeners=made.world.host.departed())
    counts = Counts()
    for listener in merge([status, gone]):
        counts.add(listener.counts)
    return counts


def test_a_listener_that_is_gone_has_counted_what_it_has() -> None:
    with accounts(TCP, UDP) as made:
        world = made.world
        client, _ = world.greeting(world.port(0))
        assert world.echoes(client)
        client.close()
        assert made.last().reason == "peer"
        assert world.ask(world.port(1))
        before = totals(made)
        assert (before.accepted, before.open, before.ended.total()) == (2, 1, 1)
        world.reload(plan(ONE, TCP))
        for _ in range(2):
            # To look is what forgets those that are gone.
            after = totals(made)
            assert (after.accepted, after.open, dict(after.ended)) == (2, 0, {"peer": 1, "closed": 1})
            assert (after.bytes_in, after.datagrams_in) == (before.bytes_in, before.datagrams_in)
            world.advance(10)
        assert [listener.protocol for listener in made.status().listeners] == ["tcp"]


def test_one_that_is_reopened_is_not_counted_twice() -> None:
    book = Book()
    tally = book.open("echo", "tcp", "stream")
    tally.place, tally.counts.accepted, tally.closed = "*:1", 5, True
    book.prune()
    assert (book.departed[0].counts.accepted, tally.counts.accepted) == (5, 0)
    book.reopen(tally)
    tally.counts.accepted += 2
    tally.closed = True
    book.prune()
    assert [(each.key, each.counts.accepted) for each in book.departed] == [(("echo", "tcp", "*:1"), 7)]


def test_one_that_has_counted_nothing_is_nothing() -> None:
    book = Book()
    book.open("echo", "tcp", "stream").closed = True
    book.prune()
    assert not book.departed and not book.tallies


def test_so_many_are_kept_and_those_that_went_last() -> None:
    book = Book()
    for number in range(MOST_DEPARTED + 10):
        tally = book.open("echo", "tcp", "stream")
        tally.place, tally.counts.accepted, tally.closed = f"*:{number}", 1, True
        book.prune()
    assert len(book.departed) == MOST_DEPARTED
    assert book.departed[0].place == f"*:{MOST_DEPARTED + 9}"
