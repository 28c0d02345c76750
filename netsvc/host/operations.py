"""What can be seen of a running netsvc, and done with it, however many processes it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from netsvc.host.control import Answer
from netsvc.status import ConnectionQuery, ListenerStatus, ProcessStatus

__all__ = ["Operations"]


class Operations(Protocol):
    """For the admin page, the metrics and the commands. No Deferred of these fails."""

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        """Look at every process; a few milliseconds at most without a turn for others. Of one that does not answer
        in time, the last is told that is known."""

    def departed(self) -> list[ListenerStatus]:
        """Return what processes that have ended had counted, and listeners that are gone: so the sum of it and of all
        that are there only grows.

        Nobody is open there any more.
        """

    def departed_metrics(self) -> list[dict[str, Any]]:
        """Return what `ProcessStatus.metrics` of those processes were, merged."""

    def not_ready(self) -> list[str]:
        """Say in a line each what it is not ready for: an empty list says that it serves. Known at once."""

    def close_connection(self, connection: str) -> Deferred[bool]:
        """Close a connection in order, by its `ConnectionStatus.id`; forget a session. Tell whether it was there."""

    def reread(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """Read the configuration again, and run it. Not `reload`: so a root calls what runs a plan that was read."""

    def drain(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """Stop accepting, let conversations end, and stop. Fires with the report when all have ended."""

    def upgrade(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        """Have the program that is installed now take over. Fires when it has, or with the reason why not."""
