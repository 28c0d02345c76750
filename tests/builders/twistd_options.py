"""Builds the options of twistd's netsvc command."""

from __future__ import annotations

from typing import Any

from netsvc import tap


def parse(*words: str, options: Any = tap.Options) -> Any:
    """Parse arguments as twistd does."""
    parsed = options()
    parsed.parseOptions(list(words))
    return parsed
