"""Ports that are offered to another process, without a port."""

from __future__ import annotations

from collections.abc import Sequence


class NoOwner:
    """Has no port."""

    def pause(self) -> None:
        """Pause nothing."""

    def resume(self) -> None:
        """Resume nothing."""

    def release(self) -> None:
        """Release nothing."""

    def own(self, files: Sequence[str]) -> None:
        """Own nothing."""
