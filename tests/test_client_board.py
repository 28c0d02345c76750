"""The live view: what is drawn, and what keys do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from netsvc.client.board import CLOSE, LONGEST_SEARCH, MOST_ROWS, QUIT, REFRESH, Board
from netsvc.client.page import PROBLEM
from netsvc.client.summary import look
from netsvc.status import ConnectionQuery, ConnectionStatus, ProcessStatus
from tests.looks import ECHO, connection, process, status

PEERS = [connection(number, rate_in=100.0 - number) for number in range(30)]


def board(connections: Sequence[ConnectionStatus] = PEERS, *others: ProcessStatus, time: float = 0.0) -> Board:
    made = Board()
    show(made, connections, *others, time=time)
    return made


def show(shown: Board, connections: Sequence[ConnectionStatus], *others: ProcessStatus, time: float = 0.0) -> None:
    shown.show(look(status(process(0, connections), *others), time))


def text(shown: Board, width: int = 80, height: int = 24) -> str:
    return "\n".join(line for _, line in shown.lines(width, height))


def selected(shown: Board, height: int = 24) -> str:
    [line] = [line for style, line in shown.lines(80, height) if style == "reverse"]
    return line.split()[0].partition(":")[0].removeprefix("192.0.2.")


def press(shown: Board, *keys: str) -> list[str | None]:
    return [shown.press(key) for key in keys]


@settings(max_examples=20)
@given(st.integers(1, 250), st.integers(1, 60), st.lists(st.sampled_from(["tab", "down", "end", "?", "/", "c", "s"])))
def test_it_fits_any_terminal(width: int, height: int, keys: list[str]) -> None:
    shown = board()
    press(shown, *keys)
    lines = shown.lines(width, height)
    assert len(lines) == height
    assert {get_cwidth(line) for _, line in lines} == {width}


def test_before_anything_is_known_it_says_so_and_keys_do_no_harm() -> None:
    shown = Board()
    assert text(shown).startswith("netsvc has no process that tells anything yet")
    assert press(shown, "down", "end", "tab", "c", "s") == [None, None, None, None, REFRESH]
    shown.show(look(status(), 0.0))
    assert text(shown).startswith("netsvc has no process that tells anything yet")


def test_at_80_by_24_there_is_all_of_it() -> None:
    drawn = text(board())
    for part in (
        "open 2 ",
        "echo tcp       127.0.0.1:9001 ",
        "connections by rate: 30 of 2 ",
        "192.0.2.7:5000 ",
        "q quit",
    ):
        assert part in drawn


def test_what_is_wrong_stands_out() -> None:
    shown = Board()
    shown.show(look(status(process(not_ready=["chat line is down"], state="starting")), 0.0))
    wrong = [line.strip() for style, line in shown.lines(80, 24) if style == PROBLEM]
    assert wrong[0].startswith("netsvc 1.2  starting")
    assert wrong[1] == "not ready: chat line is down"
    assert wrong[2].startswith("chat line [::]:9002 tls proxy is down: it is \\x1b[2J gone")


def test_the_rates_of_the_last_minutes_are_drawn() -> None:
    shown = board()
    listener = replace(ECHO, counts=replace(ECHO.counts, bytes_in=9000))
    shown.show(look(status(process(listeners=[listener])), 1.0))
    assert "in  9.00 kB  4.00 kB/s  █ " in text(shown)


def test_the_first_is_selected_whichever_it_is_until_the_user_moves() -> None:
    shown = board()
    assert selected(shown) == "0"
    show(shown, [replace(PEERS[5], rate_in=1e6), *PEERS[:5]])
    assert selected(shown) == "5"


def test_the_selected_connection_stays_so_wherever_it_goes() -> None:
    shown = board()
    press(shown, "down", "j")
    assert selected(shown) == "2"
    show(shown, [replace(PEERS[2], rate_in=0.0), *PEERS[:2], *PEERS[3:20]])
    assert selected(shown) == "2"
    # The one that has its place, when it has ended.
    show(shown, PEERS[3:8])
    assert selected(shown) == "7"
    show(shown, [])
    assert "reverse" not in dict(shown.lines(80, 24))
    show(shown, PEERS)
    assert selected(shown) == "0"


def test_keys_move_through_all_of_them() -> None:
    shown = board()
    page = len([line for line in text(shown).splitlines() if line.startswith("192.")])
    for keys, place in (
        (["up"], 0),
        (["down"], 1),
        (["k"], 0),
        (["pagedown"], page),
        (["pageup"], 0),
        (["end"], 29),
        (["down"], 29),
        (["home"], 0),
    ):
        press(shown, *keys)
        assert selected(shown) == str(place)


def test_tab_goes_through_the_tables() -> None:
    shown = board(PEERS, process(2))
    for title in ("listeners: 2", "refusals: 2", "processes: 2", "connections by rate: 30"):
        press(shown, "tab")
        assert title in text(shown)
    press(shown, "tab")
    lines = shown.lines(80, 24)
    assert [style for style, line in lines if line.startswith("chat line")] == [PROBLEM]
    assert [style for style, line in lines if line.startswith("echo tcp")] == ["reverse"]
    # There is nothing to close.
    assert press(shown, "c") == [None]
    assert "q quit" in text(shown)


def test_many_listeners_leave_room_for_connections() -> None:
    listeners = [replace(ECHO, place=f"127.0.0.1:{port}") for port in range(1, 40)]
    listeners[30] = replace(listeners[30], up=False, problem="gone")
    shown = Board()
    shown.show(look(status(process(0, PEERS, listeners=listeners)), 0.0))
    drawn = text(shown)
    assert "127.0.0.1:31 is down: gone" in drawn
    assert "more: Tab" in drawn
    assert "192.0.2.5:5000" in drawn


def test_another_order_is_asked_for() -> None:
    shown = board()
    press(shown, "end")
    assert press(shown, "s") == [REFRESH]
    assert shown.query == ConnectionQuery(MOST_ROWS, "bytes", ())
    assert "connections by bytes" in text(shown)
    press(shown, "s")
    assert selected(shown) == "29"
    assert press(shown, "s", "s") == [REFRESH] * 2
    assert shown.order == "rate"


def test_a_search_is_typed_and_asked_for() -> None:
    shown = board()
    assert press(shown, "/", *"a qx", "backspace", "up", "\x1b", "tab") == [None] * 9
    assert shown.typing
    assert "/a q_" in text(shown)
    assert press(shown, "enter") == [REFRESH]
    assert shown.query.words == ("a", "q")
    assert "connections by rate: 30 with a q" in text(shown)
    press(shown, "/", "z", "escape")
    assert not shown.typing
    assert shown.search == "a q"
    press(shown, "/", *["backspace"] * 10, "enter")
    assert shown.query.words == ()


def test_a_search_is_bounded() -> None:
    shown = board()
    press(shown, "/", *["x"] * (LONGEST_SEARCH + 10), "enter")
    assert len(shown.search) == LONGEST_SEARCH


def test_a_connection_is_closed_after_a_question() -> None:
    shown = board()
    press(shown, "down")
    assert press(shown, "c") == [None]
    assert "close 192.0.2.1:5000 (echo tcp)? y closes it, any other key does not" in text(shown)
    # Another one is selected when that one has ended; it is not the one that was asked about.
    show(shown, PEERS[5:])
    assert "close 192.0.2.1:5000 (echo tcp)?" in text(shown)
    assert press(shown, "y") == [CLOSE]
    assert shown.to_close == "4242-1"
    assert press(shown, "c", "n") == [None, None]
    assert press(shown, "c", "q") == [None, None]


def test_a_notice_stays_until_the_next_key() -> None:
    shown = board()
    shown.notice = "closed"
    assert text(shown).splitlines()[-1].startswith("closed")
    press(shown, "down")
    assert "q quit" in text(shown)


def test_help_is_shown_until_any_key() -> None:
    shown = board()
    press(shown, "?")
    assert "quit; netsvc goes on" in text(shown)
    assert press(shown, "q") == [None]
    assert "quit; netsvc goes on" not in text(shown)


def test_a_key_that_means_nothing_does_nothing() -> None:
    shown = board()
    before = text(shown)
    assert press(shown, "x", "escape", "enter", "\x1b[2J") == [None] * 4
    assert text(shown) == before


def test_q_leaves() -> None:
    assert press(board(), "q") == [QUIT]


def test_what_was_seen_last_stays_while_there_is_no_answer() -> None:
    shown = board()
    shown.lost = "process 1 does not answer"
    assert "192.0.2.1:5000" in text(shown)
    assert text(shown).splitlines()[-1].startswith("trying again: process 1 does not answer")
    show(shown, PEERS)
    assert "trying again" not in text(shown)
