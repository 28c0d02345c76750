"""Slows senders while a receiver is behind, so that no receiver is disconnected for what others send at once."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

__all__ = ["CongestedError", "Congestion"]

#: Bytes of an event besides the texts in it, about.
_FRAME = 16


class CongestedError(Exception):
    """A receiver of a member's action is behind. Nothing was done; `Congestion.wait` says when to try again."""

    def __init__(self, receivers: Set[Any]) -> None:
        super().__init__("a receiver is behind")
        self.receivers = receivers


class Congestion:
    """Which receivers are behind, and the senders that wait for them.

    A receiver is behind from when its transport is full until the transport has sent everything. What is sent to it
    meanwhile passes at `rate` bytes a second, all senders to all such receivers together. So a receiver that reads at
    least that fast is never further behind, and one that does not read delays the others no more than that. As soon as
    no receiver of theirs is behind, senders continue at once. Waiting senders take turns.
    """

    def __init__(self, clock: Any, rate: float) -> None:
        self._clock = clock
        self.rate = rate
        self._behind: set[Any] = set()
        #: The time from which the next event for a receiver that is behind may pass.
        self._free_at = 0.0
        #: How to resume each waiting sender, and the receivers that it waits for. Longest waiting first.
        self._waiting: dict[Callable[[], None], Set[Any]] = {}
        self._call: Any = None

    def __len__(self) -> int:
        """Return the number of receivers that are behind."""
        return len(self._behind)

    def fell_behind(self, receiver: Any) -> None:
        """Slow those who send to a receiver."""
        self._behind.add(receiver)

    def caught_up(self, receiver: Any) -> None:
        """Stop slowing senders for a receiver: it has everything, or is gone. Does nothing if it was not behind."""
        if receiver in self._behind:
            self._behind.remove(receiver)
            if self._waiting:
                # Not in the middle of a delivery; and once for all receivers that catch up in one turn.
                self._schedule(0)

    def admit(self, receivers: Set[Any], *texts: str) -> None:
        """Let an event with these texts pass to all `receivers`. Raises `CongestedError` if it has to wait."""
        if not self._behind or receivers.isdisjoint(self._behind):
            return
        now = self._clock.seconds()
        if now < self._free_at:
            raise CongestedError(receivers)
        self._free_at = now + (_FRAME + sum(len(text.encode("utf-8", "replace")) for text in texts)) / self.rate

    def wait(self, resume: Callable[[], None], receivers: Set[Any]) -> None:
        """Call `resume` once when it is a sender's turn. It may find that it has to wait again."""
        self._waiting[resume] = receivers
        if self._call is None:
            self._schedule(max(0, self._free_at - self._clock.seconds()))

    def forget(self, resume: Callable[[], None]) -> None:
        """Do not resume a sender. Does nothing if it does not wait."""
        self._waiting.pop(resume, None)
        if not self._waiting and self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self, seconds: float) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call = self._clock.callLater(seconds, self._resume_some)

    def _resume_some(self) -> None:
        self._call = None
        try:
            for resume, receivers in list(self._waiting.items()):
                # One that was resumed before it in this loop may have disconnected it.
                if resume not in self._waiting:
                    continue
                if self._clock.seconds() < self._free_at and not receivers.isdisjoint(self._behind):
                    continue
                del self._waiting[resume]
                resume()
        finally:
            if self._waiting and self._call is None:
                self._schedule(max(0, self._free_at - self._clock.seconds()))
