"""The answer of a running process to a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """The answer to a command: `status` 0 if it succeeded, and lines for the user."""

    status: int
    lines: Sequence[str]
