"""Host names that tell members with one address from those with another, and nothing about the address."""

from __future__ import annotations

import base64
import hashlib
import os

__all__ = ["Cloak"]


class Cloak:
    """Gives each peer a host name, until the process ends: the next one has another secret."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)

    def host(self, peer: str) -> str:
        """Return the host name of a peer, or of a network."""
        peer = peer.removesuffix("/32")
        digest = hashlib.blake2s(peer.encode("utf-8", "replace"), key=self._secret, digest_size=10).digest()
        return f"ip-{base64.b32encode(digest).decode().lower()}"
