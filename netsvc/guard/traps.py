"""Sees the next thing that happens on a transport, and nothing more: to know of many that they are alive costs little.

The next call of its `doRead` or `doWrite` goes through a trap, once, and takes it away again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Traps"]


class Traps:
    """The traps of one transport. `call(argument)` is called when one springs, before what it stood before.

    A fake without `doRead` has them at its `write` and its protocol's `dataReceived`.
    """

    __slots__ = ("_argument", "_call", "_places", "heard", "sprung")

    def __init__(self, transport: Any, protocol: Any, call: Callable[[Any], None], argument: Any) -> None:
        self._call = call
        self._argument = argument
        self._places: tuple[tuple[Any, str], ...] = (
            ((transport, "doRead"), (transport, "doWrite"))
            if hasattr(transport, "doRead")
            else ((protocol, "dataReceived"), (transport, "write"))
        )
        #: Whether something was received, ever; and whether anything happened since the traps were laid.
        self.heard = False
        self.sprung = False

    def lay(self) -> None:
        """Lay those that are not laid."""
        self.sprung = False
        for number, (place, name) in enumerate(self._places):
            attributes = getattr(place, "__dict__", None)
            if attributes is None:
                # It takes none: then it is never silent.
                self.heard = self.sprung = True
            elif name not in attributes:
                # Twisted itself puts something there when it aborts, and that is to stay.
                setattr(place, name, _Trap(self, number))

    def clear(self) -> None:
        """Take them away: each refers to what it is laid at."""
        for place, name in self._places:
            _clear(place, name)

    def spring(self, number: int) -> Any:
        """Return the method that a trap stood before."""
        place, name = self._places[number]
        _clear(place, name)
        self.heard |= number == 0
        self.sprung = True
        self._call(self._argument)
        return getattr(place, name)


class _Trap:
    """Stands before one method for one call."""

    __slots__ = ("_number", "_traps")

    def __init__(self, traps: Traps, number: int) -> None:
        self._traps = traps
        self._number = number

    def __call__(self, *arguments: Any) -> Any:
        return self._traps.spring(self._number)(*arguments)


def _clear(place: Any, name: str) -> None:
    if isinstance(getattr(place, "__dict__", {}).get(name), _Trap):
        delattr(place, name)
