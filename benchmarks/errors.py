"""What goes wrong in a run, as one line for the user who started it."""

from __future__ import annotations

__all__ = ["BenchError"]


class BenchError(Exception):
    """A server or generator did not do its part; the text is the line to print."""
