"""Up to when each account has read each room, for clients of the account to agree on."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from netsvc.services.chat.store.interface import Store, StoreError

__all__ = ["ReadMarkers"]


class ReadMarkers:
    """The read markers of accounts that are in use, as times in milliseconds. They never go back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._markers: dict[str, dict[str, int]] = {}

    def load(self, account: str) -> Deferred[None]:
        """Get an account's markers from the store. It fires when they can be asked for, and never fails."""
        if account in self._markers:
            return succeed(None)
        return self._store.marks(account).addCallbacks(lambda marks: self._loaded(account, marks), _ignore)

    def _loaded(self, account: str, marks: dict[str, int]) -> None:
        self._markers.setdefault(account, {}).update(marks)

    def get(self, account: str, target: str) -> int:
        """Return the marker of a target, 0 if it has none."""
        return self._markers.get(account, {}).get(target, 0)

    def advance(self, account: str, target: str, time: int) -> int:
        """Set the marker of a target, unless it is later already; return it."""
        marks = self._markers.setdefault(account, {})
        if time > marks.get(target, 0):
            marks[target] = time
            self._store.mark(account, target, time).addErrback(_ignore)
        return marks[target]


def _ignore(failure: Failure) -> None:
    failure.trap(StoreError)
