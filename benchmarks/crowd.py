"""A crowd in one process: thousands of chat members in rooms, and as many idle echo connections.

    python -m benchmarks.crowd [--members 5000] [--rooms 50] [--idle 5000]

Starts `twistd -n netsvc`, connects everybody, lets one member of each room speak, and checks that every other
member of that room hears it before anything said in another, that the idle connections still echo, and that the
server ends cleanly. Prints what the server used. Exit status 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import signal
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

TWISTD = str(Path(sysconfig.get_path("scripts"), "twistd"))
#: Seconds that any step may take.
PATIENCE = 120.0
#: Loopback addresses to connect from: one address has at most some 28,000 free ports.
SOURCES = [f"127.0.0.{number}" for number in range(1, 9)]


class CrowdError(Exception):
    """Something was not as it should be."""


class Member:
    """One chat connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def expect(self, pattern: bytes) -> re.Match[bytes]:
        """Read lines up to the first that matches."""
        while True:
            line = await asyncio.wait_for(self.reader.readline(), PATIENCE)
            if not line:
                raise CrowdError(f"closed while waiting for {pattern!r}")
            if match := re.search(pattern, line):
                return match


async def connect(port: int, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open one connection, from one of several loopback addresses."""
    source = (SOURCES[number % len(SOURCES)], 0)
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, local_addr=source), PATIENCE)


async def gather_members(port: int, members: int, rooms: int) -> list[list[Member]]:
    """Connect everybody and bring them to their rooms, a hundred at a time."""
    crowd: list[list[Member]] = [[] for _ in range(rooms)]

    async def enter(number: int) -> None:
        member = Member(*await connect(port, number))
        room = number % rooms
        member.writer.write(b"/join room%d\n/leave lobby\n" % room)
        await member.expect(rb"you left lobby")
        crowd[room].append(member)

    for start in range(0, members, 100):
        await asyncio.gather(*(enter(number) for number in range(start, min(members, start + 100))))
    return crowd


async def speak(crowd: Sequence[Sequence[Member]]) -> int:
    """Let the first member of each room say one thing; count who heard it. No member may hear another room."""
    heard = 0
    for room, members in enumerate(crowd):
        members[0].writer.write(b"this is room %d\n" % room)

    async def hear(member: Member, room: int) -> None:
        match = await member.expect(rb"this is room (\d+)")
        if int(match[1]) != room:
            raise CrowdError(f"a member of room {room} heard room {match[1].decode()}")

    listeners = [(member, room) for room, members in enumerate(crowd) for member in members[1:]]
    await asyncio.gather(*(hear(member, room) for member, room in listeners))
    heard += len(listeners)
    return heard


async def attend(chat: int, echo: int, options: argparse.Namespace) -> None:
    """Do it all against a running server."""
    began = time.monotonic()
    idle = []
    for start in range(0, options.idle, 100):
        numbers = range(start, min(options.idle, start + 100))
        idle += await asyncio.gather(*(connect(echo, number) for number in numbers))
    print(f"{len(idle)} idle echo connections after {time.monotonic() - began:.1f} s")
    crowd = await gather_members(chat, options.members, options.rooms)
    print(f"{options.members} members in {options.rooms} rooms after {time.monotonic() - began:.1f} s")
    print(f"{await speak(crowd)} deliveries after {time.monotonic() - began:.1f} s")
    for number, (reader, writer) in enumerate(idle):
        writer.write(b"%d" % number)
        if await asyncio.wait_for(reader.readexactly(len(str(number))), PATIENCE) != b"%d" % number:
            raise CrowdError("an idle connection did not echo")
    print(f"every idle connection echoes after {time.monotonic() - began:.1f} s")
    for writer in [member.writer for members in crowd for member in members] + [writer for _, writer in idle]:
        writer.transport.abort()


async def main(options: argparse.Namespace) -> None:
    """Run the server and the crowd."""
    words = ["-n", "--pidfile=", "netsvc", "--chat", "0", "--tcp", "0", "--drain", "1"]
    words += ["--chat-members", str(options.members + 10), "--chat-rooms", str(options.rooms + 10)]
    server = await asyncio.create_subprocess_exec(TWISTD, *words, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    ports: dict[str, int] = {}
    try:
        async for line in server.stdout:
            if match := re.search(rb"(echo|chat) \S+ listens on .*:(\d+)$", line.strip()):
                ports[match[1].decode()] = int(match[2])
            if line.rstrip().endswith(b"ready"):
                break
        await attend(ports["chat"], ports["echo"], options)
        status = Path(f"/proc/{server.pid}/status").read_text()
        used = re.search(r"VmHWM:\s+(\d+) kB", status)
        print(f"peak memory of the server: {int(used[1]) / 1024 if used else 0:.0f} MiB")
    finally:
        server.send_signal(signal.SIGTERM)
        rest = await asyncio.wait_for(server.stdout.read(), PATIENCE)
        await server.wait()
    if b"Traceback" in rest or b"Unhandled" in rest:
        raise CrowdError(rest.decode("utf-8", "replace"))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU of the server: {ended.ru_utime + ended.ru_stime:.1f} s")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=5000)
    parser.add_argument("--rooms", type=int, default=50)
    parser.add_argument("--idle", type=int, default=5000)
    return parser.parse_args(words)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        asyncio.run(main(arguments()))
    except (CrowdError, TimeoutError) as error:
        sys.exit(f"failed: {error or type(error).__name__}")
