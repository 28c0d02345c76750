"""The members by peer, and who loses its place to a new member when all places are taken."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

__all__ = ["Places"]


class _Placed(Protocol):
    @property
    def peer(self) -> str: ...


M = TypeVar("M", bound=_Placed)


class Places(Generic[M]):
    """The members by peer (the key of their address), each with the time when it was last heard."""

    def __init__(self) -> None:
        #: The longest silent member of a peer first.
        self._crowds: dict[str, dict[M, float]] = {}

    def heard(self, member: M, now: float) -> None:
        """Record that a member, which may be a new one, is not silent."""
        crowd = self._crowds.setdefault(member.peer, {})
        # Reinserted, to be the last one.
        crowd.pop(member, None)
        crowd[member] = now

    def leave(self, member: M) -> None:
        """Forget a member."""
        crowd = self._crowds[member.peer]
        del crowd[member]
        if not crowd:
            del self._crowds[member.peer]

    def find_victim(self, peer: str, now: float, *, kept: int, silence: float) -> tuple[M, int] | None:
        """Return the member whose place a new member of `peer` gets, or None if it gets none.

        It is the longest silent one of the peer with the most members, if these are more than `kept`, and more than
        `peer` has with the new one; the number of these members is returned, too. Otherwise it is the longest silent
        of all, if it has been silent for `silence` seconds; the number is 0. So a few addresses cannot keep others
        out by many connections. Nor can they evict all who only read: a peer that has `kept` members gets a place
        from its own silent ones only.
        """
        own = self._crowds.get(peer, {})
        largest = max(self._crowds.values(), key=len)
        if len(largest) > max(kept, len(own) + 1):
            return next(iter(largest)), len(largest)
        crowds = self._crowds.values() if len(own) < kept else [own]
        member, heard = min((next(iter(crowd.items())) for crowd in crowds), key=lambda item: item[1])
        return (member, 0) if now - heard >= silence else None
