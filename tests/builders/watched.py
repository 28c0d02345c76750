"""Connections to watch, and what a kernel would say of them, by a clock of the test's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock

from netsvc.guard.timeouts import Watch, Watched
from netsvc.reactor.hooks import Hooks

OFF = (None, False)


class Kernel:
    """What a kernel knows of one TCP connection, in the layout of Linux."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.received = self.acknowledged = self.outstanding = self.asked = self.retransmitted = self.probed = 0
        self.timeout = 200_000
        self.received_at = self.sent_at = self.heard_at = clock.seconds()

    def receive(self, count: int = 1) -> None:
        self.received += count
        self.received_at = self.heard_at = self._clock.seconds()

    def send(self) -> None:
        self.outstanding += 1
        self.sent_at = self._clock.seconds()

    def hear(self, count: int = 0) -> None:
        """An acknowledgement comes: of so many bytes more."""
        self.acknowledged += count
        self.outstanding = 0 if count else self.outstanding
        self.retransmitted = self.probed = 0
        self.timeout = 200_000
        self.heard_at = self._clock.seconds()

    def retransmit(self, most: int = 120_000_000) -> float:
        """Send the same segment once more; return the seconds until the next time."""
        self.retransmitted += 1
        self.sent_at = self._clock.seconds()
        self.timeout = min(2 * self.timeout, most)
        return self.timeout / 1e6

    def getsockopt(self, *arguments: object) -> bytes:
        self.asked += 1
        ago = [round((self._clock.seconds() - at) * 1000) for at in (self.sent_at, self.received_at, self.heard_at)]
        tries = (self.retransmitted, self.probed, self.timeout, self.outstanding)
        fields = (1, *tries, *ago, self.acknowledged, self.received, 0, 0, 0)
        return struct.pack("=BxBB4xI12xI16xI4xII60xQQ8xI52xQQ", *fields)


class Wire(Hooks):
    """A transport with hooks: what was asked of it, in words."""

    TLS = False

    def __init__(self, kernel: Kernel | None = None) -> None:
        self.asked: list[str] = []
        self.protocol: Any = None
        if kernel is not None:
            self.counted_by_kernel = True
            self.socket = kernel

    def receive(self, clock: Clock) -> None:
        """Receive a byte that is counted here."""
        self.received += 1
        self.moved_at = clock.seconds()

    def send(self, clock: Clock) -> None:
        """Send a byte that is counted here."""
        self.sent += 1
        self.moved_at = clock.seconds()

    def loseConnection(self) -> None:
        self.asked.append("lose")

    def loseWriteConnection(self) -> None:
        self.asked.append("half")

    def abortConnection(self) -> None:
        self.asked.append("abort")


class Layer:
    """What stands around a transport."""

    def __init__(self, transport: Any, **attributes: Any) -> None:
        self.transport = transport
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Connection(Watched):
    __slots__ = ("name", "protocol", "transport")

    def __init__(self, transport: Any, protocol: Any = None, name: str = "") -> None:
        super().__init__()
        self.hooks = self.transport = transport
        self.protocol = protocol
        self.name = name


class Turns(Clock):
    """A clock that, as a reactor does, leaves for its next turn what is asked for in this one."""

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        due: list[Any] = [call for call in self.getDelayedCalls() if call.getTime() <= self.seconds()]
        for call in due:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Bench:
    """A watch with a clock, and what it says."""

    def __init__(self) -> None:
        self.clock = Turns()
        # Some time that is no round number.
        self.clock.advance(1000.3)
        self.began = self.clock.seconds()
        self.said: list[tuple[float, Any, str]] = []
        self.watch = Watch(self.clock, self._say("ended"), self._say("reported"))

    def _say(self, word: str) -> Callable[[Any, str], None]:
        def say(connection: Any, limit: str) -> None:
            self.said.append((self.now(), connection, f"{word} {limit}"))

        return say

    def now(self) -> float:
        return round(self.clock.seconds() - self.began, 6)

    def words(self) -> list[str]:
        return [word for _, _, word in self.said]

    def run(self, seconds: float, step: float = 0.05) -> None:
        until = self.clock.seconds() + seconds
        while (left := until - self.clock.seconds()) > 1e-9:
            self.clock.advance(min(step, left))

    def tcp(self) -> tuple[Connection, Kernel]:
        kernel = Kernel(self.clock)
        return Connection(Wire(kernel)), kernel


def only(limit: str, value: float, dry: bool = False) -> tuple[Any, Any, Any]:
    return tuple((value, dry) if name == limit else OFF for name in ("handshake", "idle", "life"))  # type: ignore[return-value]
