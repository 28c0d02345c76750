"""A running netsvc that is not one: what the admin server shows and does, made up.

As a program, it serves a made-up site: `python -m tests.builders.admin_site CONNECTIONS`, and then, as many of them as
are wanted, `WORKERS ADDRESS TOKEN_FILE CA SCENE`.
A scene is `trouble`, where a port is in use and nothing is right; `large`, where everything is long and much; or
`fresh`, where nothing has happened yet.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed

from netsvc import __version__
from netsvc.plan.answer import Answer
from netsvc.plan.status import (
    ConnectionQuery,
    ConnectionStatus,
    Counts,
    LimitStatus,
    ListenerStatus,
    ProcessStatus,
    RefusalStatus,
    Vitals,
)

#: What a peer may call itself, where it may choose.
HOSTILE = "<img src=x onerror=document.title='owned'>"

LIMITS = [
    LimitStatus("connections", "10000", "process", False, False),
    LimitStatus("perip", "100", "listener", True, False),
    LimitStatus("periprate", "20/s", "listener", False, True),
    LimitStatus("idle", "300", "listener", False, False),
    LimitStatus("life", "none", "listener", False, False),
]


def listener(service: str, protocol: str, place: str, kind: str = "stream", **more: Any) -> ListenerStatus:
    return ListenerStatus(service, protocol, place, kind, place, limits=list(LIMITS), **more)


def process(**more: Any) -> ProcessStatus:
    """Make a process with an echo, one connection, and a refusal."""
    made: dict[str, Any] = {
        "state": "ready",
        "listeners": [
            listener("echo", "tcp", "*:9001", counts=Counts(accepted=3, open=1, bytes_in=10, refused=Counter(idle=2)))
        ],
        "connections": [
            ConnectionStatus("0-1", "echo", "tcp", "*:9001", "stream", "192.0.2.7:5000", 4.0, 10, 20, 1, 2)
        ],
        "refusals": [RefusalStatus(1000.0, "echo", "tcp", "*:9001", "192.0.2.8:1", "connections", "refused")],
        "vitals": Vitals(0.001, 0.02, 20, 1024, 1 << 26, 1.5),
        **more,
    }
    return ProcessStatus("1.0", 4711, 1.0, **made)


class FakeOperations:
    """What the admin server asks is noted in `asked`; what it gets is in the other attributes."""

    def __init__(self, *statuses: ProcessStatus) -> None:
        self.statuses = list(statuses) or [process()]
        self.gone: list[ListenerStatus] = []
        self.gone_metrics: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.asked: list[Any] = []
        self.answer: Deferred[Answer] | Answer = Answer(0, ["reloaded: nothing has changed"])
        #: While it is a list, whoever asks for the status waits in it.
        self.held: list[Deferred[list[ProcessStatus]]] | None = None

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        self.asked.append(query)
        if self.held is not None:
            self.held.append(Deferred())
            return self.held[-1]
        return succeed([replace(each, connections=query.pick(each.connections)) for each in self.statuses])

    def departed(self) -> list[ListenerStatus]:
        return self.gone

    def departed_metrics(self) -> list[dict[str, Any]]:
        return self.gone_metrics

    def not_ready(self) -> list[str]:
        return self.lines

    def close_connection(self, connection: str) -> Deferred[bool]:
        self.asked.append(connection)
        for status in self.statuses:
            for each in status.connections:
                if each.id == connection:
                    status.connections.remove(each)
                    return succeed(True)
        return succeed(False)

    def _command(self, name: str) -> Deferred[Answer]:
        self.asked.append(name)
        return self.answer if isinstance(self.answer, Deferred) else succeed(self.answer)

    def reread(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        return self._command("reload")

    def drain(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        return self._command("drain")

    def upgrade(self, words: Sequence[str] = ()) -> Deferred[Answer]:
        return self._command("upgrade")


def exposition(
    statuses: Sequence[ProcessStatus],
    departed: Sequence[ListenerStatus],
    accept: str,
    departed_metrics: Sequence[Sequence[dict[str, Any]]],
) -> tuple[bytes, str]:
    """Stand in for the real metrics."""
    gone = "".join(f"# {metric['name']}\n" for metrics in departed_metrics for metric in metrics)
    return f"# {len(statuses)} {len(departed)} {accept}\n{gone}".encode(), "text/plain; version=0.0.4"


class _Site(FakeOperations):
    """Connections that come and go, and talk, as the reactor's time goes by."""

    def __init__(self, reactor: Any, connections: int, workers: int, scene: str = "") -> None:
        self._reactor = reactor
        self._scene = scene
        self._random = random.Random(7)
        self._number = 0
        numbers = range(1, workers + 1) if workers > 1 else (0,)
        now = reactor.seconds()
        super().__init__(
            *(
                ProcessStatus(__version__, 4200 + number, now - 93_784, number, "ready", listeners=_listeners(scene))
                for number in numbers
            )
        )
        self.lines = [
            f"{each.service} {each.protocol} is down: {each.problem}"
            for each in self.statuses[0].listeners
            if not each.up
        ]
        self._born: dict[str, float] = {}
        self._last = now
        self._about = connections // workers
        if scene == "fresh":
            for status in self.statuses:
                status.started, status.vitals = now - 3, Vitals(0.0, 0.0, 19, 20_000, 54_200_000, 0.38, 4)
            return
        # The first of a process stays.
        self._come(self.statuses[0], now - 5000, HOSTILE)
        for status in self.statuses:
            for _ in range(connections // workers):
                self._come(status, now - self._random.expovariate(1 / 900))

    def _come(self, status: ProcessStatus, born: float, peer: str = "") -> None:
        number = self._random.choices(range(5), (5, 3, 6, 2, 1))[0]
        if not status.listeners[number].up:
            number = 0
        each = status.listeners[number]
        self._number += 1
        host = f"{self._random.choice(('192.0.2', '198.51.100', '203.0.113'))}.{self._number % 250 + 1}"
        if self._number % 9 == 4:
            host = f"[2001:db8::{self._number:x}]"
        peer = peer or f"{host}:{self._random.randrange(20000, 60000)}"
        name = f"{status.pid}-{self._number}"
        self._born[name] = born
        age = self._reactor.seconds() - born
        # An echo sends what has come, a room to all what one says, a download little and then much.
        received, sent = ((150, 150), (210, 210), (24, 330), (0.4, 600), (24, 17))[number]
        weight = min(self._random.paretovariate(1.1), 40.0)
        if self._scene == "large":
            received, sent, age = received * 4000, sent * 4000, age + 86400 * 31
            peer = f"/run/user/{self._number}/a-client-with-a-long-name/{'of-many-parts/' * 6}socket"[-250:]
        status.connections.append(
            ConnectionStatus(
                name, each.service, each.protocol, each.place, each.kind, peer, age,
                int(age * weight * received), int(age * weight * sent), weight * received, weight * sent,
            )
        )  # fmt: skip
        each.counts.accepted += 1

    def status(self, query: ConnectionQuery) -> Deferred[list[ProcessStatus]]:
        if self._scene != "fresh" and self._reactor.seconds() - self._last > 0.9:
            self.turn()
        return super().status(query)

    def turn(self) -> None:
        """Let a second go by."""
        now = self._last = self._reactor.seconds()
        wave = 1 + 0.4 * math.sin(now / 21) + 0.25 * math.sin(now / 4.7)
        for status in self.statuses:
            for _ in range(int(self._random.uniform(1, 9) * wave)):
                self._come(status, now)
            more = (len(status.connections) - self._about) / 15
            for _ in range(max(0, int(self._random.uniform(1, 9) * wave + more))):
                if len(status.connections) > 2:
                    gone = status.connections.pop(self._random.randrange(1, len(status.connections)))
                    del self._born[gone.id]
            moved = []
            for each in status.connections:
                rate_in, rate_out = each.rate_in * wave, each.rate_out * wave
                moved.append(
                    each._replace(
                        age=now - self._born[each.id],
                        bytes_in=each.bytes_in + int(each.rate_in),
                        bytes_out=each.bytes_out + int(each.rate_out),
                        rate_in=rate_in / wave,
                        rate_out=rate_out / wave,
                    )
                )
            status.connections[:] = moved
            for each_listener in status.listeners:
                counts = each_listener.counts
                mine = [each for each in moved if (each.service, each.protocol) == each_listener.key[:2]]
                counts.open = len(mine)
                counts.bytes_in += int(sum(each.rate_in for each in mine) * wave)
                counts.bytes_out += int(sum(each.rate_out for each in mine) * wave)
                if each_listener.kind == "datagram":
                    answered = int(220 * wave)
                    counts.datagrams_in += answered
                    counts.datagrams_out += answered - int(self._random.uniform(0, 9))
            for limit, often in (("perip", 2.2), ("periprate", 1.4), ("deny", 0.4)):
                for _ in range(int(self._random.uniform(0, often * wave))):
                    each_listener = self._random.choice(status.listeners[:4])
                    each_listener.counts.refused[limit] += 1
                    peer = f"198.51.100.{self._random.randrange(250)}"
                    status.refusals.append(RefusalStatus(now, *each_listener.key, peer, limit, "refused"))
            del status.refusals[:-100]
            delay = abs(self._random.gauss(0.0006, 0.0008)) * wave
            worst = max(delay, status.vitals.worst_delay * 0.97)
            status.vitals = Vitals(
                delay, worst, 40 + len(moved), 20_000, 61_500_000 + 3000 * len(moved), status.vitals.cpu + 0.1
            )


def _listeners(scene: str) -> list[ListenerStatus]:
    port_in_use: dict[str, Any] = (
        {"up": False, "problem": "port 9004 is in use; stop what uses it"} if scene == "trouble" else {}
    )
    more = [
        listener(f"gateway-{number}", "line", f"/run/netsvc/{'devices-of-the-north-wing/' * 4}{number}.socket")
        for number in range(35 if scene == "large" else 0)
    ]
    return [
        listener("echo", "tcp", "*:9001"),
        listener("echo", "udp", "*:9001", "datagram"),
        listener("chat", "line", "*:9443", tls=True),
        listener("files", "classic", "*:9003", proxy=True),
        listener("reply", "tcp", "127.0.0.1:9004", **port_in_use),
        *more,
    ]


def main(*words: str) -> None:
    """Serve until it is ended. The last minutes are made up as well."""
    from twisted.internet import reactor

    from netsvc.admin.history import SPAN
    from netsvc.admin.server import AdminServer
    from netsvc.admin.status import COUNTS, Sample
    from netsvc.plan.address import parse_address
    from netsvc.plan.plan import AdminUse

    given = dict(enumerate(words))
    connections, workers = int(given[0]), int(given.get(1, 1))
    address, token_file, client_ca, scene = given.get(2, "0"), given.get(3, ""), given.get(4, ""), given.get(5, "")
    any_reactor: Any = reactor

    class Past:
        now: float = any_reactor.seconds() - SPAN - 2

        def seconds(self) -> float:
            return self.now

    failed: list[str] = []
    past = Past()
    if scene == "fresh":
        past.now = any_reactor.seconds()
    site = _Site(past, connections, workers, scene)
    server = AdminServer(
        any_reactor, AdminUse(parse_address(address, "stream"), token_file or None, client_ca or None), site, exposition
    )
    server.open().addErrback(lambda failure: failed.append(str(failure.value)))
    if failed:
        sys.exit(failed[0])
    watching: Any = server._stream
    watching.history.points.clear()
    for _ in range(0 if scene == "fresh" else int(SPAN) + 1 if connections < 1000 else 2):
        past.now += 1
        site.status(COUNTS).addCallback(lambda statuses: watching.history.add(Sample(past.now, statuses, [])))
    site._reactor = any_reactor
    if watching.history.points:
        watching.history.points.popleft()
    print(f"admin listens on {server.place()}", flush=True)
    # A signal ends it, as it does a service.
    any_reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
