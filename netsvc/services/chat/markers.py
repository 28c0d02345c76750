"""Up to when each account has read each room, for clients of the account to agree on."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from netsvc.services.chat.store.interface import Store, StoreError, StoreLimits

__all__ = ["ReadMarkers", "marker_key"]


#: Markers of one account.
_MOST = StoreLimits().markers


class _Room(Protocol):
    @property
    def key(self) -> str: ...


def marker_key(room: _Room) -> str:
    """Return the target that stands for a room; a member's is its key."""
    return f"#{room.key}"


class ReadMarkers:
    """The read markers of accounts that are in use, as times in milliseconds. They never go back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._markers: dict[str, dict[str, int]] = {}
        #: The accounts whose markers came from the store.
        self._loaded: set[str] = set()

    def load(self, account: str) -> Deferred[None]:
        """Get an account's markers from the store. It fires when they can be asked for, and never fails."""
        if account in self._loaded:
            return succeed(None)
        return self._store.marks(account).addCallbacks(lambda marks: self._add(account, marks), _ignore)

    def _add(self, account: str, marks: dict[str, int]) -> None:
        # Those that were set meanwhile are later ones.
        self._loaded.add(account)
        self._markers[account] = {**marks, **self._markers.get(account, {})}

    def get(self, account: str, target: str) -> int:
        """Return the marker of a target, 0 if it has none."""
        return self._markers.get(account, {}).get(target, 0)

    def advance(self, account: str, target: str, time: int) -> int:
        """Set the marker of a target, unless it is later already; return it."""
        marks = self._markers.setdefault(account, {})
        before = marks.get(target, 0)
        if time > before:
            # Reinserted, to be the last one, as in the store.
            marks.pop(target, None)
            marks[target] = time
            while len(marks) > _MOST:
                del marks[next(iter(marks))]
            self._store.mark(account, target, time).addErrback(_ignore)
        return max(time, before)


def _ignore(failure: Failure) -> None:
    failure.trap(StoreError)
