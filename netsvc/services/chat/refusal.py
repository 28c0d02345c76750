"""How the chat says no."""

from __future__ import annotations

__all__ = ["RefusedError"]


class RefusedError(Exception):
    """What a member asked for was not done. The text is one line for that member: why, and what would do."""
