"""What is measured: the servers of each case, the load on them, and what is compared."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from benchmarks.files import BOOT, LARGE, MIDDLE, SMALL
from benchmarks.servers import (
    CHAT,
    DATAGRAM,
    FILES,
    FILES_CONTROL,
    HTTP,
    HTTP_CONTROL,
    HTTPS,
    NETSVC,
    STREAM,
    TFTP,
    TWISTD,
    WORKERS,
    Server,
)

__all__ = ["CASES", "Case", "Measure", "Phase", "phase_of"]


class Measure(Enum):
    """What a case compares."""

    RATE = "rate"
    TAIL = "tail"
    MEMORY = "memory"
    START = "start"


@dataclass(frozen=True)
class Phase:
    """One table: its key and title, what is counted, and how CPU time is told (for so many operations)."""

    key: str
    title: str
    unit: str
    measure: Measure = Measure.RATE
    per: float = 1e6
    per_name: str = "million"
    #: An operation in multiples of the unit.
    scale: float = 1.0

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the value is good."""
        return self.measure is Measure.RATE


@dataclass(frozen=True)
class Case:
    """Servers under one load. A generator has a phase for each table; without a generator only the start counts."""

    name: str
    servers: tuple[Server, ...]
    phases: tuple[Phase, ...]
    generator: str = ""
    words: tuple[str, ...] = ()
    #: Restart the servers in each round, for what depends on their past.
    fresh: bool = False
    #: The base of the ratios.
    base: str = NETSVC


def _echo(name: str, title: str, connections: int, size: int) -> Case:
    phase = Phase(name, f"TCP echo, {title}", "requests/s")
    return Case(name, STREAM, (phase,), "echo", ("--connections", str(connections), "--size", str(size)))


def _datagram(size: int) -> Case:
    phase = Phase(f"udp-{size}", f"UDP echo, {size:,} bytes, 64 in flight", "datagrams/s")
    return Case(phase.key, DATAGRAM, (phase,), "datagram", ("--size", str(size)))


def _chat(members: int) -> Case:
    def phase(flight: int, title: str) -> Phase:
        return Phase(f"chat-{members}-{flight}", f"Chat, {members:,} members, {title}", "deliveries/s")

    return Case(
        f"chat-{members}",
        CHAT,
        (phase(1, "one message at a time"), phase(64, "64 messages in flight")),
        "fanout",
        ("--members", str(members), "--flight", "1,64"),
        # A server that is still telling everybody who left would disturb the next one.
        fresh=True,
    )


def _tftp(block: int) -> Case:
    title = f"TFTP, 32 MiB, blksize {block}, windowsize 16"
    phase = Phase(f"tftp-{block}", title, "MiB/s", per=1, per_name="32 MiB", scale=32)
    words = ("--name", BOOT[0], "--length", str(BOOT[1]), "--blksize", str(block), "--window", "16")
    return Case(phase.key, TFTP, (phase,), "tftp", words)


_SMALL = ("--name", SMALL[0], "--length", str(SMALL[1]))

#: The bare peers serve streams, the others have a service that netsvc has too.
_STARTED = (*STREAM, TWISTD, *FILES[1:], *CHAT[1:])

CASES = (
    _echo("echo-64", "64 bytes on 100 connections", 100, 64),
    _echo("echo-1k", "1 KiB on 1,000 connections", 1000, 1024),
    _echo("echo-64k", "64 KiB on 20 connections", 20, 65536),
    Case("connect", STREAM, (Phase("connect", "TCP connect, echo, close", "connections/s"),), "connect"),
    _datagram(64),
    _datagram(1400),
    Case(
        "file-1g",
        (*FILES, FILES_CONTROL),
        (Phase("file-1g", "Download of 1 GiB", "GiB/s", per=1, per_name="GiB"),),
        "fetch",
        ("--name", LARGE[0], "--length", str(LARGE[1]), "--parallel", "1"),
    ),
    Case(
        "file-4k",
        FILES,
        (Phase("file-4k", "Downloads of 4 KiB, a new connection for each, 10 at a time", "downloads/s"),),
        "fetch",
        (*_SMALL, "--parallel", "10"),
    ),
    Case(
        "file-mixed",
        FILES[:2],
        (Phase("file-mixed", "p99 of a 4 KiB download while four of 1 GiB run", "ms", Measure.TAIL, scale=1e-3),),
        "fetch",
        (*_SMALL, "--parallel", "1", "--background", "4", "--background-name", LARGE[0]),
    ),
    Case(
        "http-1g",
        (*HTTP, HTTP_CONTROL),
        (Phase("http-1g", "HTTP, download of 1 GiB", "GiB/s", per=1, per_name="GiB"),),
        "fetch",
        ("--name", LARGE[0], "--length", str(LARGE[1]), "--parallel", "1"),
    ),
    Case(
        "http-4k",
        (*HTTP, HTTP_CONTROL),
        (Phase("http-4k", "HTTP, 4 KiB on 32 connections that are kept", "requests/s"),),
        "fetch",
        ("--dialect", "keep", *_SMALL, "--parallel", "32"),
    ),
    Case(
        "http-4k-new",
        (*HTTP, HTTP_CONTROL),
        (Phase("http-4k-new", "HTTP, 4 KiB, a new connection for each, 10 at a time", "requests/s"),),
        "fetch",
        (*_SMALL, "--parallel", "10"),
    ),
    Case(
        "http-mixed",
        (*HTTP[:2], HTTP_CONTROL),
        (Phase("http-mixed", "HTTP, p99 of 4 KiB while four of 1 GiB run", "ms", Measure.TAIL, scale=1e-3),),
        "fetch",
        ("--dialect", "keep", *_SMALL, "--parallel", "1", "--background", "4", "--background-name", LARGE[0]),
    ),
    Case(
        "http-stalled",
        HTTP[:2],
        (Phase("http-stalled", "Memory of 1,000 downloads that stall", "bytes a download", Measure.MEMORY),),
        "stalled",
        ("--name", MIDDLE[0], "--connections", "1000"),
        fresh=True,
    ),
    Case(
        "https-16m",
        HTTPS,
        (Phase("https-16m", "HTTPS, downloads of 16 MiB", "files/s", per=64, per_name="GiB"),),
        "fetch_tls",
        ("--name", MIDDLE[0], "--length", str(MIDDLE[1])),
    ),
    _tftp(1428),
    _tftp(512),
    _chat(100),
    _chat(1000),
    Case(
        "idle",
        STREAM,
        (Phase("idle", "Memory of 10,000 idle connections", "bytes a connection", Measure.MEMORY),),
        "idle",
        ("--connections", "10000"),
        fresh=True,
    ),
    Case(
        "start",
        _STARTED,
        (Phase("start", "Start-up to the first answered connection", "ms", Measure.START, scale=1e3),),
        fresh=True,
    ),
    Case(
        "workers",
        WORKERS,
        (Phase("workers", "TCP echo, 64 bytes on 100 connections, one worker and two", "requests/s"),),
        "echo",
        ("--connections", "100", "--size", "64"),
    ),
)


def phase_of(key: str) -> Phase:
    """Return the phase of that key. Raises `KeyError`."""
    return {phase.key: phase for case in CASES for phase in case.phases}[key]
