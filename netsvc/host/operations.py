"""What can be seen of a running netsvc, and done with it, however many processes it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from netsvc.host.control import Answer
from netsvc.status import ConnectionQuery, ListenerStatus, ProcessStatus

__all__ = ["Operations"]


class Operations(Protocol):
    """For the admin page, the metrics and the commands. No Deferred of these fails."""

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """Look at every process; a few milliseconds at most without a turn for others. One that does not answer in
        time is left out."""

    def departed(self) -> list[ListenerStatus]:
        """Return what processes that have ended had counted: so the sum of it and of all that are there only grows.

        Nobody is open there any more.
        """

    def not_ready(self) -> list[str]:
        """Say in a line each what it is not ready for: an empty list says that it serves. Known at once."""

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Close a connection in order, by its `ConnectionStatus.id`; forget a session. Tell whether it was there."""

    def reload(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """Read the configuration again."""

    def drain(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """Stop accepting, let conversations end, and stop. Fires with the report when all have ended."""

    def upgrade(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """Have the program that is installed now take over. Fires when it has, or with the reason why not."""
