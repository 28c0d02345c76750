"""Tokens that clients send to be admitted, in files of their own: an argument would be seen by every user."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from netsvc.base.files import read_file
from netsvc.base.text import escape

#: Characters of a token.
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 1024

_LONGEST_FILE = 64 * 1024
_TOKEN = re.compile(rb"[\x21-\x7e]+")


def read_token(path: str) -> bytes:
    """Read a token. Raises `ValueError` with a line that names the file."""
    shown = escape(path, 4096)
    try:
        token = read_file(path, _LONGEST_FILE).strip()
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror}") from None
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN or not _TOKEN.fullmatch(token):
        raise ValueError(
            f"{shown}: a token is a single line of {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters of "
            "ASCII; make one with: openssl rand -hex 32"
        )
    return token


def may_be_read_by_others(path: str) -> bool:
    """Return whether every user of the machine can read a file."""
    with suppress(OSError):
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    return False
