"""The live view of `netsvc status` without a terminal: keys in, lines out."""

from __future__ import annotations

from typing import Any

from netsvc.client.figures import BLOCKS, count, fit, row, titles
from netsvc.client.page import HEAD, PLAIN, Styled, head, listener_line, tables
from netsvc.client.summary import Look, Rates
from netsvc.status import ORDERS, ConnectionQuery
from netsvc.text import plain

__all__ = ["CLOSE", "LONGEST_SEARCH", "MOST_ROWS", "QUIT", "REFRESH", "Board"]

#: What the user wants: to leave, to have what is asked for now, to close the selected connection.
QUIT, REFRESH, CLOSE = "quit", "refresh", "close"
#: Connections that are asked for. Whoever wants to see another one searches for it.
MOST_ROWS = 200
#: Characters.
LONGEST_SEARCH = 100
#: Listeners that are shown above the connections, where there is room.
_MOST_ABOVE = 6

_SELECTED = "reverse"
_KEYS = "q quit  ↑↓ move  Tab table  s sort  / search  c close  ? help"
_HELP = """\
q, Ctrl-C          quit; netsvc goes on
↑ ↓, k j           move; PgUp, PgDn, Home and End as well
Tab                the next table: connections, listeners, refusals, processes
s                  sort connections by rate, bytes, age, or the newest first
/                  search: connections that have every word in peer, service or place; empty for all
c                  close the selected connection, after a question

IN and OUT are bytes: of a connection all that came and went, and those of the last second.
The lines at the top draw the last minutes, the newest on the right.
W is the worker that has the connection. Any key closes this help."""


class Board:
    """What is seen, what is selected, and what a key does. `blocks` draw the rates."""

    def __init__(self, blocks: str = BLOCKS) -> None:
        self.order = "rate"
        self.search = ""
        #: A line about what the last command did, until the next key.
        self.notice = ""
        #: Why there is no answer; empty as long as there is one.
        self.lost = ""
        self._blocks = blocks
        self._look: Look | None = None
        self._rates = Rates()
        self._mode = "list"
        self._typed = ""
        self._table = "connections"
        self._place = 0
        self._selected: Any = None
        #: Whether the user has chosen what is selected: until then it is the first, whichever that is.
        self._chosen = False
        #: The connection that is to be closed, if the question is answered so.
        self._asked: Any = None
        self._height = 1

    @property
    def query(self) -> ConnectionQuery:
        """What is to be asked for."""
        return ConnectionQuery(MOST_ROWS, self.order, tuple(self.search.split()))

    @property
    def typing(self) -> bool:
        """Whether a search is being typed."""
        return self._mode == "search"

    @property
    def to_close(self) -> str:
        """The id of the connection that is to be closed."""
        return str(self._asked.id)

    @property
    def _connection(self) -> str:
        return getattr(self._selected, "id", "")

    def show(self, look: Look) -> None:
        """Show another look. The same connection stays selected, wherever it is now."""
        self._look, self.lost = look, ""
        self._rates.add(look)
        self._select()

    def _rows(self) -> Any:
        assert self._look is not None
        return tables(self._look, self._rates, self.order)[self._table][1]

    def _select(self, move: int | None = None) -> None:
        rows = self._rows() if self._look is not None else []
        if move is not None:
            self._chosen = True
        elif self._chosen and self._connection:
            ids = [getattr(each, "id", "") for each in rows]
            self._place = ids.index(self._connection) if self._connection in ids else self._place
        self._place = max(0, min(self._place + (move or 0), len(rows) - 1))
        self._selected = rows[self._place] if rows else None

    def _to_top(self) -> None:
        self._place, self._chosen = 0, False
        self._select()

    def press(self, key: str) -> str | None:
        """Do what a key does: a character, or a name such as `up`. Returns what the user wants beyond that."""
        self.notice = ""
        if self._mode == "search":
            return self._edit(key)
        if self._mode == "confirm":
            self._mode = "list"
            return CLOSE if key in ("y", "Y") else None
        if self._mode == "help":
            self._mode = "list"
            return None
        return self._command(key)

    def _command(self, key: str) -> str | None:
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "end": 1 << 30}
        moves |= {"pageup": -self._height, "pagedown": self._height}
        if key in moves:
            self._select(moves[key])
        elif key == "home":
            self._to_top()
        elif key == "q":
            return QUIT
        elif key == "?":
            self._mode = "help"
        elif key == "/":
            self._mode, self._typed = "search", self.search
        elif key == "tab":
            names = ["connections", "listeners", "refusals", "processes"]
            self._table = names[(names.index(self._table) + 1) % len(names)]
            self._to_top()
        elif key == "s":
            orders = list(ORDERS)
            self.order = orders[(orders.index(self.order) + 1) % len(orders)]
            self._to_top()
            return REFRESH
        elif key == "c" and self._connection:
            # Which one is selected may change while the question stands there.
            self._mode, self._asked = "confirm", self._selected
        return None

    def _edit(self, key: str) -> str | None:
        if key == "enter":
            self._mode, self.search = "list", self._typed
            self._to_top()
            return REFRESH
        if key == "escape":
            self._mode = "list"
        elif key == "backspace":
            self._typed = self._typed[:-1]
        elif len(key) == 1 and key.isprintable():
            self._typed = (self._typed + key)[:LONGEST_SEARCH]
        return None

    def lines(self, width: int, height: int) -> list[Styled]:
        """Draw it, in exactly `height` lines of `width` columns."""
        body = self._body(width, height - 1)
        drawn = [(style, fit(text, width)) for style, text in [*body, *[(PLAIN, "")] * height][: height - 1]]
        return [*drawn, (HEAD, fit(self._last_line(), width))]

    def _body(self, width: int, height: int) -> list[Styled]:
        if self._mode == "help":
            return [(PLAIN, line) for line in _HELP.splitlines()]
        if self._look is None or not self._look.processes:
            return [(PLAIN, "netsvc has no process that tells anything yet")]
        top = head(self._look, self._rates, width, self._blocks)
        shown = tables(self._look, self._rates, self.order)
        if self._table == "connections":
            columns, listeners = shown["listeners"]
            room = min(_MOST_ABOVE, max(1, (height - len(top) - 4) // 3))
            # Those that are down come first, and then those that have most to do.
            busiest = sorted(listeners, key=lambda each: (each.up, -each.counts.open))[:room]
            listed = [each for each in listeners if each in busiest]
            top += [(PLAIN, ""), (HEAD, titles(columns, width))]
            top += [listener_line(columns, each, width) for each in listed]
            if len(listeners) > len(listed):
                top.append((PLAIN, f"and {len(listeners) - len(listed)} more: Tab"))
        columns, rows = shown[self._table]
        top += [(PLAIN, ""), (PLAIN, self._title(len(rows))), (HEAD, titles(columns, width))]
        self._height = max(1, height - len(top))
        first = max(0, min(self._place - self._height // 2, len(rows) - self._height))
        for place, each in enumerate(rows[first : first + self._height], first):
            style, line = (PLAIN, row(columns, each, width))
            if self._table == "listeners":
                style, line = listener_line(columns, each, width)
            top.append((_SELECTED if place == self._place else style, line))
        return top

    def _title(self, rows: int) -> str:
        assert self._look is not None
        if self._table != "connections":
            return f"{self._table}: {count(rows)}"
        found = f" with {plain(self.search)}" if self.search else f" of {count(self._look.totals.open)}"
        return f"connections by {self.order}: {count(rows)}{found}"

    def _last_line(self) -> str:
        if self._mode == "search":
            return f"/{self._typed}_"
        if self._mode == "confirm":
            each = self._asked
            return f"close {each.peer} ({each.service} {each.protocol})? y closes it, any other key does not"
        if self.lost:
            return f"trying again: {self.lost}"
        return self.notice or _KEYS
