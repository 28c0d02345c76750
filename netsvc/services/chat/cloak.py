"""Host names that tell members with one address from those with another, and nothing about the address."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from netsvc.base.errors import UserError
from netsvc.base.files import read_file, write_atomic
from netsvc.base.text import escape

__all__ = ["Cloak", "load_secret"]

_SECRET_BYTES = 32


def load_secret(path: Path) -> bytes:
    """Return the secret in a file, after creating it if necessary, so that host names outlive the process.

    Raises `UserError`.
    """
    shown = escape(str(path), 4096)
    try:
        try:
            secret = read_file(path, _SECRET_BYTES)
        except FileNotFoundError:
            secret = os.urandom(_SECRET_BYTES)
            write_atomic(path, secret)
    except OSError as error:
        raise UserError([f"{shown}: {error.strerror or error}; the chat needs this file for the host names"]) from None
    if len(secret) != _SECRET_BYTES:
        raise UserError([f"{shown}: it must have {_SECRET_BYTES} bytes; remove it, and bans of host names end"])
    return secret


class Cloak:
    """Gives each peer a host name: the same for the same secret, which is a new one unless it is given."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or os.urandom(_SECRET_BYTES)

    def host(self, peer: str) -> str:
        """Return the host name of a peer, or of a network."""
        peer = peer.removesuffix("/32")
        digest = hashlib.blake2s(peer.encode("utf-8", "replace"), key=self._secret, digest_size=10).digest()
        return f"ip-{base64.b32encode(digest).decode().lower()}"
